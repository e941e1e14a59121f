"""Whoever only looks at a journal sees what its holder wrote, verified, and leaves no trace of having looked."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common import errors
from server.journal import JournalReader, SqlJournal, State
from tests.crashes import FORK, refused
from tests.server.journals import ONE, TWO, begun, clock, of, records, same, step


def files(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Return every file with its bytes, its time and its mode."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode)
        for path in folder.iterdir()
        if path.is_file()
    }


def look(reader: JournalReader) -> None:
    assert [study.title for study in reader.queue()] == ["One"]
    assert reader.of(ONE.study.digest).rounds() == records(6)
    assert len(reader.transcript(ONE.study.digest)) == 2 + 3


@contextmanager
def holder(path: Path, *, lasting: bool) -> Iterator[None]:
    """Have another process write in a journal and hold it; unless lasting, it has gone without closing it."""
    here, there = FORK.Pipe()

    def hold() -> None:
        journal = SqlJournal(of(path), clock=clock())
        begun(journal, 6)
        there.send("written")
        if lasting:
            there.recv()
        os._exit(0)

    process = FORK.Process(target=hold)
    process.start()
    assert here.recv() == "written"
    if not lasting:
        process.join()
    yield
    if lasting:
        here.send("end")
        process.join()


def test_a_reader_sees_what_the_holder_has_written_while_it_holds(url: str) -> None:
    reader = JournalReader(url)
    with SqlJournal(url, clock=clock()) as journal:
        study = begun(journal, 5)
        read = reader.of(ONE.study.digest)
        assert reader.queue() == journal.queue()
        assert reader.transcript(ONE.study.digest) == journal.transcript(ONE.study.digest)
        assert reader.agreement(ONE.study.digest) == (ONE.signed, ONE.approvals)
        assert (read.rounds(), read.ending()) == (study.rounds(), None)
        assert same(read.progress(), step(4)[0])
        study.keep(*step(5))
        assert read.rounds() == study.rounds() == records(6)
    assert reader.queue()[0].state is State.RUNNING


def test_a_holder_starts_beside_a_reader_in_the_midst_of_reading(url: str) -> None:
    with SqlJournal(url, clock=clock()) as journal:
        begun(journal)
    with JournalReader(url)._found(ONE.study.digest) as (rows, study), SqlJournal(url) as journal:
        journal.enter(ONE.study.digest, State.FINISHED)
        # One moment: what was written since is not in it.
        assert rows.standing(study).state is State.RUNNING
    assert JournalReader(url).queue()[0].state is State.FINISHED


def test_where_no_journal_was_begun_there_are_no_studies(fresh: Callable[[], str]) -> None:
    reader = JournalReader(fresh())
    assert reader.queue() == ()
    refused(errors.OPERATOR_STUDY, lambda: reader.transcript(ONE.study.digest))


def test_an_unknown_study_and_another_address_are_refused_by_name(url: str) -> None:
    with SqlJournal(url) as journal:
        begun(journal)
    refused(errors.OPERATOR_STUDY, lambda: JournalReader(url).of(TWO.study.digest).rounds())
    refused(errors.OPERATOR_URL, lambda: JournalReader("mysql://somewhere/journal"))


@pytest.mark.parametrize("lasting", [True, False], ids=["beside its holder", "left by a killed holder"])
def test_reading_changes_no_byte_and_no_time(path: Path, lasting: bool) -> None:
    with holder(path, lasting=lasting):
        before = files(path.parent)
        assert {"journal.sqlite", "journal.sqlite-wal", "journal.sqlite-shm"} <= set(before)
        assert before["journal.sqlite-wal"][0]
        look(JournalReader(of(path)))
        assert files(path.parent) == before


def test_reading_changes_nothing_and_makes_no_file_once_the_holder_is_gone(path: Path) -> None:
    with SqlJournal(of(path), clock=clock()) as journal:
        begun(journal, 6)
    before = files(path.parent)
    assert "journal.sqlite-wal" not in before
    look(JournalReader(of(path)))
    assert files(path.parent) == before


def test_a_reader_refuses_what_was_changed(path: Path) -> None:
    with SqlJournal(of(path), clock=clock()) as journal:
        begun(journal, 6)
    with sqlite3.connect(path) as meddling:
        meddling.execute("UPDATE event SET body = replace(body, '\"attempt\":1', '\"attempt\":2') WHERE number = 3")
    refused(errors.OPERATOR_DAMAGED, lambda: JournalReader(of(path)).transcript(ONE.study.digest))


def test_a_reader_refuses_another_schema(path: Path) -> None:
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE stranger (number INTEGER)")
    refused(errors.OPERATOR_FOREIGN, lambda: JournalReader(of(path)).queue())


@pytest.mark.parametrize("statement", ["DELETE FROM event", "CREATE TABLE more (number INTEGER)"])
def test_a_reader_has_no_way_to_write(url: str, statement: str) -> None:
    with SqlJournal(url) as journal:
        begun(journal)

    def write() -> None:
        with JournalReader(url)._found(ONE.study.digest) as (rows, _):
            rows._connection.exec_driver_sql(statement)

    refused(errors.OPERATOR_UNWRITABLE, write)
