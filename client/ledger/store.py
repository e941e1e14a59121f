"""A hospital's ledger on disk: an append-only, hash-chained table in an SQLite file, and an anchor outside it.

A call that returned is synced (WAL with ``synchronous = FULL``, then the anchor). A lock file serialises processes;
each writer first takes in what others wrote, so that two at once never charge less than one after the other. The whole
chain is verified when the file is opened, its end before every change.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

import sqlalchemy as sa

from client.ledger.anchor import Anchor, read_anchor
from client.ledger.entries import NAME_BYTES, Begun, Entry, Record
from client.ledger.files import WAIT_SECONDS, coded, located, locked
from client.ledger.keeping import Append, Ledger
from common import errors
from common.chain import Link, extend
from common.errors import ConsiliumError
from common.parts import Digest
from common.sqlite_files import create_private

SCHEMA = "0001"


class SqliteLedger(Ledger):
    """A :class:`Ledger` in a file.

    path      the database; made with mode 0600 if neither it nor its anchor is there, in a folder that exists
    anchor    the anchor's file; by default beside the database. Put it on another disk
    clock     for the times that people read

    Raises CSL-211 if a byte changed or an entry is missing, CSL-212 if the anchor shows more than the file holds or is
    missing itself, CSL-213 if another process writes for too long, CSL-214 if the disk refuses, CSL-216 for a newer
    schema, CSL-217 for an anchor of another ledger. The same holds for every call; one that raised may have charged,
    and has never charged less.
    """

    def __init__(
        self,
        path: Path,
        anchor: Path | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__(clock=clock)
        self.path, self.anchor = located(path, anchor)
        path = self.path
        with self._exclusive(), coded(path):
            if not path.exists() and self.anchor.exists():
                raise ConsiliumError(errors.LEDGER_BEHIND, f"{path} is missing and its anchor is here")
            create_private(path)
        self._engine = engine(path)
        try:
            with self._exclusive(), coded(path), self._engine.begin() as connection:
                check_pages(connection)
                migrate(connection)
            with self._appending() as append:
                if not self._last.number:
                    append(Begun(ledger=self._drawn()))
        except BaseException:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_file()

    def close_file(self) -> None:
        """Let go of the file."""
        self._engine.dispose()

    def _drawn(self) -> str:
        """Return the name of a new chain: in the anchor first, so that what a crash leaves can be gone on with."""
        kept = read_anchor(self.anchor)
        if kept is None:
            kept = Anchor(ledger=self._entropy(NAME_BYTES).hex())
            kept.write(self.anchor)
        return kept.ledger

    @contextmanager
    def _appending(self) -> Iterator[Append]:
        """Take in what other processes wrote, compare with the anchor, and write entries down one by one."""

        def append(entry: Entry | None) -> None:
            if entry is None:
                return
            link = extend(self._last, self._record(entry).canonical())
            with coded(self.path), self._engine.begin() as connection:
                write_link(connection, link)
            self._take(link, entry)
            self._write_anchor()

        with self._exclusive():
            self._refresh()
            self._compare_anchor()
            yield append

    def _refresh(self) -> None:
        """Verify that the end known here is still in the file, and take in what follows it."""
        with coded(self.path), self._engine.connect() as connection:
            rows = read_links(connection, self._last.number)
        known = 1 if self._last.number else 0
        if rows[:known] != [self._last][:known]:
            raise ConsiliumError(errors.LEDGER_DAMAGED, f"{self.path}: entry {self._last.number} is gone or changed")
        for row in rows[known:]:
            if row != extend(self._last, row.body):
                raise ConsiliumError(errors.LEDGER_DAMAGED, f"{self.path}: entry {self._last.number + 1}")
            self._take(row, Record.from_canonical(row.body).entry)

    def _compare_anchor(self) -> None:
        """Refuse a file that does not hold what its anchor has seen; move an anchor on that a crash left behind."""
        kept = read_anchor(self.anchor)
        if kept is None:
            if self._last.number:
                raise ConsiliumError(errors.LEDGER_BEHIND, f"{self.anchor}: the anchor is missing")
            return
        if self._book.ledger not in (None, kept.ledger):
            raise ConsiliumError(errors.LEDGER_ANCHOR, str(self.anchor))
        if self._numbers.get(Digest(kept.head)) != kept.number:
            raise ConsiliumError(
                errors.LEDGER_BEHIND, f"{self.path} ends with entry {self._last.number}, its anchor knows {kept.number}"
            )
        if kept.head != self._last.digest:
            self._write_anchor()

    def _write_anchor(self) -> None:
        Anchor.of(self._last, self._book).write(self.anchor)

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold this process's and every other's lock on the ledger; raises CSL-213."""
        with self._lock, locked(self.path):
            yield


def engine(path: Path) -> sa.Engine:
    """Return an engine with one connection, whose transactions are immediate and whose commits are synced."""

    def connect() -> sqlite3.Connection:
        # Whoever closes the file last brings its log in, outside our lock: others wait for that.
        made = sqlite3.connect(path, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        made.execute("PRAGMA journal_mode = WAL")
        made.execute("PRAGMA synchronous = FULL")
        return made

    made = sa.create_engine("sqlite://", creator=connect, poolclass=sa.StaticPool)

    @sa.event.listens_for(made, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return made


def read_links(connection: sa.Connection, first: int, *, at_most: int = -1) -> list[Link]:
    """Return the rows from number ``first`` on, in their order, unverified; ``at_most`` so many where it is not -1.

    A row that holds other types than were written comes back empty, so that it cannot verify.
    """
    query = (
        sa.select(_ENTRIES.c.number, _ENTRIES.c.digest, _ENTRIES.c.body)
        .where(_ENTRIES.c.number >= first)
        .order_by(_ENTRIES.c.number)
        .limit(at_most)
    )
    return [
        Link(number, body if isinstance(body, bytes) else b"", Digest(str(digest)))
        for number, digest, body in connection.execute(query)
    ]


def write_link(connection: sa.Connection, link: Link) -> None:
    """Add a row."""
    connection.execute(sa.insert(_ENTRIES).values(number=link.number, digest=link.digest, body=link.body))


def migrate(connection: sa.Connection) -> None:
    """Bring a file to the schema known here; raises CSL-216 for one from a later version."""
    tables = set(sa.inspect(connection).get_table_names())
    version = None
    if "alembic_version" in tables:
        version = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    if version == SCHEMA:
        return
    # Imported here since a file needs it once in its life.
    from alembic.command import upgrade
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    try:
        upgrade(config, SCHEMA)
    except CommandError as error:
        raise ConsiliumError(errors.LEDGER_FOREIGN, f"schema {version}") from error


def check_pages(connection: sa.Connection) -> None:
    """Raise CSL-211 for a file whose pages are not as SQLite wrote them."""
    state = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
    if state != "ok":
        raise ConsiliumError(errors.LEDGER_DAMAGED, str(state))


_ENTRIES = sa.table("entry", sa.column("number"), sa.column("digest"), sa.column("body"))
