"""The operator's durable journal: which studies there are, what happened in each, and all that a start goes on from.

A call that returned is durable and one that raised has changed nothing; one process holds the journal at a time. What
happened is a hash-chained transcript a study, and each event is written in one transaction with what it tells.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Self

from common import errors
from common.agreement import Approval, SignedStudy
from common.chain import Link
from common.errors import ConsiliumError
from common.parts import Digest
from common.study import Study
from server.journal_events import Ended, Enqueued, Entered, RoundDone, Standing, State
from server.journal_rows import Rows, StudyRow
from server.journal_store import ReadStore, Store
from server.progress import Ending, Progress, RoundRecord, StudyJournal

__all__ = ["JournalReader", "Queued", "SqlJournal", "State"]

_LINE = 2000


@dataclass(frozen=True, slots=True)
class Queued:
    """A study in the operator's queue.

    title   as one printable line
    since   when it entered its state, in UTC
    reason  why, where something was said
    """

    digest: Digest
    title: str
    state: State
    since: datetime
    reason: str


class _Journal(ABC):
    """What can be read of a journal; all of it is verified against what was written."""

    def agreement(self, digest: Digest) -> tuple[SignedStudy, tuple[Approval, ...]]:
        """Return what was enqueued."""
        with self._found(digest) as (rows, study):
            _, event = rows.transcript(study)[0]
            # Standing allows no other event at the beginning.
            assert isinstance(event, Enqueued)
            return event.agreement(rows.canonical(study))

    def queue(self) -> tuple[Queued, ...]:
        """Return every study, in the order in which they were enqueued."""
        with self._rows() as rows:
            found = [(study, rows.standing(study)) for study in rows.studies()]
        return tuple(
            Queued(study.digest, study.title, standing.state, datetime.fromisoformat(standing.since), standing.reason)
            for study, standing in found
        )

    def transcript(self, digest: Digest) -> tuple[Link, ...]:
        """Return what happened in a study: the events of :mod:`server.journal_events`, as a chain that was verified."""
        with self._found(digest) as (rows, study):
            return tuple(link for link, _ in rows.transcript(study))

    @abstractmethod
    def _rows(self) -> AbstractContextManager[Rows]:
        """Make one transaction of what is inside."""

    @contextmanager
    def _found(self, digest: Digest) -> Iterator[tuple[Rows, StudyRow]]:
        """Make one transaction of what is inside, with the study; raises CSL-635."""
        with self._rows() as rows:
            study = rows.study(digest)
            if study is None:
                raise ConsiliumError(errors.OPERATOR_STUDY, digest[:12])
            yield rows, study


class JournalReader(_Journal):
    """A journal for whoever only looks, beside the process that holds it or without one; nothing is changed or held.

    url  as of :class:`SqlJournal`

    Every call sees the journal as it is then. Raises CSL-634 for another address; every call CSL-631 if something is
    not as it was written, CSL-632 for another schema, CSL-633 if it cannot be read, CSL-635 for a study that is not
    there.
    """

    def __init__(self, url: str) -> None:
        self._store = ReadStore(url)

    def queue(self) -> tuple[Queued, ...]:
        """Return every study, in the order in which they were enqueued; none where no journal was begun."""
        with self._store.transaction() as connection:
            if connection is None:
                return ()
        return super().queue()

    def of(self, digest: Digest) -> StudyReading:
        """Return what is written of one study."""
        return StudyReading(lambda: self._found(digest))

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        with self._store.transaction() as connection:
            if connection is None:
                raise ConsiliumError(errors.OPERATOR_STUDY, "no journal was begun")
            yield Rows(connection, self._store.damaged)


class SqlJournal(_Journal):
    """Every study of one operator, in an SQLite file or a PostgreSQL database.

    url    ``sqlite:///path`` for a file, made with mode 0600 in a folder that exists, or
           ``postgresql+pg8000://user:password@host/database`` for a database that holds nothing else
    clock  for the times that people read

    Opening verifies every row. Raises CSL-630 if another process holds the journal, CSL-631 if something is not as it
    was written, CSL-632 for another schema, CSL-633 if it cannot be reached or written, CSL-634 for another address.
    The same holds for every call, and CSL-635 for a study that is not there.
    """

    def __init__(self, url: str, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._store = Store(url)
        try:
            with self._rows() as rows:
                rows.verify()
        except BaseException:
            self._store.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the journal."""
        self._store.close()

    def enqueue(self, signed: SignedStudy, approvals: tuple[Approval, ...]) -> Digest:
        """Put a verified agreement at the end of the queue; one that is there already stays as it is.

        Raises CSL-101 to CSL-103 for bytes that are no study and CSL-107 for an approval of another.
        """
        study = Study.from_canonical(signed.canonical)
        digest = study.digest
        for approval in approvals:
            if approval.digest != digest:
                raise ConsiliumError(errors.STUDY_NOT_APPROVED, approval.site)
        with self._rows() as rows:
            if rows.study(digest) is None:
                row = rows.add_study(digest, _line(study.title), signed.canonical)
                rows.append(row, Standing(), Enqueued.of(digest, signed, approvals, self._now()))
        return digest

    def enter(self, digest: Digest, state: State, reason: str = "") -> None:
        """Note that a study is in another state; in the one that it is in already, it stays as it is.

        Queued leads to running, running to finished, both to aborted, and that to running again. Raises CSL-636 for
        another way.
        """
        with self._found(digest) as (rows, study):
            standing = rows.standing(study)
            if standing.state is not state:
                rows.append(study, standing, Entered(at=self._now(), state=state, reason=_line(reason)))

    def of(self, digest: Digest) -> StudyJournal:
        """Return one study's record; what it keeps raises CSL-636 unless the study is running."""
        with self._found(digest):
            return _StudyRecord(lambda: self._found(digest), self._now)

    def _now(self) -> str:
        return self._clock().astimezone(UTC).isoformat()

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        with self._store.transaction() as connection:
            yield Rows(connection, self._store.damaged)


class StudyReading:
    """What is written of one study; see :class:`server.progress.StudyJournal`."""

    def __init__(self, found: Callable[[], AbstractContextManager[tuple[Rows, StudyRow]]]) -> None:
        self._found = found

    def progress(self) -> Progress | None:
        """Return where the study stands."""
        with self._found() as (rows, study):
            return rows.progress(study)

    def rounds(self) -> tuple[RoundRecord, ...]:
        """Return every round that is done, in order."""
        with self._found() as (rows, study):
            return tuple(event.record for _, event in rows.transcript(study) if isinstance(event, RoundDone))

    def ending(self) -> Ending | None:
        """Return how the evaluation ended."""
        with self._found() as (rows, study):
            return next((event.ending for _, event in rows.transcript(study) if isinstance(event, Ended)), None)


class _StudyRecord(StudyReading):
    """One study's part of a journal that is held; see :class:`server.progress.StudyJournal`."""

    def __init__(
        self, found: Callable[[], AbstractContextManager[tuple[Rows, StudyRow]]], now: Callable[[], str]
    ) -> None:
        super().__init__(found)
        self._now = now

    def keep(self, progress: Progress, done: RoundRecord | None = None) -> None:
        """Replace where the study stands and add the round that is done.

        Raises CSL-636 for a round that is not the next one, and for a progress that counts them otherwise.
        """
        with self._found() as (rows, study):
            standing = rows.standing(study)
            standing.check_under_way()
            if done is not None:
                standing = rows.append(study, standing, RoundDone.of(done, progress.vector, self._now()))
            if progress.rounds != standing.rounds:
                raise ConsiliumError(errors.OPERATOR_ORDER, f"{progress.rounds} rounds, but {standing.rounds} are here")
            rows.put_progress(study, progress)

    def end(self, ending: Ending) -> None:
        """Note how the evaluation ended; raises CSL-636 for a second time."""
        with self._found() as (rows, study):
            rows.append(study, rows.standing(study), Ended.of(ending, self._now()))


def _line(text: str) -> str:
    """Return a text as one printable line, which every database and terminal takes."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())[:_LINE]
