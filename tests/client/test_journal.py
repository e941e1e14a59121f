"""A site's journal on disk: what it said it kept is there after a kill, and nothing else is believed."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from client.journal import SqliteJournal
from common import errors
from common.errors import ConsiliumError, Fault
from common.identity import SiteId
from common.parts import Digest
from common.secagg import Phase
from common.secagg.journal import Entry, Journal
from common.secagg.site import SiteSession
from tests.crashes import (
    before_each_statement,
    die_at,
    from_elsewhere,
    full_disk,
    in_a_process,
    refused,
    said_until_killed,
)
from tests.protocols import numbered, parties, relay, set_up, take_sum, total

STUDY, OTHER = Digest("5a" * 32), Digest("5b" * 32)
NORTH, SOUTH = SiteId("north"), SiteId("south")


def entry(number: int, size: int = 100) -> Entry:
    dice = random.Random(number)
    return Entry(dice.randbytes(32), "mask", number, dice.randbytes(32) if number % 2 else b"", dice.randbytes(size))


def opened(path: Path) -> SqliteJournal:
    return SqliteJournal(path, STUDY, NORTH)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_what_was_kept_is_there_after_a_start(path: Path) -> None:
    kept = [entry(1), entry(2), entry(3, size=4 << 20)]
    with opened(path) as journal:
        as_protocol: Journal = journal
        as_protocol.opened(7)
        for one in kept:
            as_protocol.write(one)
    with opened(path) as journal:
        assert journal.floor() == 7
        assert dict(journal.replies()) == {one.name: one.reply for one in kept}
        assert [journal.read(one.name) for one in kept] == kept
        assert entry(4).name not in journal.replies()


def test_a_new_epoch_drops_the_replies_and_keeps_the_floor(path: Path) -> None:
    with opened(path) as journal:
        journal.opened(3)
        journal.write(entry(1))
        journal.new_epoch()
    with opened(path) as journal:
        assert (journal.floor(), len(journal.replies())) == (3, 0)


@pytest.mark.parametrize("instance", [0, 4, 5])
def test_the_floor_only_rises(path: Path, instance: int) -> None:
    with opened(path) as journal:
        journal.opened(5)
        refused(errors.SECAGG_REPLAY, lambda: journal.opened(instance))
        assert journal.floor() == 5


def test_one_request_has_one_reply(path: Path) -> None:
    first = entry(1)
    with opened(path) as journal:
        journal.write(first)
        journal.write(first)
        refused(
            errors.SECAGG_REPLAY,
            lambda: journal.write(Entry(first.name, first.step, first.instance, first.view, b"another")),
        )
        assert journal.replies()[first.name] == first.reply


def test_only_the_owner_may_read_the_file(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    with opened(path) as journal:
        journal.write(entry(1))
        modes = {stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
    assert modes == {0o600}


def test_a_second_opener_is_refused_at_once_and_does_not_loosen_the_first_ones_lock(path: Path) -> None:
    def elsewhere() -> str:
        return from_elsewhere(lambda: opened(path).close())

    with opened(path) as journal:
        assert elsewhere() == errors.JOURNAL_LOCKED.code
        refused(errors.JOURNAL_LOCKED, lambda: opened(path))
        assert elsewhere() == errors.JOURNAL_LOCKED.code
        journal.write(entry(1))
    assert elsewhere() == "opened"


@pytest.mark.parametrize(("study", "site"), [(OTHER, NORTH), (STUDY, SOUTH)])
def test_the_journal_of_another_study_or_site_is_refused(path: Path, study: Digest, site: SiteId) -> None:
    opened(path).close()
    refused(errors.JOURNAL_FOREIGN, lambda: SqliteJournal(path, study, site))


def test_another_schema_is_refused(path: Path) -> None:
    opened(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    refused(errors.JOURNAL_FOREIGN, lambda: opened(path))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE entry SET reply = zeroblob(100)",
        "UPDATE entry SET view = x''",
        "UPDATE entry SET instance = 2",
        "UPDATE entry SET step = 'view'",
        "DELETE FROM entry",
        "UPDATE head SET floor = 1",
        "UPDATE head SET entries = 0",
        "DELETE FROM head",
        "DROP TABLE entry",
    ],
)
def test_a_row_that_was_changed_is_found(path: Path, change: str) -> None:
    with opened(path) as journal:
        journal.opened(9)
        journal.write(entry(1))
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(change)
    connection.close()
    refused(errors.JOURNAL_DAMAGED, lambda: opened(path))


def test_a_flipped_byte_is_found_or_changes_nothing(path: Path) -> None:
    kept = [entry(number, size=600) for number in (1, 2, 3)]
    with opened(path) as journal:
        journal.opened(9)
        for one in kept:
            journal.write(one)
    whole, dice = path.read_bytes(), random.Random(3)
    inside = [whole.index(one.reply) + dice.randrange(600) for one in kept]
    faults = dict[int, Fault]()
    for place in [*inside, *dice.sample(range(len(whole)), 300)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            with opened(path) as journal:
                assert journal.floor() == 9
                assert [journal.read(one.name) for one in kept] == kept
                assert len(journal.replies()) == 3
        except ConsiliumError as error:
            faults[place] = error.fault
    assert {faults.get(place) for place in inside} == {errors.JOURNAL_DAMAGED}
    assert errors.JOURNAL_LOCKED not in faults.values()


def test_a_full_disk_is_said_and_loses_nothing(path: Path) -> None:
    def fill() -> None:
        journal = opened(path)
        journal.opened(4)
        journal.write(entry(1))
        with full_disk(64 << 10):
            refused(errors.JOURNAL_UNWRITABLE, lambda: journal.write(entry(2, size=4 << 20)))
            assert dict(journal.replies()) == {entry(1).name: entry(1).reply}
        journal.write(entry(3))

    in_a_process(fill)
    with opened(path) as journal:
        assert journal.floor() == 4
        assert dict(journal.replies()) == {one.name: one.reply for one in (entry(1), entry(3))}


def test_a_file_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    refused(errors.JOURNAL_UNWRITABLE, lambda: opened(tmp_path / "absent" / "journal.sqlite"))


def work(path: Path, say: Callable[[tuple[str, int]], None], statements: int) -> None:
    """Keep entries and say so after each call, until the process kills itself before some statement."""
    before_each_statement(die_at(statements))
    journal = opened(path)
    for number in range(journal.floor() + 1, 1 << 30):
        journal.opened(number)
        say(("opened", number))
        for part in range(2):
            journal.write(entry(2 * number + part, size=20_000))
            say(("written", 2 * number + part))
        if number % 4 == 0:
            say(("renewing", number))
            journal.new_epoch()
            say(("renewed", number))


@pytest.mark.parametrize("seed", range(5))
def test_a_kill_between_any_two_statements_or_within_one_loses_nothing_that_was_said(path: Path, seed: int) -> None:
    dice = random.Random(seed)
    floor, kept = 0, dict[bytes, bytes]()
    for start in range(12):
        within = start % 3 == 0
        statements = 0 if within else dice.randrange(1, 90)
        said = said_until_killed(partial(work, path, statements=statements), dice.randrange(1, 20) if within else None)
        renewing = False
        for word, number in said:
            if word == "opened":
                assert number > floor
                floor = number
            elif word == "written":
                kept[entry(number).name] = entry(number, size=20_000).reply
            else:
                # Between the two words the old replies may be there or not, but never a part of them.
                renewing = word == "renewing"
                if not renewing:
                    kept.clear()
        with opened(path) as journal:
            assert floor <= journal.floor() <= floor + 1
            floor, found = journal.floor(), dict(journal.replies())
        assert found == {} or kept.items() <= found.items() if renewing else kept.items() <= found.items()
        assert len(found) <= len(kept) + 1
        kept = found


def test_a_site_that_starts_again_resends_and_never_opens_an_instance_twice(path: Path) -> None:
    made = parties()
    name = made.names[0]
    study = made.signed.study

    def restarted(journal: Journal) -> SiteSession:
        return SiteSession.for_study(
            study, made.signed.sites[name], name, verified=frozenset(made.sites), journal=journal
        )

    with SqliteJournal(path, study.digest, name) as journal:
        made.sites[name] = restarted(journal)
        made.server.open_epoch(made.names)
        request = made.server.requests()[name]
        reply = made.sites[name].hello(request)
        relay(made)
        assert made.server.phase is Phase.PREPARE
    with SqliteJournal(path, study.digest, name) as journal:
        made.sites[name] = restarted(journal)
        assert made.sites[name].hello(request) == reply
        made.renew()
        set_up(made)
        encoding, values = numbered(made)
        first = take_sum(made, encoding, values)
        assert first.values.tolist() == total(values, made.names)
    with SqliteJournal(path, study.digest, name) as journal:
        assert journal.floor() == first.instance
        made.sites[name] = restarted(journal)
        made.renew()
        set_up(made)
        assert take_sum(made, encoding, values).instance > first.instance
