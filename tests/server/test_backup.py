"""An operator's backup is a consistent copy of all that its server needs, taken while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from common import archive
from common.archive import unseal
from common.errors import ConsiliumError
from common.identity import Identity
from server import enrolment
from server.backup import take
from server.cli import app
from server.journal import SqlJournal
from server.witnesses import SqliteWitnesses
from tests.studies import signed_study

PASSPHRASE = b"a passphrase"
SITE = Identity.generate().public_key


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second a passphrase is for guessers, not for tests."""
    monkeypatch.setattr(archive, "_COST", 1 << 4)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made = tmp_path / "home"
    enrolment.make_home(
        made,
        name="consortium",
        server="localhost:9443",
        hosts=("localhost",),
        listen="127.0.0.1:9443",
        health=None,
        passphrase=PASSPHRASE,
        source="env:CONSILIUM_PASSPHRASE",
        backbone="",
        deadline=60.0,
    )
    (made / "state" / "releases" / ".making-x").mkdir(parents=True)
    (made / "state" / "releases" / "1234").mkdir()
    (made / "state" / "releases" / "1234" / "result.json").write_text("{}")
    (made / "studies" / ".stopped").mkdir()
    (made / "studies" / ".stopped" / "1234").touch()
    (made / "state" / "audit.jsonl").write_text("{}\n")
    return made


def journal_of(home: Path) -> str:
    return f"sqlite:///{home / 'state' / 'journal.sqlite'}"


def test_a_backup_of_a_server_that_runs_opens_with_all_that_was_written(home: Path, tmp_path: Path) -> None:
    made, new = signed_study(), tmp_path / "new"
    with SqlJournal(journal_of(home)) as journal, SqliteWitnesses(home / "state" / "witnesses.sqlite") as witnesses:
        journal.enqueue(made.signed, made.approvals)
        witnesses.keep({SITE: b"sealed"})
        assert take(home, tmp_path / "backup", passphrase=PASSPHRASE) == ()
        witnesses.keep({SITE: b"later"})
    unseal(tmp_path / "backup", "server", PASSPHRASE, new)
    found = {str(path.relative_to(new)) for path in new.rglob("*") if path.is_file()}
    assert found == {
        "server.toml",
        "consortium.json",
        "keys/identity.pem",
        "keys/authority.pem",
        "tls/ca.pem",
        "tls/server.pem",
        "tls/server.key",
        "studies/.stopped/1234",
        "state/audit.jsonl",
        "state/journal.sqlite",
        "state/witnesses.sqlite",
        "state/releases/1234/result.json",
    }
    assert not (new / "state" / "releases" / ".making-x").exists()
    with SqlJournal(journal_of(new)) as journal, SqliteWitnesses(new / "state" / "witnesses.sqlite") as witnesses:
        assert [queued.digest for queued in journal.queue()] == [made.study.digest]
        assert witnesses.of(SITE) == b"sealed"


def test_a_journal_elsewhere_is_named_as_missing_without_its_address(home: Path, tmp_path: Path) -> None:
    told = home / enrolment.FILE
    told.write_text(told.read_text().replace("# journal = ", "journal = ").replace("consilium@", "consilium:secret@"))
    (missing,) = take(home, tmp_path / "backup", passphrase=PASSPHRASE)
    assert "journal" in missing
    assert "secret" not in missing


def test_a_wrong_passphrase_is_refused_before_anything_is_written(home: Path, tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="CSL-151"):
        take(home, tmp_path / "backup", passphrase=b"another")
    assert not (tmp_path / "backup").exists()


def test_the_commands_back_up_and_restore(home: Path, tmp_path: Path) -> None:
    secret = {"CONSILIUM_PASSPHRASE": PASSPHRASE.decode()}
    for command, folder in (("backup", home), ("restore", tmp_path / "new")):
        words = [command, str(tmp_path / "backup"), "--home", str(folder)]
        assert CliRunner().invoke(app, words, env=secret).exit_code == 0
    words = ["sites", "--home", str(tmp_path / "new")]
    assert CliRunner().invoke(app, words).exit_code == 0
    words = ["restore", str(tmp_path / "backup"), "--home", str(home)]
    assert CliRunner().invoke(app, words, env=secret).exit_code == 2
