"""Reading a ledger leaves no trace, accuses no healthy one, follows links, and says what is wrong by its code."""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from client.ledger import SqliteLedger
from client.ledger.anchor import read_anchor
from client.ledger.files import default_anchor
from client.ledger.recovery import inspect, recover
from common import errors
from common.errors import Fault
from common.parts import Digest
from common.study import Unit
from tests.client.ledger.test_recovery import copies, put_back
from tests.client.ledger.test_store import UNLOCKED, change
from tests.crashes import FORK, refused
from tests.ledgers import ACCOUNT, PLAN, STUDY, charge, joined, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    return folder / "ledger.sqlite"


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def killed(path: Path) -> None:
    """Write in a process that is killed: what it wrote is in the log, and not in the database."""

    def write() -> None:
        joined(opened(path))
        os.kill(os.getpid(), signal.SIGKILL)

    child = FORK.Process(target=write)
    child.start()
    child.join()
    assert path.with_name(path.name + "-wal").stat().st_size > 0


def closed(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)


def damaged(path: Path) -> None:
    closed(path)
    change(path, *UNLOCKED, "DELETE FROM entry WHERE number = 2")


def moved(path: Path) -> None:
    """A copy of the two files alone, as evidence is kept."""
    folder = path.parent / "original"
    folder.mkdir()
    closed(folder / path.name)
    for file in (path.name, default_anchor(path).name):
        shutil.copy(folder / file, path.parent)
    shutil.rmtree(folder)


@pytest.mark.parametrize("state", [killed, closed, damaged, moved])
def test_inspecting_changes_not_a_byte_and_makes_no_file(path: Path, state: Callable[[Path], None]) -> None:
    """A killed site's log is evidence of what happened last: opening the database itself would take it in."""
    state(path)
    before = contents(path.parent)
    found = inspect(path)
    assert contents(path.parent) == before
    assert bool(found.reason) == (state is damaged)
    assert len(found.links) == (1 if state is damaged else 3)


def test_what_a_recovery_sets_aside_has_the_log_of_the_killed_site(path: Path) -> None:
    killed(path)
    default_anchor(path).unlink()
    before = contents(path.parent)
    recover(path)
    after = contents(path.parent)
    for suffix in ("", "-wal"):
        assert after[f"{path.name}.set-aside-1{suffix}"] == before[path.name + suffix]
    with opened(path) as ledger:
        assert [study.study for study in ledger.balances()[0].studies] == [STUDY.digest]


def test_a_ledger_that_a_running_site_writes_in_is_never_accused(path: Path) -> None:
    """The writer joins and charges without a pause; the files are read between any two of its steps."""
    with opened(path) as ledger:
        ledger.open_account(ACCOUNT, population="p", unit=Unit.RECORD, epsilon=1e6, delta=0.9)
    reader, writer = FORK.Pipe(duplex=False)

    def write() -> None:
        numbers = itertools.count()
        while not reader.poll():
            # Closing brings the log into the database, outside the lock.
            with opened(path) as ledger:
                for number in itertools.islice(numbers, 20):
                    study = Digest(f"{number:064x}")
                    ledger.join(ACCOUNT, study, PLAN)
                    ledger.charge(charge(1, study=study))
        os._exit(0)

    child = FORK.Process(target=write)
    child.start()
    looks, number = 0, 0
    try:
        while looks < 15 or number < 20:
            found = inspect(path)
            assert found.reason == ""
            looks, number = looks + 1, found.last.number
    finally:
        writer.send("enough")
        child.join()
    assert child.exitcode == 0


def test_no_writer_comes_between_while_the_files_are_copied(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed(path)
    plain, tried = shutil.copyfile, []

    def copying(source: Path, target: Path) -> None:
        with path.with_name(path.name + ".lock").open() as lock:
            with pytest.raises(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tried.append(source)
        plain(source, target)

    monkeypatch.setattr(shutil, "copyfile", copying)
    assert inspect(path).reason == ""
    assert tried[-1] == path


def test_a_site_that_closes_the_ledger_while_it_is_copied_takes_no_entry_away(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing brings the log into the database and deletes it, without the lock."""
    ledger = opened(path)
    joined(ledger)
    plain, sizes = shutil.copyfile, []

    def copying(source: Path, target: Path) -> None:
        sizes.append(Path(source).stat().st_size)
        plain(source, target)
        ledger.close_file()

    monkeypatch.setattr(shutil, "copyfile", copying)
    found = inspect(path)
    assert (found.reason, len(found.links)) == ("", 3)
    assert len(sizes) == 2
    assert min(sizes) > 0


def test_an_anchor_behind_a_link_is_written_where_the_link_points(path: Path, tmp_path: Path) -> None:
    """The anchor is on another disk for a reason; a file in place of the link would sit on the database's own."""
    disk = tmp_path / "disk"
    disk.mkdir()
    link = path.with_name("anchor")
    link.symlink_to(disk / "anchor")
    with opened(path, link) as ledger:
        joined(ledger)
        ledger.charge(charge(1))
        head = ledger.head()
    kept = read_anchor(disk / "anchor")
    assert kept is not None
    assert kept.head == head.digest
    change(path, *UNLOCKED, "DELETE FROM entry WHERE number = 4")
    recover(path, link)
    assert link.is_symlink()
    assert inspect(path, disk / "anchor").reason == ""


def test_a_ledger_behind_a_link_has_one_lock_and_one_anchor(path: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.sqlite"
    link.symlink_to(path)
    with opened(link) as first, opened(path) as second:
        joined(first)
        second.charge(charge(1))
        first.charge(charge(2))
        assert first.charges(STUDY.digest) == (charge(1), charge(2))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["books", "link.sqlite"]
    default_anchor(path).unlink()
    recover(link)
    assert link.is_symlink()
    assert inspect(path).reason == ""


def test_a_ledger_that_cannot_be_read_says_so_and_is_not_charged_for_it(path: Path, tmp_path: Path) -> None:
    """A folder in place of a file tells nothing about what was spent."""
    closed(path)
    before = contents(path.parent)
    folder = tmp_path / "folder"
    folder.mkdir()
    for act in (inspect, recover):
        refused(errors.LEDGER_UNWRITABLE, lambda act=act: act(path, folder))  # type: ignore[misc]
        refused(errors.LEDGER_UNWRITABLE, lambda act=act: act(folder, default_anchor(path)))  # type: ignore[misc]
    assert contents(path.parent) == before


def test_a_folder_whose_name_is_no_text_stops_no_recovery(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    folder.mkdir()
    path = folder / "ledger.sqlite"
    closed(path)
    default_anchor(path).write_bytes(b"0" * 64 + b"\n{}")
    assert "the anchor was changed" in recover(path).reason
    with opened(path) as ledger:
        assert ledger.balances()[0].exhausted


def backup(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
    copies(path, path.parent.parent / "backup", anchor=False)
    with opened(path) as ledger:
        ledger.charge(charge(1))
    put_back(path.parent.parent / "backup", path)


def without_anchor(path: Path) -> None:
    closed(path)
    default_anchor(path).unlink()


def without_database(path: Path) -> None:
    closed(path)
    path.unlink()


def with_changed_anchor(path: Path) -> None:
    closed(path)
    default_anchor(path).write_bytes(b"0" * 64 + b"\n{}")


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        (backup, errors.LEDGER_BEHIND),
        (without_anchor, errors.LEDGER_BEHIND),
        (without_database, errors.LEDGER_BEHIND),
        (damaged, errors.LEDGER_DAMAGED),
        (with_changed_anchor, errors.LEDGER_DAMAGED),
    ],
)
def test_reading_says_what_opening_says(path: Path, state: Callable[[Path], None], fault: Fault) -> None:
    state(path)
    assert inspect(path).fault is fault
    refused(fault, lambda: SqliteLedger(path))
