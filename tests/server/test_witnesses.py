"""What the operator keeps of the sites' ledgers: the last thing each showed is there after a kill, or it is said."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from common import errors
from common.errors import ConsiliumError, Fault
from common.identity import PublicKey
from server.witnesses import MemoryWitnesses, SqliteWitnesses, Witnesses
from tests.crashes import before_each_statement, die_at, full_disk, in_a_process, refused, said_until_killed

NORTH, SOUTH = PublicKey(b"n" * 32), PublicKey(b"s" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "operator.sqlite"


def head(number: int) -> bytes:
    return random.Random(number).randbytes(72)


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_each_site_has_what_it_showed_last_and_no_other(kind: str, path: Path) -> None:
    kept: Witnesses = MemoryWitnesses() if kind == "memory" else SqliteWitnesses(path)
    assert kept.of(NORTH) is None
    kept.keep({NORTH: head(1), SOUTH: head(2)})
    kept.keep({NORTH: head(3)})
    assert (kept.of(NORTH), kept.of(SOUTH)) == (head(3), head(2))


def test_it_is_there_after_a_start_and_for_another_process_that_has_the_file_open(path: Path) -> None:
    with SqliteWitnesses(path) as first, SqliteWitnesses(path) as second:
        first.keep({NORTH: head(1)})
        assert second.of(NORTH) == head(1)
        second.keep({NORTH: head(2)})
        assert first.of(NORTH) == head(2)
    with SqliteWitnesses(path) as later:
        assert later.of(NORTH) == head(2)


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    with SqliteWitnesses(path) as kept:
        kept.keep({NORTH: head(1)})
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {0o600}


def test_a_writer_that_never_ends_is_said(path: Path) -> None:
    with SqliteWitnesses(path, wait_seconds=0.0) as kept:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        refused(errors.OPERATOR_LOCKED, lambda: kept.keep({NORTH: head(1)}))
        other.close()
        kept.keep({NORTH: head(1)})
        assert kept.of(NORTH) == head(1)


@pytest.mark.parametrize(
    "change",
    ["UPDATE witness SET sealed = zeroblob(72)", "UPDATE witness SET key = zeroblob(32)", "DROP TABLE witness"],
)
def test_a_row_that_was_changed_is_found(path: Path, change: str) -> None:
    with SqliteWitnesses(path) as kept:
        kept.keep({NORTH: head(1)})
        connection = sqlite3.connect(path)
        with connection:
            connection.execute(change)
        connection.close()
        if "key" not in change:
            refused(errors.OPERATOR_DAMAGED, lambda: kept.of(NORTH))
    refused(errors.OPERATOR_DAMAGED, lambda: SqliteWitnesses(path))


def test_a_flipped_byte_is_found_or_changes_nothing(path: Path) -> None:
    kept = {PublicKey(bytes([site]) * 32): head(site) for site in range(1, 40)}
    with SqliteWitnesses(path) as made:
        made.keep(kept)
    whole, dice = path.read_bytes(), random.Random(3)
    inside = [whole.index(one) + dice.randrange(len(one)) for one in kept.values()]
    faults = dict[int, Fault]()
    for place in [*inside, *dice.sample(range(len(whole)), 200)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            with SqliteWitnesses(path) as found:
                assert {site: found.of(site) for site in kept} == kept
        except ConsiliumError as error:
            faults[place] = error.fault
    assert {faults.get(place) for place in inside} == {errors.OPERATOR_DAMAGED}
    assert errors.OPERATOR_LOCKED not in faults.values()


def test_another_schema_is_refused(path: Path) -> None:
    SqliteWitnesses(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    refused(errors.OPERATOR_FOREIGN, lambda: SqliteWitnesses(path))


def test_a_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    refused(errors.OPERATOR_UNWRITABLE, lambda: SqliteWitnesses(tmp_path / "absent" / "operator.sqlite"))


def test_a_full_disk_is_said_and_loses_nothing(path: Path) -> None:
    def fill() -> None:
        with SqliteWitnesses(path) as kept:
            kept.keep({NORTH: head(1)})
            with full_disk(64 << 10):
                refused(errors.OPERATOR_UNWRITABLE, lambda: kept.keep({NORTH: head(2), SOUTH: bytes(1 << 20)}))
                assert (kept.of(NORTH), kept.of(SOUTH)) == (head(1), None)
            kept.keep({SOUTH: head(3)})

    in_a_process(fill)
    with SqliteWitnesses(path) as kept:
        assert (kept.of(NORTH), kept.of(SOUTH)) == (head(1), head(3))


def work(path: Path, first: int, say: Callable[[int], None], statements: int) -> None:
    """Keep one head after the other for two sites at once and say so, until the process kills itself."""
    before_each_statement(die_at(statements))
    kept = SqliteWitnesses(path)
    for number in range(first, 1 << 30):
        kept.keep({NORTH: head(number), SOUTH: head(number)})
        say(number)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_anywhere_leaves_the_last_heads_that_were_said_or_the_next_for_all_sites(path: Path, seed: int) -> None:
    dice, number = random.Random(seed), 0
    for start in range(10):
        within = start % 3 == 0
        statements = 0 if within else dice.randrange(1, 60)
        words = said_until_killed(
            partial(work, path, number + 1, statements=statements), dice.randrange(1, 20) if within else None
        )
        said = words[-1] if words else number
        with SqliteWitnesses(path) as kept:
            found = kept.of(NORTH)
            assert kept.of(SOUTH) == found
        assert found in (head(said) if said else None, head(said + 1))
        number = said + (found == head(said + 1))
