"""The operator's journal: what it said it kept is there after a kill, nothing is there twice, nothing else is believed.

Every test that names a ``url`` holds for an SQLite file and, among the slow ones, for a real PostgreSQL server.
"""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import product

import numpy as np
import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import errors
from common.agreement import SignedStudy
from server.journal import Queued, SqlJournal, State
from server.progress import Ending, Progress, RoundRecord
from tests.crashes import die_at, from_elsewhere, refused, said_until_killed
from tests.server.journals import (
    ONE,
    SITES,
    START,
    THREE,
    TWO,
    begun,
    clock,
    events,
    records,
    same,
    step,
    vector,
)
from tests.studies import signed_study


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


def test_a_call_that_is_interrupted_as_it_commits_changes_nothing(url: str) -> None:
    def interrupt(_: sa.Connection) -> None:
        raise KeyboardInterrupt

    with SqlJournal(url) as journal:
        study = begun(journal, 3)
        sa.event.listen(sa.Engine, "commit", interrupt)
        try:
            with pytest.raises(KeyboardInterrupt):
                study.keep(*step(3))
        finally:
            sa.event.remove(sa.Engine, "commit", interrupt)
        assert same(study.progress(), step(2)[0])
        study.keep(*step(3))
        assert study.rounds() == records(4)


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


def test_a_second_opener_is_refused_and_does_not_loosen_the_first_ones_hold(url: str) -> None:
    with SqlJournal(url) as journal:
        study = begun(journal)
        assert from_elsewhere(lambda: SqlJournal(url).close()) == errors.OPERATOR_LOCKED.code
        refused(errors.OPERATOR_LOCKED, lambda: SqlJournal(url))
        assert from_elsewhere(lambda: SqlJournal(url).close()) == errors.OPERATOR_LOCKED.code
        study.keep(*step(0))
    assert from_elsewhere(lambda: SqlJournal(url).close()) == "opened"


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


def work(url: str, say: Callable[[int], None], statements: int) -> None:
    """Take step after step and say so after each, until the process kills itself before some statement or commit."""
    count = die_at(statements)
    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    sa.event.listen(sa.Engine, "commit", count)
    journal = SqlJournal(url)
    study = journal.of(ONE.study.digest)
    progress = study.progress()
    first = 0 if progress is None else 2 * progress.rounds + progress.under_way
    for number in range(first, 1 << 20):
        study.keep(*step(number, 5000))
        say(number)


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_anywhere_leaves_the_last_step_that_was_said_or_the_next_one_whole(url: str, seed: int) -> None:
    dice, last = random.Random(seed), -1
    with SqlJournal(url) as journal:
        begun(journal)
    for start in range(9):
        within = start % 3 == 0
        statements = 0 if within else dice.randrange(1, 90)
        said = said_until_killed(partial(work, url, statements=statements), dice.randrange(1, 9) if within else None)
        last = max([last, *said])
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
