"""A hospital's backup holds what it needs and nothing of a patient, and never gives a spent budget back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from client import enrolment
from client.backup import put_back, take
from client.cli import app
from client.egress_log import EgressLog, read
from client.journal import SqliteJournal
from client.ledger import SqliteLedger
from client.ledger.files import default_anchor
from client.ledger.recovery import inspect, recover
from common import archive, errors
from common.errors import ConsiliumError
from common.identity import Identity
from common.keystore import read_identity
from common.parts import Digest
from tests.ledgers import ACCOUNT, PLAN, SITE, STUDY, charge, joined

PASSPHRASE = b"a passphrase"
OTHER = Digest("0b" * 32)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second a passphrase is for guessers, not for tests."""
    monkeypatch.setattr(archive, "_COST", 1 << 4)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A hospital that has joined, with records, a ledger, a log, and what a running study leaves."""
    made = tmp_path / "home"
    enrolment.make_home(
        made, site="site-000", passphrase=PASSPHRASE, source="env:CONSILIUM_PASSPHRASE", data="", backbone=""
    )
    told = made / enrolment.FILE
    text = told.read_text().replace(enrolment._OPERATOR_LATER, f'operator = "{Identity.generate().public_key.hex()}"')
    told.write_text(text.replace(enrolment._SERVER_LATER, 'server = "localhost:9443"'))
    (made / "data" / "records.csv").write_text("text,label,patient\nsecret,yes,1\n")
    (made / "studies" / "one").mkdir()
    (made / "studies" / "one" / "study.json").write_text("{}")
    (made / "state" / "features").mkdir()
    (made / "state" / "features" / "kept").write_bytes(b"features")
    with SqliteLedger(ledger_of(made)) as ledger:
        joined(ledger)
        ledger.charge(charge(1))
    with EgressLog(made / "state" / "egress.jsonl") as log:
        log.control("pull-messages", 10, "localhost:9443")
    SqliteJournal(made / "state" / "1234.journal.sqlite", STUDY.digest, SITE).close()
    return made


def ledger_of(home: Path) -> Path:
    return home / "state" / "ledger.sqlite"


def names(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}


def keep_the_anchor_at(home: Path, anchor: Path) -> None:
    """Move a home's anchor to another disk."""
    default_anchor(ledger_of(home)).rename(anchor)
    told = home / enrolment.FILE
    text = told.read_text().replace("# [ledger]\n", "[ledger]\n")
    told.write_text(text.replace('# anchor = "/elsewhere/ledger.anchor"', f'anchor = "{anchor}"'))


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(ConsiliumError, match=code):
        call()


def test_a_backup_holds_what_a_hospital_needs_and_nothing_else(home: Path, tmp_path: Path) -> None:
    assert take(home, tmp_path / "backup", passphrase=PASSPHRASE) == ()
    put_back(tmp_path / "backup", tmp_path / "new", passphrase=PASSPHRASE)
    assert names(tmp_path / "new") == {
        "site.toml",
        "keys/identity.pem",
        "keys/node.pem",
        "tls/site.key",
        "studies/one/study.json",
        "state/egress.jsonl",
        "state/ledger.sqlite",
    }
    old, new = (read_identity(folder / "keys" / "identity.pem", PASSPHRASE) for folder in (home, tmp_path / "new"))
    assert old.public_key == new.public_key
    assert read(tmp_path / "new" / "state" / "egress.jsonl") == read(home / "state" / "egress.jsonl")


def test_a_backup_inside_the_home_does_not_hold_itself(home: Path, tmp_path: Path) -> None:
    take(home, home / "backup", passphrase=PASSPHRASE)
    put_back(home / "backup", tmp_path / "new", passphrase=PASSPHRASE)
    assert "backup" not in names(tmp_path / "new")
    assert ".backup.new" not in names(tmp_path / "new")


def test_without_its_anchor_a_restored_ledger_trains_only_once_everything_was_charged(
    home: Path, tmp_path: Path
) -> None:
    """What was spent after the backup cannot be known: it may have been all of it (RULES 18)."""
    take(home, tmp_path / "backup", passphrase=PASSPHRASE)
    new = tmp_path / "new"
    assert "the anchor is missing" in put_back(tmp_path / "backup", new, passphrase=PASSPHRASE)
    refused("CSL-212", lambda: SqliteLedger(ledger_of(new)))
    recover(ledger_of(new))
    with SqliteLedger(ledger_of(new)) as ledger:
        (balance,) = ledger.balances()
        assert (balance.epsilon_remaining, balance.delta_remaining) == (0.0, 0.0)
        refused("CSL-204", lambda: ledger.charge(charge(2)))


def test_an_anchor_that_outlived_the_disk_finds_an_older_ledger_and_names_what_it_charges(
    home: Path, tmp_path: Path
) -> None:
    anchor, new = tmp_path / "elsewhere.anchor", tmp_path / "new"
    keep_the_anchor_at(home, anchor)
    take(home, tmp_path / "backup", passphrase=PASSPHRASE)
    with SqliteLedger(ledger_of(home), anchor) as ledger:
        ledger.join(ACCOUNT, OTHER, PLAN)
    assert "the anchor knows entry 5" in put_back(tmp_path / "backup", new, passphrase=PASSPHRASE)
    refused("CSL-212", lambda: SqliteLedger(ledger_of(new), anchor))
    recover(ledger_of(new), anchor)
    with SqliteLedger(ledger_of(new), anchor) as ledger:
        (balance,) = ledger.balances()
        assert {study.study for study in balance.studies if study.exhausted} == {STUDY.digest, OTHER}
        assert balance.epsilon_remaining > 0


def test_where_nothing_was_spent_since_the_backup_an_anchor_that_outlived_it_says_so(
    home: Path, tmp_path: Path
) -> None:
    anchor, new = tmp_path / "elsewhere.anchor", tmp_path / "new"
    keep_the_anchor_at(home, anchor)
    take(home, tmp_path / "backup", passphrase=PASSPHRASE)
    assert put_back(tmp_path / "backup", new, passphrase=PASSPHRASE) == ""
    with SqliteLedger(ledger_of(new), anchor) as ledger:
        ledger.charge(charge(2))


def test_a_ledger_put_back_together_with_its_anchor_is_found_by_what_the_operator_was_shown(
    home: Path, tmp_path: Path
) -> None:
    """Whoever copies the anchor by hand fools this machine, and is found by the head in the site's last reply."""
    take(home, tmp_path / "backup", passphrase=PASSPHRASE)
    kept = default_anchor(ledger_of(home)).read_bytes()
    with SqliteLedger(ledger_of(home)) as ledger:
        ledger.charge(charge(2))
        shown = ledger.head()
    new = tmp_path / "new"
    put_back(tmp_path / "backup", new, passphrase=PASSPHRASE)
    default_anchor(ledger_of(new)).write_bytes(kept)
    assert inspect(ledger_of(new)).reason == ""
    with SqliteLedger(ledger_of(new)) as ledger:
        refused("CSL-212", lambda: ledger.vouch(shown))
        refused("CSL-212", lambda: ledger.vouch(None))
    assert "was signed and is not here" in inspect(ledger_of(new)).reason


def test_a_ledger_that_must_be_recovered_is_not_backed_up(home: Path, tmp_path: Path) -> None:
    default_anchor(ledger_of(home)).unlink()
    refused("CSL-212", lambda: take(home, tmp_path / "backup", passphrase=PASSPHRASE))
    assert not (tmp_path / "backup").exists()


def test_a_backup_is_whole_while_another_thread_charges(home: Path, tmp_path: Path) -> None:
    """Each backup's chain verifies and is no shorter than what had been charged when it was asked for."""
    over = threading.Event()
    with SqliteLedger(ledger_of(home)) as ledger:

        def charging() -> None:
            for number in range(1000):
                if over.is_set():
                    return
                ledger.open_account(f"account-{number}", population="p", unit=PLAN.unit, epsilon=1.0, delta=1e-6)

        writer = threading.Thread(target=charging)
        writer.start()
        try:
            for number in range(2):
                before = ledger.head().number
                take(home, tmp_path / f"backup-{number}", passphrase=PASSPHRASE)
                put_back(tmp_path / f"backup-{number}", tmp_path / f"new-{number}", passphrase=PASSPHRASE)
                found = inspect(ledger_of(tmp_path / f"new-{number}"))
                assert found.fault is errors.LEDGER_BEHIND, found.reason
                assert found.last.number >= before
        finally:
            over.set()
            writer.join()


def test_a_wrong_passphrase_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    refused("CSL-151", lambda: take(home, tmp_path / "backup", passphrase=b"another"))
    assert not (tmp_path / "backup").exists()


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in arguments], env={"CONSILIUM_PASSPHRASE": PASSPHRASE.decode()})


def test_the_commands_say_what_is_to_be_done_next(home: Path, tmp_path: Path) -> None:
    result = run("backup", tmp_path / "backup", "--home", home)
    assert (result.exit_code, result.stdout) == (0, f"written: {tmp_path / 'backup'}\n")
    result = run("restore", tmp_path / "backup", "--home", tmp_path / "new")
    assert result.exit_code == 0
    assert f"consilium-client ledger recover --ledger {ledger_of(tmp_path / 'new')}" in result.stdout
    assert run("ledger", "recover", "--yes", "--ledger", ledger_of(tmp_path / "new")).exit_code == 0
    result = run("restore", tmp_path / "backup", "--home", home)
    assert result.exit_code == 2
    assert result.stderr.startswith("CSL-142 ")


def test_what_lies_outside_the_home_is_named(home: Path, tmp_path: Path) -> None:
    told = home / enrolment.FILE
    (tmp_path / "agreed").mkdir()
    told.write_text(told.read_text().replace('studies = "studies"', f'studies = "{tmp_path / "agreed"}"'))
    assert take(home, tmp_path / "backup", passphrase=PASSPHRASE) == (tmp_path / "agreed",)
