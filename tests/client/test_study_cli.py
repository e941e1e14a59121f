"""`consilium-client study` and `verify`: what people decide is on disk, signed, and what the daemon goes by."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client import shelf
from client.cli import app
from client.gate import allowed_of
from common import agreement as agreements
from common.agreement import Approval, verify_agreement
from common.identity import Signature, fingerprint
from common.study import Kind
from tests.hospitals import PASSPHRASE, SITE, VARIABLE, WORKED, Hospital, ask, hospital
from tests.studies import NOW, Signed, signed_study

OTHER = "site-001"


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    monkeypatch.setenv(VARIABLE, PASSPHRASE)
    made = hospital(tmp_path / "home")
    made.offer(made.signed)
    return made


def run(made: Hospital, *arguments: object, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments), "--home", str(made.home)], input=typed)


def state(made: Hospital, signed: Signed | None = None) -> str:
    digest = (signed or made.signed).study.digest
    lines = json.loads(run(made, "study", "list", "--json").stdout)
    (line,) = [line for line in lines if line["study"] == digest]
    return str(line["state"])


def refused(result: Result, code: str) -> None:
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.strip().splitlines()[-1].startswith(code + " ")


def test_an_approval_is_this_sites_signature_and_with_all_others_the_study_runs(made: Hospital) -> None:
    digest = made.signed.study.digest
    assert state(made) == "offered"
    result = run(made, "study", "approve", digest[:12], "--yes", "--json")
    assert result.exit_code == 0, result.output
    file = made.home / "offers" / digest[:16] / shelf.APPROVAL
    assert json.loads(file.read_text()) == json.loads(result.stdout)
    assert state(made) == "approved"
    given = json.loads(file.read_text())
    approval = Approval(SITE, digest, Signature(bytes.fromhex(given["signature"])))
    others = tuple(one for one in made.signed.approvals if one.site != SITE)
    verify_agreement(
        made.signed.signed, (approval, *others), made.signed.operator.public_key, now=NOW, kind=Kind.DEPLOYMENT
    )
    made.agree(made.signed)
    assert state(made) == "running here"
    assert ask(made.daemon(), made.signed).has_content()


def test_approving_shows_the_page_asks_and_takes_silence_for_no(made: Hospital) -> None:
    result = run(made, "study", "approve", made.signed.study.digest[:12], typed="\n")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "within this site's policy" in result.stderr
    assert state(made) == "offered"
    assert run(made, "study", "approve", made.signed.study.digest[:12], typed="y\n").exit_code == 0
    assert state(made) == "approved"


def test_what_the_policy_forbids_cannot_be_approved_by_any_answer(made: Hospital) -> None:
    made.policy("max_rounds = 1000", "max_rounds = 2")
    result = run(made, "study", "approve", made.signed.study.digest, "--yes")
    refused(result, "CSL-160")
    assert "rounds: 3; max_rounds = 2" in result.stderr
    assert state(made) == "offered"


def test_a_study_that_only_others_signed_for_this_operator_is_no_study_here(made: Hospital) -> None:
    folder = made.offer(signed_study(4, **WORKED, title="Forged"))
    signatures = json.loads((folder / "signatures.json").read_text())
    (folder / "signatures.json").write_text(json.dumps({**signatures, "operator": "00" * 64}))
    for command in ("review", "approve", "withdraw"):
        refused(run(made, "study", command, folder), "CSL-104")
    result = run(made, "study", "list", "--json")
    assert [line["title"] for line in json.loads(result.stdout)] == ["A study for tests"]
    assert "CSL-104" in result.stderr


def test_a_study_whose_roster_holds_another_key_of_this_site_is_not_signed(made: Hospital) -> None:
    roster = made.signed.study.model_dump(mode="json")["roster"]
    roster[0]["key"], roster[1]["key"] = roster[1]["key"], roster[0]["key"]
    raw = made.signed.study.model_copy(
        update={
            "roster": type(made.signed.study)
            .from_fields({**made.signed.study.model_dump(mode="json"), "roster": roster})
            .roster
        }
    )
    signed = agreements.sign(raw, made.signed.operator)
    folder = made.home / "offers" / raw.digest[:16]
    agreements.write(folder, signed, ())
    refused(run(made, "study", "approve", folder, "--yes"), "CSL-121")
    assert not (folder / shelf.APPROVAL).exists()


def test_a_study_that_came_by_mail_is_approved_from_its_folder(made: Hospital, tmp_path: Path) -> None:
    other = signed_study(4, **WORKED, title="By mail")
    agreements.write(tmp_path / "mail", other.signed, ())
    assert run(made, "study", "approve", tmp_path / "mail", "--yes").exit_code == 0
    assert state(made, other) == "approved"
    assert not (tmp_path / "mail" / shelf.APPROVAL).exists()


@pytest.mark.parametrize("named", ["", "0123456", "f" * 64, "nowhere/at/all"])
def test_what_names_no_study_is_said(made: Hospital, named: str) -> None:
    for command in ("review", "approve", "withdraw", "allow"):
        refused(run(made, "study", command, named), "CSL-163")


def test_who_withdraws_takes_no_part_any_more_even_in_a_study_that_is_open(made: Hospital) -> None:
    digest = made.signed.study.digest
    run(made, "study", "approve", digest, "--yes")
    made.agree(made.signed)
    daemon = made.daemon()
    assert ask(daemon, made.signed).has_content()
    assert run(made, "study", "withdraw", digest, typed="n\n").exit_code == 1
    assert state(made) == "running here"
    assert run(made, "study", "withdraw", digest, "--yes").exit_code == 0
    assert state(made) == "withdrawn"
    assert list((made.home / "studies").iterdir()) == []
    assert not (made.home / "offers" / digest[:16] / shelf.APPROVAL).exists()
    # Open still for what unmasks a sum that goes on; whatever is charged asks whether the study is here.
    assert not shelf.is_running(made.config.studies, digest)
    daemon.close()
    assert ask(daemon, made.signed).has_error()


def test_a_crash_while_withdrawing_leaves_nothing_that_runs(made: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    made.agree(made.signed)

    def killed(_path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    run(made, "study", "withdraw", made.signed.study.digest, "--yes")
    assert state(made) == "withdrawn"
    assert ask(made.daemon(), made.signed).has_error()
    assert made.spent() == 0


def test_a_study_that_was_only_ever_run_here_is_withdrawn_and_may_be_approved_again(made: Hospital) -> None:
    other = signed_study(4, **WORKED, title="Given by hand")
    made.agree(other)
    assert run(made, "study", "withdraw", other.study.digest, "--yes").exit_code == 0
    assert state(made, other) == "withdrawn"
    assert run(made, "study", "approve", other.study.digest, "--yes").exit_code == 0
    assert state(made, other) == "approved"


def test_a_study_past_its_end_is_listed_as_expired(made: Hospital) -> None:
    old = signed_study(4, **{**WORKED, "expires": "2026-11-25T00:00:00Z"}, title="Old")
    made.offer(old)
    assert state(made, old) == "expired"
    assert datetime.fromisoformat(old.study.expires) < NOW


def test_rounds_are_allowed_one_by_one_and_only_those_there_are(made: Hospital) -> None:
    digest = made.signed.study.digest
    assert run(made, "study", "allow", digest, "--rounds", "2").exit_code == 0
    assert allowed_of(made.config.state, digest).rounds == (2,)
    said = json.loads(run(made, "study", "allow", digest, "--rounds", "1-2", "--evaluation", "--json").stdout)
    assert (said["rounds"], said["evaluation"]) == ([1, 2], True)
    for wrong in ("0", "4", "1-4", "3-1", "all"):
        assert run(made, "study", "allow", digest, "--rounds", wrong).exit_code == 2
    assert run(made, "study", "allow", digest).exit_code == 2
    assert allowed_of(made.config.state, digest).rounds == (1, 2)


def test_a_peer_is_verified_by_the_key_of_the_newest_study_and_by_what_was_heard(made: Hospital) -> None:
    made.policy(f'"{OTHER}" = ', '"nobody" = ')
    key = made.signed.sites[made.signed.study.member(OTHER).site_id].public_key
    assert OTHER not in made.config.verified
    refused(run(made, "verify", OTHER, "--fingerprint", "0000-0000-0000-0000-0000"), "CSL-144")
    assert OTHER not in made.config.verified
    result = run(made, "verify", OTHER, typed=f" {fingerprint(key).upper()} \n")
    assert result.exit_code == 0, result.output
    assert made.config.verified[OTHER] == fingerprint(key)
    for nobody in ("site-009", SITE):
        refused(run(made, "verify", nobody, "--fingerprint", fingerprint(key)), "CSL-122")


def test_the_fingerprint_is_not_shown_before_it_was_heard(made: Hospital) -> None:
    key = made.signed.sites[made.signed.study.member(OTHER).site_id].public_key
    result = run(made, "verify", OTHER, typed="0000\n")
    assert fingerprint(key) not in result.output


def test_a_disk_that_cannot_be_written_is_said_with_a_code(made: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, _content: bytes) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(shelf, "write_whole", full)
    refused(run(made, "study", "approve", made.signed.study.digest, "--yes"), "CSL-164")
    assert state(made) == "offered"
