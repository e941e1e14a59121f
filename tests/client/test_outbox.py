"""Replies kept for requests that come again: the very same bytes, after a restart and after a kill."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from client.outbox import KEPT, MemoryOutbox, Outbox, SqliteOutbox
from common import errors
from common.identity import Signature, SiteId
from common.messages import Sealed
from common.parts import Digest
from tests.crashes import full_disk, in_a_process, refused, said_until_killed

STUDY, OTHER = Digest("5a" * 32), Digest("5b" * 32)
NORTH, SOUTH = SiteId("north"), SiteId("south")


def name_of(number: int) -> bytes:
    return random.Random(number).randbytes(32)


def reply(number: int, size: int = 100) -> Sealed:
    dice = random.Random(-number - 1)
    # Not in the order of their names: the parts leave in the order in which they were put.
    parts = {"secagg": dice.randbytes(size), "ledger": dice.randbytes(number % 3)}
    return Sealed(dice.randbytes(80), Signature(dice.randbytes(64)), parts)


def opened(path: Path) -> SqliteOutbox:
    return SqliteOutbox(path, STUDY, NORTH)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "outbox.sqlite"


@pytest.fixture(params=["memory", "file"])
def outbox(request: pytest.FixtureRequest, path: Path) -> Iterator[Outbox]:
    if request.param == "memory":
        yield MemoryOutbox()
    else:
        with opened(path) as made:
            yield made


def test_a_request_seen_before_gets_the_very_same_reply_and_another_gets_none(outbox: Outbox) -> None:
    for number in range(3):
        outbox.put(name_of(number), reply(number))
    for number in range(3):
        found = outbox.find(name_of(number))
        assert found == reply(number)
        assert list(found.parts.items()) == list(reply(number).parts.items())
    assert outbox.find(name_of(3)) is None


def test_a_reply_without_parts_is_kept(outbox: Outbox) -> None:
    bare = Sealed(b"h", Signature(b"s"), {})
    outbox.put(name_of(0), bare)
    assert outbox.find(name_of(0)) == bare


def test_the_last_replies_are_kept_and_the_one_put_first_goes_first(outbox: Outbox) -> None:
    for number in range(KEPT + 3):
        outbox.put(name_of(number), reply(number))
        outbox.find(name_of(0))
    found = [outbox.find(name_of(number)) for number in range(KEPT + 3)]
    assert found == [None] * 3 + [reply(number) for number in range(3, KEPT + 3)]


def test_one_request_has_one_reply(outbox: Outbox) -> None:
    outbox.put(name_of(0), reply(0))
    outbox.put(name_of(0), reply(0))
    refused(errors.SECAGG_REPLAY, lambda: outbox.put(name_of(0), reply(1)))
    assert outbox.find(name_of(0)) == reply(0)


def test_replies_are_there_after_a_start(path: Path) -> None:
    with opened(path) as outbox:
        for number in range(KEPT + 5):
            outbox.put(name_of(number), reply(number, size=1 << 20))
    with opened(path) as outbox:
        assert outbox.find(name_of(4)) is None
        for number in range(5, KEPT + 5):
            assert outbox.find(name_of(number)) == reply(number, size=1 << 20)
        outbox.put(name_of(99), reply(99))
        assert outbox.find(name_of(5)) is None


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    with opened(path) as outbox:
        outbox.put(name_of(0), reply(0))
        assert {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {0o600}


def test_a_second_opener_is_refused(path: Path) -> None:
    with opened(path):
        refused(errors.JOURNAL_LOCKED, lambda: opened(path))
    opened(path).close()


@pytest.mark.parametrize(("study", "site"), [(OTHER, NORTH), (STUDY, SOUTH)])
def test_the_outbox_of_another_study_or_site_is_refused(path: Path, study: Digest, site: SiteId) -> None:
    opened(path).close()
    refused(errors.JOURNAL_FOREIGN, lambda: SqliteOutbox(path, study, site))


def test_another_schema_is_refused(path: Path) -> None:
    opened(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 2")
    refused(errors.JOURNAL_FOREIGN, lambda: opened(path))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE reply SET header = x'00' WHERE number = 2",
        "UPDATE reply SET signature = x'00' WHERE number = 2",
        "UPDATE reply SET name = x'00' WHERE number = 2",
        "UPDATE reply SET number = 4 WHERE number = 3",
        "UPDATE part SET content = x'00' WHERE reply = 2 AND place = 0",
        "UPDATE part SET name = 'other' WHERE reply = 2 AND place = 0",
        "UPDATE part SET place = 2 WHERE place = 0",
        "INSERT INTO part VALUES (2, 2, 'more', x'00')",
        "INSERT INTO part VALUES (9, 0, 'more', x'00')",
        "DELETE FROM part WHERE reply = 2 AND place = 1",
        "DELETE FROM part WHERE reply = 3; DELETE FROM reply WHERE number = 3",
        "DELETE FROM part; DELETE FROM reply",
        "UPDATE head SET last = 2",
        "DELETE FROM head",
        "DROP TABLE part",
    ],
)
def test_a_row_that_was_changed_is_found(path: Path, change: str) -> None:
    with opened(path) as outbox:
        for number in range(3):
            outbox.put(name_of(number), reply(number))
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(change)
    refused(errors.JOURNAL_DAMAGED, lambda: opened(path))


def test_a_full_disk_is_said_and_loses_nothing(path: Path) -> None:
    def fill() -> None:
        outbox = opened(path)
        outbox.put(name_of(0), reply(0))
        with full_disk(64 << 10):
            refused(errors.JOURNAL_UNWRITABLE, lambda: outbox.put(name_of(1), reply(1, size=4 << 20)))
            assert outbox.find(name_of(1)) is None
        outbox.put(name_of(2), reply(2))

    in_a_process(fill)
    with opened(path) as outbox:
        assert [outbox.find(name_of(number)) for number in range(3)] == [reply(0), None, reply(2)]


def test_a_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    refused(errors.JOURNAL_UNWRITABLE, lambda: opened(tmp_path / "absent" / "outbox.sqlite"))


def work(path: Path, first: int, say: Callable[[int], None]) -> None:
    """Put one reply after the other, and say so after each."""
    outbox = opened(path)
    for number in range(first, 1 << 30):
        outbox.put(name_of(number), reply(number, size=20_000))
        say(number)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_between_puts_or_within_one_loses_no_reply_that_could_have_been_sent(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    first = 0
    for _ in range(6):
        said = said_until_killed(partial(work, path, first), dice.randrange(1, 2 * KEPT))
        last = said[-1]
        with opened(path) as outbox:
            # The one that was being put is there as a whole, or not at all.
            unsaid = outbox.find(name_of(last + 1))
            assert unsaid in (None, reply(last + 1, size=20_000))
            first = last + 1 + (unsaid is not None)
            for number in range(max(0, first - KEPT), last + 1):
                assert outbox.find(name_of(number)) == reply(number, size=20_000)
