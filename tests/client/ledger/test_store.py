"""A ledger on disk never under-counts: tampering, truncation, old backups, two processes, full disks and kills."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from client.ledger import SqliteLedger
from client.ledger.anchor import Anchor, read_anchor
from client.ledger.files import default_anchor
from client.ledger.recovery import inspect, recover
from common import errors
from common.errors import ConsiliumError
from common.parts import Digest
from common.study import Unit
from tests.crashes import (
    FORK,
    before_each_call,
    before_each_statement,
    die_at,
    full_disk,
    in_a_process,
    refused,
    said_until_killed,
)
from tests.ledgers import ACCOUNT, PLAN, STUDY, charge, joined, opened


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def kept(path: Path) -> Path:
    """A ledger with an account, a study and three charges, closed."""
    with opened(path) as ledger:
        joined(ledger)
        for instance in (1, 2, 3):
            ledger.charge(charge(instance))
    return path


def change(path: Path, *statements: str) -> None:
    """Change the file as somebody would who has it and knows SQL."""
    connection = sqlite3.connect(path)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


UNLOCKED = ("DROP TRIGGER entry_no_update", "DROP TRIGGER entry_no_delete")


def test_what_was_charged_is_there_after_a_start(kept: Path) -> None:
    with opened(kept) as ledger:
        assert ledger.charges(STUDY.digest) == tuple(charge(instance) for instance in (1, 2, 3))
        assert ledger.balances()[0].epsilon_committed == PLAN.epsilon()
        assert ledger.head().number == 6
        ledger.charge(charge(2))
        assert ledger.head().number == 6


def test_only_the_owner_may_read_it(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    with opened(path) as ledger:
        joined(ledger)
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {0o600}


def test_every_commit_is_synced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(path) as ledger:
        with ledger._engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        joined(ledger)
        synced: list[str] = []
        plain = os.fsync

        def counting(handle: int) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{handle}"))
            plain(handle)

        monkeypatch.setattr(os, "fsync", counting)
        ledger.charge(charge(1))
    assert synced == [f"{default_anchor(path)}.new", str(path.parent)]


def test_the_file_itself_is_append_only(kept: Path) -> None:
    for statement in ("UPDATE entry SET body = x'00' WHERE number = 5", "DELETE FROM entry WHERE number = 6"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            change(kept, statement)
    opened(kept).close_file()


@pytest.mark.parametrize(
    "statements",
    [
        ("UPDATE entry SET body = (SELECT body FROM entry WHERE number = 4) WHERE number = 5",),
        ("UPDATE entry SET body = 'text' WHERE number = 5",),
        ("UPDATE entry SET digest = '00' WHERE number = 6",),
        ("DELETE FROM entry WHERE number = 6",),
        ("DELETE FROM entry WHERE number = 4",),
        ("DELETE FROM entry WHERE number = 1",),
        ("DELETE FROM entry",),
        ("UPDATE entry SET number = 50 WHERE number = 6",),
        ("UPDATE entry SET number = 1 << 60 WHERE number = 6",),
        ("INSERT INTO entry VALUES (7, '00', x'7b7d')",),
        ("DROP TABLE entry",),
    ],
)
def test_a_row_that_was_changed_taken_away_or_put_in_is_found(kept: Path, statements: tuple[str, ...]) -> None:
    change(kept, *UNLOCKED, *statements)
    with pytest.raises(ConsiliumError) as caught:
        opened(kept)
    assert caught.value.fault in (errors.LEDGER_DAMAGED, errors.LEDGER_BEHIND)
    assert inspect(kept).reason


def test_a_chain_forged_to_hold_less_verifies_by_itself_and_not_against_the_anchor(kept: Path, tmp_path: Path) -> None:
    """Who can write the file can write a sound chain; the anchor, or the operator's witness, tells."""
    anchor = read_anchor(default_anchor(kept))
    assert anchor is not None
    forged = tmp_path / "forged.sqlite"
    forged.touch()
    Anchor(ledger=anchor.ledger).write(default_anchor(forged))
    with opened(forged) as ledger:
        assert ledger.name == anchor.ledger
        joined(ledger)
    shutil.copy(forged, kept)
    refused(errors.LEDGER_BEHIND, lambda: opened(kept))


def test_an_anchor_serves_no_other_ledger_and_no_recovery_writes_over_it(kept: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.sqlite"
    with opened(other) as ledger:
        joined(ledger)
    before = default_anchor(kept).read_bytes()
    for act in (opened, inspect, recover):
        refused(errors.LEDGER_ANCHOR, lambda act=act: act(other, default_anchor(kept)))  # type: ignore[misc]
    assert default_anchor(kept).read_bytes() == before


def test_a_kill_between_the_first_anchor_and_the_first_entry_is_gone_on_from(path: Path) -> None:
    path.touch()
    Anchor(ledger="5a" * 32).write(default_anchor(path))
    with opened(path) as ledger:
        joined(ledger)
        assert ledger.name == "5a" * 32
    with opened(path) as ledger:
        assert ledger.name == "5a" * 32
    assert inspect(path).reason == ""


def test_a_flipped_byte_is_found_or_changes_nothing(kept: Path) -> None:
    change(kept)
    whole, dice = kept.read_bytes(), random.Random(5)
    expected = tuple(charge(instance) for instance in (1, 2, 3))
    body = whole.index(b'"instance":2')
    faults: dict[int, str] = {}
    for place in [body + 11, *dice.sample(range(len(whole)), 200)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        for suffix in ("-wal", "-shm"):
            kept.with_name(kept.name + suffix).unlink(missing_ok=True)
        kept.write_bytes(changed)
        try:
            with opened(kept) as ledger:
                assert ledger.charges(STUDY.digest) == expected
                assert ledger.balances()[0].epsilon_committed == PLAN.epsilon()
        except ConsiliumError as error:
            faults[place] = error.code
    assert faults[body + 11] == "CSL-211"
    assert set(faults.values()) <= {"CSL-211", "CSL-212", "CSL-214", "CSL-216"}


@pytest.mark.parametrize("left", [0.0, 0.0001, 0.01, 0.2, 0.5, 0.9])
def test_a_truncated_file_is_found(kept: Path, left: float) -> None:
    change(kept)
    size = kept.stat().st_size
    os.truncate(kept, int(left * size))
    with pytest.raises(ConsiliumError) as caught:
        opened(kept)
    assert caught.value.fault in (errors.LEDGER_DAMAGED, errors.LEDGER_BEHIND)


def test_an_old_backup_is_found(path: Path, tmp_path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
        ledger.charge(charge(1))
    backup = tmp_path / "backup.sqlite"
    change(path)
    shutil.copy(path, backup)
    with opened(path) as ledger:
        ledger.charge(charge(2))
    change(path)
    shutil.copy(backup, path)
    refused(errors.LEDGER_BEHIND, lambda: opened(path))


def test_an_old_backup_put_back_under_a_running_process_is_found(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
        ledger.charge(charge(1))
        change(path, *UNLOCKED, "DELETE FROM entry WHERE number = 4")
        refused(errors.LEDGER_DAMAGED, lambda: ledger.charge(charge(2)))


@pytest.mark.parametrize("gone", ["ledger", "anchor"])
def test_a_ledger_without_its_anchor_or_an_anchor_without_its_ledger_is_refused(kept: Path, gone: str) -> None:
    (kept if gone == "ledger" else default_anchor(kept)).unlink()
    refused(errors.LEDGER_BEHIND, lambda: opened(kept))
    assert not (gone == "ledger" and kept.exists())


def test_an_anchor_that_was_changed_is_refused(kept: Path) -> None:
    anchor = default_anchor(kept)
    anchor.write_bytes(anchor.read_bytes().replace(b'"number":6', b'"number":5'))
    refused(errors.LEDGER_DAMAGED, lambda: opened(kept))


def test_an_anchor_that_a_crash_left_behind_is_moved_on(kept: Path) -> None:
    anchor = default_anchor(kept)
    before = anchor.read_bytes()
    with opened(kept) as ledger:
        ledger.charge(charge(4))
    anchor.write_bytes(before)
    with opened(kept) as ledger:
        assert len(ledger.charges(STUDY.digest)) == 4
    moved = read_anchor(anchor)
    assert moved is not None
    assert moved.number == 7


def test_a_schema_that_is_not_known_here_is_refused(kept: Path) -> None:
    change(kept, "UPDATE alembic_version SET version_num = '9999'")
    refused(errors.LEDGER_FOREIGN, lambda: opened(kept))


def test_a_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    refused(errors.LEDGER_UNWRITABLE, lambda: opened(tmp_path / "absent" / "ledger.sqlite"))


def test_two_processes_at_once_charge_no_less_than_one_after_the_other(path: Path) -> None:
    """Each of four writers asks for distinct charges until it is refused; exactly the study's maximum is granted."""
    with opened(path) as ledger:
        joined(ledger)

    def write(writer: int, said: Connection) -> None:
        granted = 0
        with opened(path) as mine:
            for instance in range(20):
                try:
                    mine.charge(charge(100 * writer + instance))
                    granted += 1
                except ConsiliumError as error:
                    if error.fault is not errors.LEDGER_SPENT:
                        said.send(error.code)
                        return
        said.send(granted)

    readers, children = [], []
    for writer in range(1, 5):
        reader, end = FORK.Pipe(duplex=False)
        child = FORK.Process(target=write, args=(writer, end))
        child.start()
        readers.append(reader)
        children.append(child)
    granted = [reader.recv() for reader in readers]
    for child in children:
        child.join()
    assert sum(granted) == PLAN.max_charges
    with opened(path) as ledger:
        assert len(ledger.charges(STUDY.digest)) == PLAN.max_charges
    assert inspect(path).reason == ""


def test_two_objects_in_one_process_see_each_others_charges(path: Path) -> None:
    with opened(path) as first, opened(path) as second:
        joined(first)
        second.charge(charge(1))
        first.charge(charge(2))
        second.charge(charge(3))
        first.charge(charge(1))
        assert first.head() == second.head() or second.charges(STUDY.digest) == first.charges(STUDY.digest)
        assert len(first.charges(STUDY.digest)) == 3


def test_a_full_disk_is_said_and_loses_nothing(path: Path) -> None:
    def fill() -> None:
        ledger = opened(path)
        joined(ledger)
        ledger.charge(charge(1))
        with full_disk(1):
            refused(errors.LEDGER_UNWRITABLE, lambda: ledger.charge(charge(2)))
            refused(errors.LEDGER_UNWRITABLE, lambda: ledger.charge(charge(2)))
        ledger.charge(charge(3))

    in_a_process(fill)
    with opened(path) as ledger:
        made = ledger.charges(STUDY.digest)
    assert {charge(1), charge(3)} <= set(made) <= {charge(1), charge(2), charge(3)}


def test_nothing_is_granted_while_the_anchor_cannot_be_written(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The charge may stand already; granting it again, as the same key, must write the anchor first."""
    plain = Anchor.write

    def full(self: Anchor, path: Path) -> None:
        raise ConsiliumError(errors.LEDGER_UNWRITABLE, "no space")

    with opened(kept) as ledger:
        monkeypatch.setattr(Anchor, "write", full)
        for _ in range(2):
            refused(errors.LEDGER_UNWRITABLE, lambda: ledger.charge(charge(4)))
        monkeypatch.setattr(Anchor, "write", plain)
        ledger.charge(charge(4))
        moved = read_anchor(default_anchor(kept))
        assert moved is not None
        assert moved.head == ledger.head().digest


def work(path: Path, say: Callable[[tuple[str, int]], None], steps: int) -> None:
    """Charge and say so after each call, until the process kills itself before some statement or file operation."""
    count = die_at(steps)
    before_each_statement(count)
    before_each_call(count, (os, "open"), (os, "fsync"), (os, "replace"), (os, "close"))
    ledger = opened(path)
    if not ledger.balances():
        ledger.open_account(ACCOUNT, population="p", unit=Unit.RECORD, epsilon=1e4, delta=0.5)
    say(("opened", 0))
    for number in range(ledger.head().number, 1 << 30):
        study = Digest(f"{number // PLAN.max_charges:064x}")
        ledger.join(ACCOUNT, study, PLAN)
        say(("joined", number // PLAN.max_charges))
        ledger.charge(charge(number, study=study))
        say(("charged", number))


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_between_any_two_statements_or_within_one_never_undercounts(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    charged, committed = set[int](), set[int]()
    for start in range(12):
        within = start % 3 == 0
        steps = 0 if within else dice.randrange(1, 120)
        said = said_until_killed(partial(work, path, steps=steps), dice.randrange(1, 20) if within else None)
        charged |= {number for word, number in said if word == "charged"}
        committed |= {number for word, number in said if word == "joined"}
        if not path.exists():
            continue
        with opened(path) as ledger:
            studies = [study for balance in ledger.balances() for study in balance.studies]
            made = {key.instance for study in studies for key in ledger.charges(study.study)}
            assert charged <= made
            assert len(made - charged) <= start + 1
            assert {f"{number:064x}" for number in committed} <= {study.study for study in studies}
        assert inspect(path).reason == ""


def test_a_kill_in_the_middle_of_a_recovery_leaves_it_to_be_done_or_done_in_full(kept: Path, tmp_path: Path) -> None:
    change(kept, *UNLOCKED, "UPDATE entry SET digest = '00' WHERE number = 6")
    survived = 0
    for steps in range(1, 400):
        folder = tmp_path / f"try-{steps}"
        folder.mkdir()
        for name in (kept.name, default_anchor(kept).name):
            shutil.copy(kept.with_name(name), folder / name)
        place = folder / kept.name

        def interrupted(place: Path = place, steps: int = steps) -> None:
            before_each_call(
                die_at(steps), (os, "open"), (os, "fsync"), (os, "replace"), (os, "unlink"), (shutil, "copy2")
            )
            recover(place)
            os._exit(0)

        child = FORK.Process(target=interrupted)
        child.start()
        child.join()
        if inspect(place).reason:
            recover(place)
        with SqliteLedger(place) as ledger:
            (study,) = ledger.balances()[0].studies
            assert study.exhausted
            refused(errors.LEDGER_SPENT, lambda ledger=ledger: ledger.charge(charge(4)))  # type: ignore[misc]
        if child.exitcode == 0:
            survived = steps
            break
    assert survived > 5
