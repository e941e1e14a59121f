"""The rows of the operator's journal: how each is written, and how each is verified whenever it is read.

The SQL is SQLAlchemy's core and the same for every database. Columns are named here without their types, which
``server/migrations`` fixes, so that a value of another type comes back as it is and fails its SHA-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from common.chain import START, Link
from common.errors import ConsiliumError
from common.parts import Digest
from server.journal_events import AnyEvent, Standing, State, read_event, vector_bytes, vector_from
from server.progress import Progress


@dataclass(frozen=True, slots=True)
class StudyRow:
    """One study: its place in the queue, its name, and its title as one printable line."""

    number: int
    digest: Digest
    title: str


class Rows:
    """The journal's rows as one transaction sees and changes them.

    damaged  makes the coded error for a row that is not what was written
    """

    def __init__(self, connection: sa.Connection, damaged: Callable[[str], ConsiliumError]) -> None:
        self._connection, self._damaged = connection, damaged

    def studies(self) -> list[StudyRow]:
        """Return every study, in the order in which they were enqueued."""
        found = [self._study(row) for row in self._connection.execute(_STUDIES.order_by(_STUDY.c.number))]
        if [row.number for row in found] != list(range(1, len(found) + 1)):
            raise self._damaged("a study is missing")
        return found

    def study(self, digest: Digest) -> StudyRow | None:
        """Return one study; None where it is not there."""
        row = self._connection.execute(_STUDIES.where(_STUDY.c.digest == digest)).one_or_none()
        return None if row is None else self._study(row)

    def add_study(self, digest: Digest, title: str, canonical: bytes) -> StudyRow:
        """Add a study at the end of the queue."""
        number = (self._connection.scalar(sa.select(sa.func.max(_STUDY.c.number))) or 0) + 1
        row = (number, digest, title)
        self._insert(_STUDY, (*row, canonical, _sha256("study", row)))
        return StudyRow(*row)

    def canonical(self, study: StudyRow) -> bytes:
        """Return a study's canonical bytes, which its digest verifies."""
        found = self._connection.scalar(sa.select(_STUDY.c.canonical).where(_STUDY.c.number == study.number))
        if not isinstance(found, bytes) or hashlib.sha256(found).hexdigest() != study.digest:
            raise self._damaged("a study was changed")
        return found

    def standing(self, study: StudyRow) -> Standing:
        """Return where a study stands."""
        content = self._sealed(_STANDING, study)
        if content is None:
            raise self._damaged("a study has lost its state")
        state, since, reason, rounds, ended, events, head = content
        return Standing(
            State(str(state)), str(since), str(reason), _int(rounds), bool(ended), _int(events), _digest(head)
        )

    def append(self, study: StudyRow, standing: Standing, event: AnyEvent) -> Standing:
        """Add an event and return where the study then stands; raises CSL-636 for one that may not follow."""
        link, then = standing.after(event)
        self._insert(_EVENT, (study.number, link.number, link.digest, link.body))
        self._replace(
            _STANDING,
            study,
            (then.state.value, then.since, then.reason, then.rounds, int(then.ended), then.events, then.head),
        )
        return then

    def transcript(self, study: StudyRow) -> list[tuple[Link, AnyEvent]]:
        """Return every event of a study with its link, in order; all of them were verified against its standing."""
        query = sa.select(_EVENT.c.number, _EVENT.c.digest, _EVENT.c.body).where(_EVENT.c.study == study.number)
        found: list[tuple[Link, AnyEvent]] = []
        standing = Standing()
        for number, digest, body in self._connection.execute(query.order_by(_EVENT.c.number)):
            link = Link(number, body if isinstance(body, bytes) else b"", Digest(str(digest)))
            try:
                event = read_event(link)
                expected, standing = standing.after(event)
            except (ValueError, ConsiliumError) as error:
                raise self._damaged(f"event {number} of study {study.digest[:12]}") from error
            if link != expected:
                raise self._damaged(f"event {number} of study {study.digest[:12]}")
            found.append((link, event))
        if standing != self.standing(study) or standing.events == START.number:
            raise self._damaged(f"study {study.digest[:12]} does not stand where its events end")
        return found

    def progress(self, study: StudyRow) -> Progress | None:
        """Return how far a study has come; None before anything was kept."""
        content = self._sealed(_PROGRESS, study)
        done = self.standing(study).rounds
        if (0 if content is None else content[2]) != done:
            raise self._damaged(f"study {study.digest[:12]} does not stand where its {done} rounds lead")
        if content is None:
            return None
        instance, attempt, rounds, under_way, vector, optimizer, session = content
        return Progress(
            instance=_int(instance),
            attempt=_int(attempt),
            rounds=_int(rounds),
            under_way=bool(under_way),
            vector=vector_from(_bytes(vector)),
            optimizer=_bytes(optimizer),
            session=_bytes(session),
        )

    def put_progress(self, study: StudyRow, progress: Progress) -> None:
        """Replace how far a study has come."""
        self._replace(
            _PROGRESS,
            study,
            (
                # A NumPy integer would be written as what it is not read as.
                int(progress.instance),
                int(progress.attempt),
                int(progress.rounds),
                int(progress.under_way),
                vector_bytes(progress.vector),
                bytes(progress.optimizer),
                bytes(progress.session),
            ),
        )

    def verify(self) -> None:
        """Compare every row with what was written."""
        studies = self.studies()
        for study in studies:
            self.canonical(study)
            self.transcript(study)
            self.progress(study)
        for table in (_STANDING, _PROGRESS, _EVENT):
            last = self._connection.scalar(sa.select(sa.func.max(table.c.study)))
            if last is not None and last not in range(1, len(studies) + 1):
                raise self._damaged("a study is missing")

    def _study(self, row: Iterable[object]) -> StudyRow:
        number, digest, title, sha256 = row
        if _sha256("study", (number, digest, title)) != sha256:
            raise self._damaged("a study's row was changed")
        return StudyRow(_int(number), _digest(digest), str(title))

    def _sealed(self, table: sa.TableClause, study: StudyRow) -> tuple[object, ...] | None:
        """Return what a table holds for a study between its number and its SHA-256, verified."""
        row = self._connection.execute(sa.select(*table.c).where(table.c.study == study.number)).one_or_none()
        if row is None:
            return None
        content, sha256 = tuple(row)[:-1], tuple(row)[-1]
        if _sha256(table.name, content) != sha256:
            raise self._damaged(f"the {table.name} of study {study.digest[:12]} was changed")
        return content[1:]

    def _replace(self, table: sa.TableClause, study: StudyRow, content: tuple[object, ...]) -> None:
        self._connection.execute(sa.delete(table).where(table.c.study == study.number))
        row = (study.number, *content)
        self._insert(table, (*row, _sha256(table.name, row)))

    def _insert(self, table: sa.TableClause, row: tuple[object, ...]) -> None:
        self._connection.execute(sa.insert(table).values(dict(zip(table.c.keys(), row, strict=True))))


def _table(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *(sa.column(column) for column in columns))


_STUDY = _table("study", "number", "digest", "title", "canonical", "sha256")
_STUDIES = sa.select(_STUDY.c.number, _STUDY.c.digest, _STUDY.c.title, _STUDY.c.sha256)
_EVENT = _table("event", "study", "number", "digest", "body")
_STANDING = _table("standing", "study", "state", "since", "reason", "rounds", "ended", "events", "head", "sha256")
_PROGRESS = _table(
    "progress", "study", "instance", "attempt", "rounds", "under_way", "vector", "optimizer", "session", "sha256"
)


def _int(value: object) -> int:
    """Narrow a value that its row's SHA-256 has verified."""
    assert isinstance(value, int)
    return value


def _bytes(value: object) -> bytes:
    """Narrow a value that its row's SHA-256 has verified."""
    assert isinstance(value, bytes)
    return value


def _digest(value: object) -> Digest:
    return Digest(str(value))


def _sha256(table: str, row: tuple[object, ...]) -> bytes:
    """Return the digest of a row: its table, and each value's kind, length and bytes."""
    digest = hashlib.sha256(f"consilium/operator/{table}\x00".encode())
    for value in row:
        raw = value if isinstance(value, bytes) else str(value).encode()
        digest.update(f"{type(value).__name__} {len(raw)} ".encode() + raw)
    return digest.digest()
