"""`consilium-client`: what a hospital reads of its ledger and of a study, and what it is refused with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client.cli import app
from client.ledger import SqliteLedger
from client.ledger.files import default_anchor
from common import agreement
from common.errors import ConsiliumError
from common.parts import Digest
from common.privacy.plan import PrivacyPlan
from tests.client.ledger.test_store import UNLOCKED, change
from tests.encoders import write_encoder
from tests.ledgers import ACCOUNT, EPSILON, PLAN, SITE, STUDY, charge, joined, opened
from tests.studies import Signed, signed_study


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, code: str) -> None:
    """One coded line on stderr, nothing on stdout, exit code 2, no traceback."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert line.startswith(code + " ")
    assert "Mend: " in line


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.sqlite"
    with opened(path) as kept:
        joined(kept)
        kept.charge(charge(1))
        kept.charge(charge(2))
    return path


def test_show_says_what_was_spent_on_what_and_what_remains(ledger: Path) -> None:
    result = run("ledger", "show", "--ledger", ledger)
    assert result.exit_code == 0
    said = " ".join(result.stdout.split())
    spent = math.ceil(PLAN.epsilon() * 1e4) / 1e4
    for word in (ACCOUNT, STUDY.digest[:12], f"{spent:.4f} of", "2 of 4", f"{EPSILON - spent:.4f} left"):
        assert word in said


def test_show_in_json_agrees_with_the_ledger(ledger: Path) -> None:
    found = json.loads(run("ledger", "show", "--ledger", ledger, "--json").stdout)
    (account,) = found["accounts"]
    (study,) = account["studies"]
    assert account["epsilon_remaining"] == pytest.approx(EPSILON - PLAN.epsilon())
    assert (study["training"], study["max_charges"], study["state"]) == (2, 4, "open")
    assert 0 < study["epsilon_charged"] < study["epsilon"]


def test_show_draws_the_budgets(ledger: Path, tmp_path: Path) -> None:
    plot = tmp_path / "budget.svg"
    assert run("ledger", "show", "--ledger", ledger, "--plot", plot).exit_code == 0
    root = ElementTree.fromstring(plot.read_text())  # noqa: S314 - our own figure
    bars = [float(bar.get("width", 0)) for bar in root.iter("{http://www.w3.org/2000/svg}rect")]
    whole, part = bars[1], bars[2]
    assert part / whole == pytest.approx(PLAN.epsilon() / EPSILON, abs=0.01)


def test_verify_passes_a_sound_ledger_and_names_what_is_wrong_with_another(ledger: Path) -> None:
    result = run("ledger", "verify", "--ledger", ledger)
    assert (result.exit_code, result.stdout.startswith("sound: 5 entries")) == (0, True)
    change(ledger, *UNLOCKED, "UPDATE entry SET body = x'7b7d' WHERE number = 4")
    refused(run("ledger", "verify", "--ledger", ledger), "CSL-211")
    refused(run("ledger", "show", "--ledger", ledger), "CSL-211")
    refused(run("ledger", "export", "--ledger", ledger), "CSL-211")


@pytest.mark.parametrize("command", ["show", "verify", "export", "recover"])
def test_a_ledger_that_is_not_there_is_said(command: str, tmp_path: Path) -> None:
    refused(run("ledger", command, "--ledger", tmp_path / "none.sqlite"), "CSL-212")
    assert list(tmp_path.iterdir()) == []


def test_export_writes_the_whole_chain(ledger: Path, tmp_path: Path) -> None:
    out = tmp_path / "export.json"
    assert run("ledger", "export", "--ledger", ledger, "--out", out).exit_code == 0
    assert out.read_text() == run("ledger", "export", "--ledger", ledger).stdout
    assert [entry["record"]["entry"]["kind"] for entry in json.loads(out.read_text())["entries"]] == [
        "ledger",
        "account",
        "study",
        "charge",
        "charge",
    ]
    refused(run("ledger", "export", "--ledger", ledger, "--out", tmp_path / "absent" / "x"), "CSL-214")


def test_recover_asks_first_and_then_charges_the_worst_case(ledger: Path) -> None:
    assert "nothing to recover" in run("ledger", "recover", "--ledger", ledger).stdout
    default_anchor(ledger).unlink()
    assert CliRunner().invoke(app, ["ledger", "recover", "--ledger", str(ledger)], input="n\n").exit_code == 1
    refused(run("ledger", "verify", "--ledger", ledger), "CSL-212")
    result = run("ledger", "recover", "--ledger", ledger, "--yes")
    assert (result.exit_code, "charged in full" in " ".join(result.stdout.split())) == (0, True)
    assert run("ledger", "verify", "--ledger", ledger).exit_code == 0


@pytest.fixture
def unused(tmp_path: Path) -> Path:
    """A ledger whose study was joined and never charged."""
    path = tmp_path / "unused.sqlite"
    with opened(path) as kept:
        joined(kept)
    return path


def remaining(path: Path) -> float:
    with opened(path) as kept:
        return kept.balances()[0].epsilon_remaining


def test_close_asks_first_and_gives_back_what_an_unused_study_committed(unused: Path) -> None:
    arguments = ["ledger", "close", STUDY.digest[:12], "--ledger", str(unused)]
    asked = CliRunner().invoke(app, arguments, input="n\n")
    assert (asked.exit_code, asked.stdout) == (1, "")
    assert f"gives back epsilon {math.floor(PLAN.epsilon() * 1e4) / 1e4:.4f}" in " ".join(asked.stderr.split())
    assert remaining(unused) == pytest.approx(EPSILON - PLAN.epsilon())
    result = CliRunner().invoke(app, arguments, input="y\n")
    assert result.exit_code == 0
    assert "came back" in " ".join(result.stdout.split())
    assert remaining(unused) == EPSILON
    assert "closed before" in run(*arguments).stdout
    with opened(unused) as kept, pytest.raises(ConsiliumError, match="CSL-215"):
        kept.join(ACCOUNT, STUDY.digest, PLAN)


def test_close_gives_nothing_back_of_a_study_that_made_a_charge_and_ends_its_charges(ledger: Path) -> None:
    asked = CliRunner().invoke(app, ["ledger", "close", STUDY.digest, "--ledger", str(ledger)], input="n\n")
    assert "gives nothing back" in " ".join(asked.stderr.split())
    result = run("ledger", "close", STUDY.digest, "--ledger", ledger, "--yes", "--json")
    (account,) = json.loads(result.stdout)["accounts"]
    assert account["studies"][0]["state"] == "closed"
    assert account["epsilon_remaining"] == pytest.approx(EPSILON - PLAN.epsilon())
    with opened(ledger) as kept, pytest.raises(ConsiliumError, match="CSL-215"):
        kept.charge(charge(3))


@pytest.mark.parametrize("study", ["", STUDY.digest[:7], "f" * 64, "no digest"])
def test_close_refuses_what_names_no_study(unused: Path, study: str) -> None:
    refused(run("ledger", "close", study, "--ledger", unused, "--yes"), "CSL-215")
    assert remaining(unused) < EPSILON


def test_close_asks_for_the_account_where_two_hold_a_study_so_named(unused: Path) -> None:
    other = Digest(STUDY.digest[:12] + "0" * 52)
    with opened(unused) as kept:
        kept.open_account("oncology", population="p", unit=PLAN.unit, epsilon=EPSILON, delta=1e-4)
        kept.join("oncology", other, PLAN)
    arguments = ("ledger", "close", STUDY.digest[:12], "--ledger", unused, "--yes")
    refused(run(*arguments), "CSL-215")
    refused(run(*arguments, "--account", "neurology"), "CSL-215")
    assert run(*arguments, "--account", "oncology").exit_code == 0
    with opened(unused) as kept:
        assert [balance.epsilon_remaining < EPSILON for balance in kept.balances()] == [True, False]


def test_close_writes_nothing_into_a_ledger_that_is_not_sound(unused: Path) -> None:
    default_anchor(unused).unlink()
    before = unused.read_bytes()
    refused(run("ledger", "close", STUDY.digest, "--ledger", unused, "--yes"), "CSL-212")
    assert unused.read_bytes() == before


def test_open_makes_the_ledger_and_its_first_account_and_no_second_of_that_name(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    arguments = ("ledger", "open", "oncology", "--population", "since 2010", "--epsilon", 4, "--ledger", path)
    assert run(*arguments).exit_code == 0
    with SqliteLedger(path) as made:
        (balance,) = made.balances()
    assert (balance.account, balance.epsilon, balance.unit.value) == ("oncology", 4.0, "patient")
    refused(run(*arguments), "CSL-215")
    refused(run(*arguments[:-3], -1, "--ledger", path), "CSL-201")


@pytest.mark.parametrize("epsilon", ["1e-6", "0.3", "1e9"])
def test_whatever_cap_was_opened_can_be_shown_and_drawn(tmp_path: Path, epsilon: str) -> None:
    path, plot = tmp_path / "new.sqlite", tmp_path / "budget.svg"
    run("ledger", "open", "a", "--population", "p", "--epsilon", epsilon, "--ledger", path)
    result = run("ledger", "show", "--ledger", path, "--plot", plot)
    assert result.exit_code == 0
    assert f"of {float(epsilon):g} committed, {float(epsilon):.4f} left" in " ".join(result.stdout.split())
    bars = [bar.get("width", "") for bar in ElementTree.fromstring(plot.read_text()).iter()]  # noqa: S314 - our own
    assert not {"inf", "nan"} & set(bars)


@pytest.mark.parametrize("epsilon", ["1e308", "1e999", "nan", "0", "1e-320"])
def test_a_cap_out_of_range_is_refused_with_a_code(tmp_path: Path, epsilon: str) -> None:
    path = tmp_path / "new.sqlite"
    arguments = ("ledger", "open", "a", "--population", "p", "--epsilon", epsilon, "--ledger", path)
    refused(run(*arguments), "CSL-201")
    assert not path.exists()


def test_the_ledger_may_be_named_by_the_environment(ledger: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_LEDGER", str(ledger))
    assert run("ledger", "verify").exit_code == 0


class Desk:
    """A deployment study over a tiny backbone on disk, and the check run over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = folder / "backbone"
        self.backbone.mkdir()
        manifest = write_encoder(self.backbone)
        self.signed = self.author(backbone=manifest.model_dump(mode="json"))

    def author(self, **changes: object) -> Signed:
        made = signed_study(4, **{"kind": "deployment", "expires": "2099-01-01T00:00:00Z", **changes})
        agreement.write(self.folder / "study", made.signed, made.approvals)
        return made

    def check(self, *more: object) -> Result:
        return run(
            "check",
            *("--study", self.folder / "study", "--site", SITE, "--operator", self.signed.operator.public_key.hex()),
            *("--backbone", self.backbone, "--json", *more),
        )

    def findings(self, *more: object) -> dict[str, tuple[bool, str]]:
        result = self.check(*more)
        found = {one["name"]: (one["verdict"] != "wrong", one["said"]) for one in json.loads(result.stdout)}
        assert result.exit_code == (0 if all(right for right, _ in found.values()) else 2)
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_a_study_that_could_run_is_right_in_every_finding(desk: Desk, ledger: Path) -> None:
    with opened(ledger) as kept:
        kept.join(ACCOUNT, desk.signed.study.digest, PrivacyPlan.for_site(desk.signed.study, SITE))
    found = desk.findings("--ledger", ledger, "--account", ACCOUNT)
    assert {"study", "privacy", "noise", "backbone", "model", "encoding", "ledger", "budget"} <= set(found)
    assert all(right for right, _ in found.values()), found
    assert "preflight passed" in found["model"][1]


def test_what_should_be_heard_before_approving_is_said_and_stops_nothing(desk: Desk) -> None:
    manifest = desk.signed.study.backbone.model_dump(mode="json")
    desk.signed = desk.author(backbone=manifest, evaluation={"noise_multiplier": 5000.0})
    result = desk.check()
    assert result.exit_code == 0
    heard = [one for one in json.loads(result.stdout) if one["verdict"] == "heed"]
    assert "evaluation" in {one["name"] for one in heard}


def spent(desk: Desk, ledger: Path) -> tuple[object, ...]:
    with opened(ledger) as kept:
        for number in range(2):
            kept.join(ACCOUNT, Digest(f"{number:064x}"), PLAN)
    return "--ledger", ledger, "--account", ACCOUNT


def truncated(desk: Desk, ledger: Path) -> tuple[object, ...]:
    change(ledger, *UNLOCKED, "DELETE FROM entry WHERE number = 5")
    return "--ledger", ledger, "--account", ACCOUNT


def changed_backbone(desk: Desk, ledger: Path) -> tuple[object, ...]:
    del ledger
    (desk.backbone / "config.json").write_text("{}")
    return ()


def overspent(desk: Desk, ledger: Path) -> tuple[object, ...]:
    del ledger
    manifest = desk.signed.study.backbone.model_dump(mode="json")
    desk.signed = desk.author(backbone=manifest, privacy={"epsilon": 0.5})
    return ()


def simulated(desk: Desk, ledger: Path) -> tuple[object, ...]:
    del ledger
    desk.signed = desk.author(backbone=desk.signed.study.backbone.model_dump(mode="json"), kind="simulation")
    return ()


def expired(desk: Desk, ledger: Path) -> tuple[object, ...]:
    del ledger
    manifest = desk.signed.study.backbone.model_dump(mode="json")
    desk.signed = desk.author(backbone=manifest, expires="2026-11-24T00:00:01Z")
    return ()


def test_a_study_of_no_epsilon_at_all_can_be_paid_for(desk: Desk, ledger: Path) -> None:
    privacy = {"noise_multiplier": 5000.0, "sampling_rate": 0.001, "delta": 1e-5, "max_charges": 4}
    manifest = desk.signed.study.backbone.model_dump(mode="json")
    desk.signed = desk.author(backbone=manifest, privacy=privacy, evaluation={"releases": 0})
    right, said = desk.findings("--ledger", ledger, "--account", ACCOUNT)["budget"]
    assert right
    assert said.endswith("the study commits 0.0000")


def unaccountable(desk: Desk, ledger: Path) -> tuple[object, ...]:
    """So little noise, so often, that its epsilon would fill any memory before it was known."""
    manifest = desk.signed.study.backbone.model_dump(mode="json")
    desk.signed = desk.author(
        backbone=manifest,
        privacy={"epsilon": 1e30, "noise_multiplier": 0.05, "max_charges": 100},
        training={"steps_per_round": 100_000},
    )
    return "--ledger", ledger, "--account", ACCOUNT


def outside(desk: Desk, ledger: Path) -> tuple[object, ...]:
    """A block that ends behind the last coordinate of the update: such a study can never start."""
    del ledger
    manifest = desk.signed.study.backbone.model_dump(mode="json")
    sites = sorted(desk.signed.sites)[:3]
    block = {"name": "b", "start": 0, "stop": 1 << 40, "sites": sites}
    desk.signed = desk.author(backbone=manifest, aggregation={"blocks": [block]})
    return ()


@pytest.mark.parametrize(
    ("spoil", "name", "code"),
    [
        (outside, "encoding", "CSL-408"),
        (unaccountable, "privacy", "CSL-201"),
        (unaccountable, "budget", "CSL-201"),
        (spent, "budget", "CSL-204"),
        (truncated, "ledger", "CSL-212"),
        (changed_backbone, "backbone", "CSL-302"),
        (overspent, "privacy", "CSL-203"),
        (simulated, "study", "CSL-108"),
        (expired, "study", "CSL-106"),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(
    desk: Desk, ledger: Path, spoil: Callable[[Desk, Path], tuple[object, ...]], name: str, code: str
) -> None:
    found = desk.findings(*spoil(desk, ledger))
    right, said = found[name]
    assert not right
    assert said.startswith(code)
    assert "Mend: " in said


def test_a_study_of_another_operator_is_refused_before_anything_is_looked_at(desk: Desk) -> None:
    stranger = "00" * 31 + "01"
    result = run("check", "--study", desk.folder / "study", "--site", SITE, "--operator", stranger)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "CSL-1" in result.stderr


def test_a_model_that_preflight_refuses_is_named_with_its_layer(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dropout left on is one of the faults that preflight finds; the finding says where it sits."""
    import torch

    from client.preparing import adapted
    from common.adapters import AdaptedModel
    from common.study import Study

    def dropping(study: Study, folder: Path) -> AdaptedModel:
        made = adapted(study, folder)
        for module in made.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
                module.train()
        return made

    monkeypatch.setattr("client.check.adapted", dropping)
    right, said = desk.findings()["model"]
    assert not right
    assert said.startswith("CSL-330")
    assert "dropout" in said
