"""The page for whoever decides: it holds on one page what matters, and says what a study changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from client import shelf
from client.cli import app
from client.ledger import SqliteLedger
from client.review import Verdict, differences, review
from client.review_page import page
from common.identity import fingerprint
from common.privacy.plan import PrivacyPlan
from tests.encoders import write_encoder
from tests.hospitals import EPSILON, SITE, WORKED, Hospital, hospital
from tests.policies import OPEN
from tests.studies import NOW, Signed, signed_study

PAGE = """\
A study for tests                                                          within this site's policy
Study      {digest} (offered)
           signed by the operator of site.toml, {operator}
           until 2099-01-01T00:00:00Z; for software >=0.1,<0.2, here is 0.1.0
Purpose    DUO:0000007 DS, disease specific research
           “tests”
Task       text-classification: it assigns one of 2 labels to a text; its score: accuracy
           reads texts, up to 16 tokens of each
           labels: no, yes
Backbone   tiny, revision 1, from tests; 1 file(s), not on this machine
           licence Apache-2.0; trained on: none: random weights
Travels    ffa-lora, rank 2 on query, value of the last 1 layer(s), and the task's head
           3 rounds of 2 steps, 4 charges allowed; 1 evaluation(s)
           SGD at the sites, rate 0.1, cosine; FedAvg at the server, rate 1
           1,000 coordinates in 16 bits: 0.00 MB up, 0.00 MB down in each round
Privacy    each record: epsilon {epsilon} recomputed here, 8 stated; delta 1e-05
           noise 1.5 in each step, 5 in each evaluation, times the most that one can add
           account default: epsilon 10.0000 left now, {after} after
Cohort     4 sites, 2 of 3 others verified; a sum needs 4 survivors, 1 may collude
"""


@pytest.fixture
def made(tmp_path: Path) -> Hospital:
    made = hospital(tmp_path)
    made.offer(made.signed)
    return made


def verdict(made: Hospital, signed: Signed | None = None, *, coordinates: int | None = None) -> Verdict:
    config = made.config
    one = shelf.find(config, (signed or made.signed).study.digest)
    return review(one, config, shelf.known(config)[0], NOW, coordinates=coordinates)


def printed(found: Verdict, width: int = 100) -> list[str]:
    console = Console(width=width, record=True, file=None, color_system=None)
    with console.capture() as capture:
        console.print(page(found))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_page_at_a_hundred_columns(made: Hospital) -> None:
    made.policy('"site-003" = ', '"nobody" = ')
    epsilon = PrivacyPlan.for_site(made.signed.study, SITE).epsilon()
    lines = printed(verdict(made, coordinates=1000))
    keys = {site: fingerprint(identity.public_key) for site, identity in made.signed.sites.items()}
    top = PAGE.format(
        digest=made.signed.study.digest,
        operator=fingerprint(made.signed.operator.public_key),
        epsilon=f"{epsilon + 5e-5:.4f}",
        after=f"{EPSILON - epsilon:.4f}",
    ).splitlines()
    assert lines[: len(top)] == top
    text = "\n".join(lines)
    for site, standing in zip(keys, ("this site", "verified", "verified", "not verified"), strict=True):
        assert f"{keys[site]}  {standing:<12}  {site}, band 100" in text
    assert lines[-2:] == ["Differs    no other study may run here", "Forbidden  none"]
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_whole_digest_and_every_violation_are_on_the_page_at_any_width(made: Hospital, width: int) -> None:
    made.policy("max_rounds = 1000", "max_rounds = 2")
    made.policy('["Apache-2.0"]', '["MIT"]')
    joined = "".join("".join(line.split()) for line in printed(verdict(made), width))
    assert made.signed.study.digest in joined
    assert "FORBIDDENin2points" in joined
    assert "licence:Apache-2.0;licences=MIT" in joined
    assert "rounds:3;max_rounds=2" in joined


def test_what_a_study_writes_into_its_title_is_printed_and_not_obeyed(made: Hospital) -> None:
    """Markup and control characters come from the operator: they must not repaint the page."""
    sly = signed_study(4, **WORKED, title="[bold red]x[/]\x1b[2J\u202e\nForbidden  none")
    made.offer(sly)
    text = "\n".join(printed(verdict(made, sly)))
    assert "[bold red]x[/]" in text
    assert not {"\x1b", "\u202e"} & set(text)
    listed = CliRunner().invoke(app, ["study", "list", "--home", str(made.home)]).output
    assert "[bold red]x[/]" in listed
    assert not {"\x1b", "\u202e"} & set(listed)
    assert text.count("\nForbidden  none") == 1


def test_a_peer_that_is_not_verified_keeps_the_site_out_and_the_page_says_so(made: Hospital) -> None:
    assert verdict(made).cohort.obstacle == ""
    for peer in ("site-001", "site-002", "site-003"):
        made.policy(f'"{peer}" = ', f'"not-{peer}" = ')
    assert "CSL-404" in verdict(made).cohort.obstacle
    assert "would not take part yet" in "\n".join(printed(verdict(made)))


def test_the_budget_is_what_the_ledger_says_and_a_joined_study_is_not_counted_twice(made: Hospital) -> None:
    plan = PrivacyPlan.for_site(made.signed.study, SITE)
    before = verdict(made).privacy
    assert before.left == EPSILON
    assert before.after == pytest.approx(EPSILON - plan.epsilon())
    with SqliteLedger(made.config.ledger_file) as ledger:
        ledger.join("default", made.signed.study.digest, plan)
    after = verdict(made).privacy
    assert after.left == after.after == pytest.approx(EPSILON - plan.epsilon())


def test_without_a_sound_ledger_nothing_may_run_and_the_page_says_why(made: Hospital) -> None:
    made.config.ledger_file.unlink()
    found = verdict(made)
    assert [(one.rule.value, one.found[:7]) for one in found.violations] == [("budget", "CSL-212")]
    assert found.privacy.left is None
    assert "cannot be read, or is not open" in "\n".join(printed(found))


def test_differences_are_those_to_the_newest_other_study_that_may_run(made: Hospital) -> None:
    for year in (2024, 2025):
        made.agree(signed_study(4, **WORKED, title=f"Of {year}", created=f"{year}-01-01T00:00:00Z"))
    newest = signed_study(4, **WORKED, title="Of 2025", created="2025-01-01T00:00:00Z")
    found = verdict(made)
    assert found.differs_from == newest.study.digest
    assert {one.field: (one.before, one.after) for one in found.differences} == {
        "title": ("Of 2025", "A study for tests"),
        "created": ("2025-01-01T00:00:00Z", "2026-11-24T00:00:00Z"),
    }
    assert "title: Of 2025 → A study for tests" in "\n".join(printed(found))


def test_a_changed_key_and_a_new_site_stand_under_their_names() -> None:
    small, large = signed_study(4).study, signed_study(5).study
    found = {one.field: (one.before, one.after) for one in differences(small, large)}
    assert found == {
        "roster.site-004.key": (None, large.roster[4].key),
        "roster.site-004.band": (None, "100"),
    }
    back = {one.field: one.after for one in differences(large, small)}
    assert back == {"roster.site-004.key": None, "roster.site-004.band": None}


def test_json_is_the_verdict_and_the_statement_is_the_studys(made: Hospital) -> None:
    digest = made.signed.study.digest
    shown = CliRunner().invoke(app, ["study", "review", digest, "--home", str(made.home), "--json"])
    assert shown.exit_code == 0, shown.output
    assert Verdict.model_validate_json(shown.stdout).digest == digest
    assert json.loads(shown.stdout)["violations"] == []
    text = CliRunner().invoke(app, ["study", "review", digest, "--home", str(made.home), "--statement"])
    assert text.exit_code == 0
    assert text.stdout.startswith("# Privacy statement")


def test_a_study_of_rows_says_its_fields_its_ranks_and_what_stays_here(made: Hospital) -> None:
    task = {
        "kind": "tabular-classification",
        "labels": ["no", "yes"],
        "fields": [
            {"kind": "number", "name": "age", "low": 0, "high": 120},
            {"kind": "category", "name": "sex", "levels": ["f", "m"]},
        ],
    }
    rows = signed_study(
        4, **WORKED, task=task, adapter={"rank": 4, "site_ranks": {SITE: 2}}, personal={"method": "head", "steps": 50}
    )
    made.offer(rows)
    found = verdict(made, rows)
    assert (found.task.kind, found.task.content) == ("tabular-classification", "fields")
    text = "\n".join(printed(found, 200))
    assert "2 fields: age (0 to 120), sex (f/m)" in text
    assert f"this site trains rank 2; some sites train less than rank 4: {SITE} rank 2" in text
    assert "Here       after the last round a site may fit a head of its own on the shared adapter, in 50 steps" in text


def test_a_study_that_pretrains_and_carries_a_reference_says_so(made: Hospital) -> None:
    told = signed_study(
        4,
        **WORKED,
        pretraining={"rounds": 2, "objective": {"kind": "masked-language-modelling"}},
        reference={"data": "[b]invented[/]", "mean": [0.0, 1.0], "deviation": [1.0, 1.0]},
        training={"proximal": 0.5, "server_optimizer": "fedmomentum"},
    )
    made.offer(told)
    text = "\n".join(printed(verdict(made, told), 250))
    assert "in the first 2 of 3 rounds it predicts masked tokens of a text, 15% of them" in text
    assert "a record without a label takes part in these alone" in text
    assert "2 features of public data, “[b]invented[/]”" in text
    assert "pulled to the round's start by 0.5 (FedProx); FedAvg with momentum 0.9 at the server" in text


def test_what_people_should_hear_is_on_the_page(made: Hospital) -> None:
    loud = signed_study(4, **WORKED, privacy={"sampling_rate": 1.0, "noise_multiplier": 5.0, "epsilon": 8.0})
    made.offer(loud)
    assert "SAMPLING: every unit is in every step" in "\n".join(printed(verdict(made, loud), 200))


def test_what_travels_is_counted_on_the_model_where_it_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    folder.mkdir()
    manifest = write_encoder(folder)
    signed = signed_study(4, **WORKED, backbone=manifest.model_dump(mode="json"))
    made = hospital(tmp_path / "home", signed, policy=f'{OPEN}[backbone]\nfolder = "{folder}"\n')
    made.offer(signed)
    arguments = ["study", "review", signed.study.digest, "--home", str(made.home), "--json"]
    without, counted = (json.loads(CliRunner().invoke(app, [*arguments, *more]).stdout) for more in ([], ["--model"]))
    assert without["travels"]["coordinates"] is None
    coordinates = counted["travels"]["coordinates"]
    assert coordinates > 0
    assert counted["travels"]["megabytes_up"] == pytest.approx(2 * coordinates / 1e6)
    assert counted["travels"]["megabytes_down"] == pytest.approx(4 * coordinates / 1e6)
    assert counted["backbone"]["megabytes"] == pytest.approx(
        sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    )
