"""The operator's journal: what it said it kept is there after a kill, nothing is there twice, nothing else is believed.

Every test that names a ``url`` holds for an SQLite file and, among the slow ones, for a real PostgreSQL server.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import signal
import sqlite3
import stat
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import errors
from common.agreement import SignedStudy
from common.chain import sound
from common.errors import ConsiliumError, Fault
from common.identity import SiteId
from common.study import Digest
from server.journal import Queued, SqlJournal, State
from server.journal_store import Store
from server.progress import Ending, Progress, RoundRecord, StudyJournal
from tests.server.postgres import PASSWORD, Server, binaries, server
from tests.studies import signed_study

FORK = get_context("fork")
ONE, TWO, THREE = (signed_study(title=title) for title in ("One", "Two", "Three"))
START = datetime(2026, 12, 1, 8, tzinfo=UTC)
SITES = (SiteId("site-000"), SiteId("site-002"))
BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if binaries() is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    with server() as running:
        yield running


@pytest.fixture(params=BACKENDS)
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return what makes the address of a place in which no journal is yet."""
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/{os.urandom(6).hex()}.sqlite"
    running: Server = request.getfixturevalue("postgres")
    return lambda: running.url(running.new_database())


@pytest.fixture
def url(fresh: Callable[[], str]) -> str:
    return fresh()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def of(path: Path) -> str:
    return f"sqlite:///{path}"


def refused(fault: Fault, act: Callable[[], object]) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as raised:
        act()
    assert raised.value.fault is fault
    return raised.value


def vector(number: int, length: int = 40) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.random.default_rng(number).standard_normal(length).astype(np.float32)


def step(number: int, length: int = 40) -> tuple[Progress, RoundRecord | None]:
    """Return what a coordinator keeps as its n-th: by turns a sum that is under way and the round that it ends."""
    dice = random.Random(number)
    ended, norm = number % 2 == 1, dice.random()
    progress = Progress(
        instance=number // 2 + 1,
        attempt=number % 3,
        rounds=(number + 1) // 2,
        under_way=not ended,
        vector=vector((number + 1) // 2, length),
        optimizer=dice.randbytes(number % 7),
        session=dice.randbytes(length),
    )
    record = RoundRecord(number // 2, number % 3, SITES[: 1 + number % 2], norm, number, 1 << 40)
    return progress, record if ended else None


def same(found: Progress | None, wanted: Progress) -> bool:
    """Compare bit for bit, which the comparison of arrays does not."""
    return (
        found is not None
        and found.vector.dtype == np.float32
        and found.vector.tobytes() == wanted.vector.tobytes()
        and replace(found, vector=None) == replace(wanted, vector=None)  # type: ignore[arg-type]
    )


def records(steps: int) -> tuple[RoundRecord, ...]:
    return tuple(record for _, record in map(step, range(steps)) if record is not None)


def begun(journal: SqlJournal, steps: int = 0) -> StudyJournal:
    """Enqueue the first study, begin it and take so many steps."""
    digest = journal.enqueue(ONE.signed, ONE.approvals)
    journal.enter(digest, State.RUNNING)
    study = journal.of(digest)
    for number in range(steps):
        study.keep(*step(number))
    return study


def events(journal: SqlJournal, digest: Digest = ONE.study.digest) -> list[dict[str, object]]:
    links = journal.transcript(digest)
    assert tuple(sound(links)) == links
    return [json.loads(link.body) for link in links]


def clock() -> Callable[[], datetime]:
    """Return a clock that shows one minute more whenever it is looked at."""
    minutes = iter(range(1 << 20))
    return lambda: START + timedelta(minutes=next(minutes))


def sql(url: str, *statements: sa.Executable) -> None:
    """Change a journal behind its back."""
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0


def test_what_was_kept_is_there_after_a_start(url: str) -> None:
    with SqlJournal(url, clock=clock()) as journal:
        for signed in (ONE, TWO, THREE):
            assert journal.enqueue(signed.signed, signed.approvals) == signed.study.digest
        study = begun(journal, 3)
        study.end(Ending(np.array([5, 0, -(1 << 63), (1 << 63) - 1]), SITES, 4, ""))
        journal.enter(TWO.study.digest, State.ABORTED, "too few\nsites")
    with SqlJournal(url) as journal:
        assert journal.queue() == (
            Queued(ONE.study.digest, "One", State.RUNNING, START + timedelta(minutes=3), ""),
            Queued(TWO.study.digest, "Two", State.ABORTED, START + timedelta(minutes=6), "too few sites"),
            Queued(THREE.study.digest, "Three", State.QUEUED, START + timedelta(minutes=2), ""),
        )
        for signed in (ONE, TWO, THREE):
            assert journal.agreement(signed.study.digest) == (signed.signed, signed.approvals)
        study = journal.of(ONE.study.digest)
        assert same(study.progress(), step(2)[0])
        assert study.rounds() == records(3)
        ending = study.ending()
        assert ending is not None
        assert ending.counts is not None
        assert ending.counts.dtype == np.int64
        assert ending.counts.tolist() == [5, 0, -(1 << 63), (1 << 63) - 1]
        assert (ending.survivors, ending.instance, ending.not_evaluated) == (SITES, 4, "")
        other = journal.of(TWO.study.digest)
        assert (other.progress(), other.rounds(), other.ending()) == (None, (), None)


def test_an_evaluation_that_did_not_come_about_is_kept_as_that(url: str) -> None:
    with SqlJournal(url) as journal:
        begun(journal).end(Ending(None, not_evaluated="CSL-602: zu wenige Häuser"))
    with SqlJournal(url) as journal:
        assert journal.of(ONE.study.digest).ending() == Ending(None, not_evaluated="CSL-602: zu wenige Häuser")


def test_a_study_that_is_there_already_keeps_its_state_and_its_approvals(url: str) -> None:
    with SqlJournal(url) as journal:
        begun(journal, 2)
        before = (journal.queue(), journal.transcript(ONE.study.digest))
        assert journal.enqueue(ONE.signed, ()) == ONE.study.digest
        assert (journal.queue(), journal.transcript(ONE.study.digest)) == before
        assert journal.agreement(ONE.study.digest) == (ONE.signed, ONE.approvals)


def test_what_is_no_study_or_was_approved_for_another_is_not_enqueued(url: str) -> None:
    with SqlJournal(url) as journal:
        bad = SignedStudy(b"{}", ONE.signed.signature)
        refused(errors.STUDY_INVALID, lambda: journal.enqueue(bad, ()))
        refused(errors.STUDY_NOT_APPROVED, lambda: journal.enqueue(ONE.signed, TWO.approvals))
        assert journal.queue() == ()


def test_a_study_that_is_not_there_is_said(url: str) -> None:
    with SqlJournal(url) as journal:
        begun(journal)
        absent = TWO.study.digest
        for act in (journal.agreement, journal.of, journal.transcript):
            refused(errors.OPERATOR_STUDY, lambda act=act: act(absent))  # type: ignore[misc]
        refused(errors.OPERATOR_STUDY, lambda: journal.enter(absent, State.RUNNING))


def test_only_the_ways_between_states_that_mean_something_are_open(url: str) -> None:
    ways = {
        State.QUEUED: (),
        State.RUNNING: (State.RUNNING,),
        State.FINISHED: (State.RUNNING, State.FINISHED),
        State.ABORTED: (State.ABORTED,),
    }
    allowed = {
        (State.QUEUED, State.RUNNING),
        (State.QUEUED, State.ABORTED),
        (State.RUNNING, State.FINISHED),
        (State.RUNNING, State.ABORTED),
        (State.ABORTED, State.RUNNING),
    }
    with SqlJournal(url) as journal:
        for number, (old, new) in enumerate(product(State, State)):
            signed = signed_study(title=f"Study {number}")
            digest = journal.enqueue(signed.signed, signed.approvals)
            for state in ways[old]:
                journal.enter(digest, state)
            before = journal.transcript(digest)
            if old is new or (old, new) in allowed:
                journal.enter(digest, new, "why")
            else:
                refused(errors.OPERATOR_ORDER, lambda: journal.enter(digest, new, "why"))  # noqa: B023
            changed = (old, new) in allowed
            assert journal.queue()[number].state is (new if changed else old)
            assert journal.queue()[number].reason == ("why" if changed else "")
            assert len(journal.transcript(digest)) == len(before) + changed


def test_a_round_is_neither_left_out_nor_taken_twice_and_the_progress_counts_them(url: str) -> None:
    with SqlJournal(url) as journal:
        study = begun(journal, 4)
        before = journal.transcript(ONE.study.digest)
        for progress, record in (
            step(3),
            step(7),
            (replace(step(5)[0], rounds=2), step(5)[1]),
            (replace(step(5)[0], rounds=4), step(5)[1]),
            (step(5)[0], None),
            step(2),
        ):
            refused(errors.OPERATOR_ORDER, lambda: study.keep(progress, record))  # noqa: B023
            assert same(study.progress(), step(3)[0])
            assert journal.transcript(ONE.study.digest) == before
        study.keep(*step(4))
        assert study.rounds() == records(4)


def test_nothing_is_kept_for_a_study_that_does_not_run_or_has_ended(url: str) -> None:
    with SqlJournal(url) as journal:
        queued = journal.of(journal.enqueue(TWO.signed, TWO.approvals))
        ended = begun(journal, 2)
        ended.end(Ending(None))
        for study in (queued, ended):
            refused(errors.OPERATOR_ORDER, lambda: study.keep(*step(2)))  # noqa: B023
            refused(errors.OPERATOR_ORDER, lambda: study.keep(*step(3)))  # noqa: B023
            refused(errors.OPERATOR_ORDER, lambda: study.end(Ending(None)))  # noqa: B023
        assert queued.progress() is None
        assert same(ended.progress(), step(1)[0])
        assert ended.rounds() == records(2)


def test_a_vector_keeps_every_bit_and_only_the_newest_is_kept(url: str) -> None:
    odd = np.frombuffer(struct.pack("<5I", 0x7FC00123, 0x80000000, 1, 0x7F800000, 0xFF7FFFFF), dtype="<f4")
    with SqlJournal(url) as journal:
        study = begun(journal, 2)
        wanted = replace(step(3)[0], vector=odd)
        study.keep(wanted, step(3)[1])
        assert same(study.progress(), wanted)
        said = [event["vector"] for event in events(journal) if event["kind"] == "round"]
        assert said == [hashlib.sha256(one.tobytes()).hexdigest() for one in (vector(1), odd)]
        with pytest.raises(TypeError):
            study.keep(replace(wanted, vector=odd.astype(np.float64)))
        assert same(study.progress(), wanted)
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT vector FROM progress")).all() == [(odd.tobytes(),)]


def test_the_transcript_tells_everything_that_happened_in_order(url: str) -> None:
    with SqlJournal(url, clock=clock()) as journal:
        study = begun(journal, 2)
        journal.enter(ONE.study.digest, State.ABORTED, "the power went")
        journal.enter(ONE.study.digest, State.RUNNING)
        study.end(Ending(np.array([3, 4]), SITES, 2))
        journal.enter(ONE.study.digest, State.FINISHED)
        told = events(journal)
    assert [event.pop("at") for event in told] == [(START + timedelta(minutes=n)).isoformat() for n in range(7)]
    record = records(2)[0]
    assert told == [
        {
            "kind": "enqueued",
            "study": ONE.study.digest,
            "signature": ONE.signed.signature.hex(),
            "approvals": [{"site": one.site, "signature": one.signature.hex()} for one in ONE.approvals],
        },
        {"kind": "state", "state": "running", "reason": ""},
        {
            "kind": "round",
            "round_index": 0,
            "attempt": record.attempt,
            "survivors": list(record.survivors),
            "update_norm": record.update_norm,
            "bytes_up": record.bytes_up,
            "bytes_down": record.bytes_down,
            "vector": hashlib.sha256(vector(1).tobytes()).hexdigest(),
        },
        {"kind": "state", "state": "aborted", "reason": "the power went"},
        {"kind": "state", "state": "running", "reason": ""},
        {"kind": "ended", "counts": ["3", "4"], "survivors": list(SITES), "instance": 2, "not_evaluated": ""},
        {"kind": "state", "state": "finished", "reason": ""},
    ]


def test_what_a_transcript_cannot_hold_changes_nothing(url: str) -> None:
    with SqlJournal(url) as journal:
        study = begun(journal, 1)
        progress, record = step(1)
        assert record is not None
        with pytest.raises(ValueError, match="finite"):
            study.keep(progress, replace(record, update_norm=float("nan")))
        assert same(study.progress(), step(0)[0])
        study.keep(progress, record)


@given(actions=st.lists(st.sampled_from(["keep", "round", "again", "ahead", "abort", "end", "open"]), max_size=25))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sequence_of_calls_leaves_what_a_model_says(fresh: Callable[[], str], actions: list[str]) -> None:
    url, number = fresh(), 0
    kept: Progress | None = None
    rounds: list[RoundRecord] = []
    running, ended = True, False
    journal = SqlJournal(url)
    try:
        study = begun(journal)
        for action in actions:
            number += 1
            done = len(rounds)
            if action == "open":
                journal.close()
                journal = SqlJournal(url)
                study = journal.of(ONE.study.digest)
            elif action == "abort":
                journal.enter(ONE.study.digest, State.ABORTED if running else State.RUNNING)
                running = not running
            elif action == "end":
                if running and not ended:
                    study.end(Ending(None, not_evaluated=str(number)))
                    ended = True
                else:
                    refused(errors.OPERATOR_ORDER, lambda: study.end(Ending(None)))  # noqa: B023
            else:
                index = {"again": done - 1, "ahead": done + 1}.get(action, done)
                record = None if action == "keep" else RoundRecord(index, 0, SITES, number / 7, number, number)
                progress = Progress(
                    number, 0, index + (record is not None), False, vector(number), b"", str(number).encode()
                )
                if action in ("keep", "round") and running and not ended:
                    study.keep(progress, record)
                    kept = progress
                    rounds += [record] if record is not None else []
                elif index >= 0:
                    refused(errors.OPERATOR_ORDER, lambda: study.keep(progress, record))  # noqa: B023
            assert study.rounds() == tuple(rounds)
            assert study.progress() is None if kept is None else same(study.progress(), kept)
            assert (study.ending() is not None) == ended
            assert journal.queue()[0].state is (State.RUNNING if running else State.ABORTED)
    finally:
        journal.close()


def test_threads_of_one_process_do_not_get_into_each_others_transactions(url: str) -> None:
    with SqlJournal(url) as journal:

        def run(title: str) -> None:
            signed = signed_study(title=title)
            digest = journal.enqueue(signed.signed, signed.approvals)
            journal.enter(digest, State.RUNNING)
            for number in range(12):
                journal.of(digest).keep(*step(number))

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(run, ("One", "Two", "Three")))
        for row in journal.queue():
            assert journal.of(row.digest).rounds() == records(12)


def from_elsewhere(url: str) -> str:
    """Open a journal in another process and return what came of it."""

    def other(results: Connection) -> None:
        try:
            SqlJournal(url).close()
        except ConsiliumError as error:
            results.send(error.code)
        else:
            results.send("opened")

    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=other, args=(writer,))
    child.start()
    found: str = reader.recv()
    child.join()
    return found


def test_a_second_opener_is_refused_and_does_not_loosen_the_first_ones_hold(url: str) -> None:
    with SqlJournal(url) as journal:
        study = begun(journal)
        assert from_elsewhere(url) == errors.OPERATOR_LOCKED.code
        refused(errors.OPERATOR_LOCKED, lambda: SqlJournal(url))
        assert from_elsewhere(url) == errors.OPERATOR_LOCKED.code
        study.keep(*step(0))
    assert from_elsewhere(url) == "opened"


ZEROS = b"\x00" * 160


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("study", "digest", TWO.study.digest),
        ("study", "title", "Another"),
        ("study", "canonical", TWO.signed.canonical),
        ("study", "sha256", ZEROS[:32]),
        ("event", "digest", "0" * 64),
        ("event", "body", b"{}"),
        ("standing", "state", "finished"),
        ("standing", "since", "2026-12-01T09:00:00+00:00"),
        ("standing", "reason", "none"),
        ("standing", "rounds", 1),
        ("standing", "ended", 1),
        ("standing", "events", 3),
        ("standing", "head", "0" * 64),
        ("standing", "sha256", ZEROS[:32]),
        ("progress", "instance", 9),
        ("progress", "attempt", 9),
        ("progress", "rounds", 1),
        ("progress", "under_way", 1),
        ("progress", "vector", ZEROS),
        ("progress", "optimizer", ZEROS),
        ("progress", "session", ZEROS[:40]),
        ("progress", "sha256", ZEROS[:32]),
    ],
)
def test_a_value_that_was_changed_is_found(url: str, table: str, column: str, value: object) -> None:
    with SqlJournal(url) as journal:
        begun(journal, 4)
    sql(url, sa.update(sa.table(table, sa.column(column))).values({column: value}))
    refused(errors.OPERATOR_DAMAGED, lambda: SqlJournal(url))


@pytest.mark.parametrize(
    "change",
    [
        "DELETE FROM event WHERE number = 4",
        "DELETE FROM event WHERE number = 2",
        "DELETE FROM event",
        "DELETE FROM standing",
        "DELETE FROM progress WHERE study = 1",
        "UPDATE study SET number = 3 WHERE number = 2",
        "DROP TABLE progress",
    ],
)
def test_a_row_that_is_gone_is_found(url: str, change: str) -> None:
    with SqlJournal(url) as journal:
        begun(journal, 4)
        journal.enqueue(TWO.signed, TWO.approvals)
    away = "DELETE FROM event WHERE study = 2", "DELETE FROM standing WHERE study = 2"
    sql(url, *(sa.text(one) for one in (*(away if "number = 3" in change else ()), change)))
    refused(errors.OPERATOR_DAMAGED, lambda: SqlJournal(url))


def test_a_value_that_is_changed_under_an_open_journal_is_found_when_it_is_read(url: str) -> None:
    with SqlJournal(url) as journal:
        study = begun(journal, 4)
        sql(url, sa.update(sa.table("progress", sa.column("vector"))).values(vector=ZEROS))
        refused(errors.OPERATOR_DAMAGED, study.progress)
        assert study.rounds() == records(4)


def test_a_later_schema_and_what_is_no_journal_are_refused(url: str, fresh: Callable[[], str]) -> None:
    SqlJournal(url).close()
    sql(url, sa.text("UPDATE alembic_version SET version_num = '9999'"))
    refused(errors.OPERATOR_FOREIGN, lambda: SqlJournal(url))
    other = fresh()
    sql(other, sa.text("CREATE TABLE patient (name TEXT)"))
    assert "patient" in refused(errors.OPERATOR_FOREIGN, lambda: SqlJournal(other)).detail


def work(url: str, said: Connection, statements: int) -> None:
    """Take step after step and say so after each, until the process kills itself before some statement or commit."""
    left = [statements]

    def count(*_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    sa.event.listen(sa.Engine, "commit", count)
    journal = SqlJournal(url)
    study = journal.of(ONE.study.digest)
    progress = study.progress()
    first = 0 if progress is None else 2 * progress.rounds + progress.under_way
    for number in range(first, 1 << 20):
        study.keep(*step(number, 5000))
        said.send(number)


def until_killed(url: str, statements: int, kill_after: int | None) -> int:
    """Run :func:`work` until it dies, or kill it after so many words; return the last step it said, -1 for none."""
    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=work, args=(url, writer, statements))
    child.start()
    writer.close()
    said = []
    try:
        while True:
            said.append(reader.recv())
            if len(said) == kill_after:
                child.kill()
    except EOFError:
        child.join()
    assert child.exitcode == -signal.SIGKILL
    return said[-1] if said else -1


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_anywhere_leaves_the_last_step_that_was_said_or_the_next_one_whole(url: str, seed: int) -> None:
    dice, last = random.Random(seed), -1
    with SqlJournal(url) as journal:
        begun(journal)
    for start in range(9):
        within = start % 3 == 0
        last = max(
            last, until_killed(url, 0 if within else dice.randrange(1, 90), dice.randrange(1, 9) if within else None)
        )
        with SqlJournal(url) as journal:
            study = journal.of(ONE.study.digest)
            found = study.progress()
            if found is None:
                assert last == -1
                continue
            # A step may have been taken and not said: the process died between the two.
            number = 2 * found.rounds - (not found.under_way)
            assert number in (last, last + 1)
            assert same(found, step(number, 5000)[0])
            assert study.rounds() == records(number + 1)
            assert [event["kind"] for event in events(journal)] == ["enqueued", "state", *["round"] * found.rounds]
            last = number


@pytest.mark.parametrize(
    "address",
    [
        "",
        "journal.sqlite",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/path",
        "sqlite:///with\x00zero",
        "mysql://operator:hunter2@host/journal",
        "postgresql://operator:hunter2@host/journal",
        "postgresql+psycopg://operator:hunter2@host/journal",
        "postgresql+pg8000://host/journal",
        "postgresql+pg8000://operator:hunter2@host",
        "postgresql+pg8000://operator:hunter2@/journal",
        "postgresql+pg8000://operator:hunter2@host:port/journal",
        "postgresql+pg8000://operator@host/journal?password=hunter2",
        "postgresql+pg8000://operator:p@hunter2@host/journal",
        "postgresql+pg8000://operator/x:hunter2@host/journal",
    ],
)
def test_another_address_is_refused_and_not_repeated(address: str) -> None:
    error = refused(errors.OPERATOR_URL, lambda: SqlJournal(address))
    assert error.detail == ""
    assert error.__cause__ is None


@given(password=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=5, max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_part_of_a_password_is_ever_said_however_it_is_written(password: str) -> None:
    word = f"h4X{password}h4X"
    # Nothing listens on port 1: what is understood at all is told to be unreachable.
    error = refused_any(lambda: SqlJournal(f"postgresql+pg8000://operator:{word}@127.0.0.1:1/journal"))
    while error is not None:
        assert "h4X" not in f"{error!s} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refused_any(act: Callable[[], object]) -> BaseException | None:
    with pytest.raises(ConsiliumError) as raised:
        act()
    assert raised.value.fault in (errors.OPERATOR_URL, errors.OPERATOR_UNWRITABLE)
    return raised.value


class TestSqlite:
    """What a file has of its own."""

    def test_only_the_owner_may_read_it(self, path: Path) -> None:
        path.touch(0o666)
        path.chmod(0o666)
        with SqlJournal(of(path)) as journal:
            begun(journal, 2)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert set(modes) == {path.name + end for end in ("", "-wal", "-shm", ".lock")}
        assert set(modes.values()) == {0o600}

    def test_commits_are_synced(self, path: Path) -> None:
        store = Store(of(path))
        with store.transaction() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            ]
        store.close()
        assert pragmas == ["wal", 2]

    def test_a_link_to_it_is_held_with_it(self, path: Path) -> None:
        link = path.with_name("link.sqlite")
        link.symlink_to(path)
        with SqlJournal(of(path)):
            refused(errors.OPERATOR_LOCKED, lambda: SqlJournal(of(link)))

    def test_what_cannot_be_made_is_said_and_a_folder_keeps_its_mode(self, tmp_path: Path) -> None:
        refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(of(tmp_path / "absent" / "journal.sqlite")))
        mode = tmp_path.stat().st_mode
        refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(of(tmp_path)))
        assert tmp_path.stat().st_mode == mode

    def test_a_reader_does_not_stop_the_writer(self, path: Path) -> None:
        with SqlJournal(of(path)) as journal:
            study = begun(journal, 1)
            reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            reader.execute("BEGIN")
            assert reader.execute("SELECT rounds FROM standing").fetchall() == [(0,)]
            study.keep(*step(1))
            assert reader.execute("SELECT rounds FROM standing").fetchall() == [(0,)]
            reader.close()

    def test_a_flipped_byte_is_found_or_changes_nothing(self, path: Path) -> None:
        with SqlJournal(of(path)) as journal:
            begun(journal, 4)
        whole, dice = path.read_bytes(), random.Random(3)
        written = (step(3)[0].session, vector(2).tobytes(), ONE.signed.canonical, b'"kind":"round"')
        inside = [whole.index(one) + dice.randrange(len(one)) for one in written]
        faults = dict[int, Fault]()
        for place in [*inside, *dice.sample(range(len(whole)), 200)]:
            changed = bytearray(whole)
            changed[place] ^= 1 << dice.randrange(8)
            path.write_bytes(changed)
            try:
                with SqlJournal(of(path)) as journal:
                    study = journal.of(ONE.study.digest)
                    assert same(study.progress(), step(3)[0])
                    assert study.rounds() == records(4)
                    assert journal.agreement(ONE.study.digest) == (ONE.signed, ONE.approvals)
            except ConsiliumError as error:
                faults[place] = error.fault
        assert {faults.get(place) for place in inside} == {errors.OPERATOR_DAMAGED}
        assert errors.OPERATOR_LOCKED not in faults.values()

    @pytest.mark.parametrize("size", [100, 200_000, 4 << 20])
    def test_a_full_disk_is_said_and_loses_nothing(self, path: Path, size: int) -> None:
        """Small pages meet the end of the disk at the commit, many of them before it."""

        def fill() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            with SqlJournal(of(path)) as journal:
                study = begun(journal, 3)
                log = path.with_name(path.name + "-wal").stat().st_size
                _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
                resource.setrlimit(resource.RLIMIT_FSIZE, (log, hard))
                progress, record = step(3)
                for _ in range(2):
                    refused(
                        errors.OPERATOR_UNWRITABLE, lambda: study.keep(replace(progress, session=bytes(size)), record)
                    )
                    assert same(study.progress(), step(2)[0])
                    assert study.rounds() == records(3)
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
                study.keep(progress, record)
            os._exit(0)

        child = FORK.Process(target=fill)
        child.start()
        child.join()
        assert child.exitcode == 0
        with SqlJournal(of(path)) as journal:
            study = journal.of(ONE.study.digest)
            assert same(study.progress(), step(3)[0])
            assert study.rounds() == records(4)


@pytest.mark.slow
class TestPostgres:
    """What a server has of its own."""

    def test_a_socket_leads_to_it_too(self, postgres: Server) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.socket_url(database)) as journal:
            begun(journal, 2)
        with SqlJournal(postgres.url(database)) as journal:
            assert journal.of(ONE.study.digest).rounds() == records(2)

    def test_another_host_is_reached_by_tls_or_not_at_all(self, postgres: Server) -> None:
        database = postgres.new_database()
        error = refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(postgres.url(database, "127.0.0.2")))
        assert "SSL" in error.detail

    def test_a_server_that_refuses_us_is_said_without_the_password(self, postgres: Server) -> None:
        for url in (postgres.url("absent"), postgres.url("postgres").replace("operator:", "stranger:")):
            error = refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(url))  # noqa: B023
            assert not any(PASSWORD in str(one) for one in (error, error.__cause__))

    def test_commits_wait_for_the_disk_whatever_the_database_is_set_to(self, postgres: Server) -> None:
        database = postgres.new_database()
        postgres.run(f"ALTER DATABASE {database} SET synchronous_commit = off")
        store = Store(postgres.url(database))
        with store.transaction() as connection:
            assert connection.scalar(sa.text("SHOW synchronous_commit")) == "on"
        store.close()

    def test_a_server_that_does_not_sync_is_refused(self, postgres: Server) -> None:
        database = postgres.new_database()

        def reload(value: str) -> None:
            postgres.run(f"ALTER SYSTEM SET fsync = {value}")
            postgres.run("SELECT pg_reload_conf()")
            while postgres.run("SHOW fsync") != [(value,)]:
                pass

        reload("off")
        try:
            assert "fsync" in refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(postgres.url(database))).detail
        finally:
            reload("on")
        SqlJournal(postgres.url(database)).close()

    def test_a_journal_whose_connection_was_lost_keeps_nothing_more_and_a_new_one_goes_on(
        self, postgres: Server
    ) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.url(database)) as journal:
            study = begun(journal, 2)
            postgres.end_sessions()
            refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
            with SqlJournal(postgres.url(database)) as other:
                assert same(other.of(ONE.study.digest).progress(), step(1)[0])
                other.of(ONE.study.digest).keep(*step(2))
                refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
            refused(errors.OPERATOR_UNWRITABLE, study.progress)

    def test_a_database_that_may_not_be_written_is_said(self, postgres: Server) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.url(database)) as journal:
            begun(journal, 2)
        postgres.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        with SqlJournal(postgres.url(database)) as journal:
            study = journal.of(ONE.study.digest)
            refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
            assert same(study.progress(), step(1)[0])

    def test_a_commit_that_fails_is_said_and_loses_nothing(self, postgres: Server) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.url(database)) as journal:
            study = begun(journal, 2)
            postgres.run(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$",
                database,
            )
            postgres.run(
                "CREATE CONSTRAINT TRIGGER full_disk AFTER INSERT ON progress DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION full_disk()",
                database,
            )
            for _ in range(2):
                refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
                assert same(study.progress(), step(1)[0])
            postgres.run("DROP TRIGGER full_disk ON progress", database)
            study.keep(*step(2))
            assert same(study.progress(), step(2)[0])
