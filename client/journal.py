"""A hospital's journal for secure sums, in one SQLite file: what was opened and answered, before anything leaves.

A call that returned is on disk (WAL with ``synchronous = FULL``), one process holds the file at a time, and every row
carries a SHA-256 over its content that is compared whenever the row is read [RULES 5]. The file belongs to one site in
one study. A file that is deleted, or put back from an older copy, is not noticed here: that is a rollback of the
storage, which is outside the promise. Nothing secret belongs here: keys and seeds die with the process.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.parts import Digest
from common.secagg.journal import Entry
from common.sqlite_files import FileFaults, SqliteFile, row_sha256

SCHEMA = 1
_TABLES = (
    "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), study TEXT NOT NULL, site TEXT NOT NULL,"
    " floor INTEGER NOT NULL, entries INTEGER NOT NULL, sha256 BLOB NOT NULL) STRICT",
    "CREATE TABLE entry (name BLOB PRIMARY KEY, step TEXT NOT NULL, instance INTEGER NOT NULL, view BLOB NOT NULL,"
    " reply BLOB NOT NULL, sha256 BLOB NOT NULL) STRICT",
)
_FAULTS = FileFaults(errors.JOURNAL_LOCKED, errors.JOURNAL_UNWRITABLE, errors.JOURNAL_DAMAGED)
_ENTRY = "SELECT name, step, instance, view, reply, sha256 FROM entry"


class SqliteJournal(SqliteFile):
    """A :class:`~common.secagg.journal.Journal` on disk, held by this process until it is closed.

    path   the file; made with mode 0600 where there is none, in a folder that exists
    study  the digest of the study it belongs to
    site   the site it belongs to

    Opening reads and verifies everything in it. Raises CSL-620 if another journal has the file open, CSL-621 if a byte
    changed, CSL-622 for the journal of another study, site or schema, CSL-623 if the file cannot be written. The same
    codes hold for every call; one that raised has changed nothing.
    """

    def __init__(self, path: Path, study: Digest, site: SiteId) -> None:
        self._study, self._site = study, site
        super().__init__(
            path,
            _FAULTS,
            foreign=errors.JOURNAL_FOREIGN,
            schema=SCHEMA,
            tables=_TABLES,
            wait_seconds=0.0,
            exclusive=True,
        )

    def floor(self) -> int:
        """Return the highest instance that was ever opened, 0 for none."""
        with self._reading():
            return self._head()[0]

    def replies(self) -> Mapping[bytes, bytes]:
        """Return a live view of the current epoch's replies; each is read from disk and verified when it is asked."""
        return _Replies(self)

    def opened(self, instance: int) -> None:
        """Note that an instance is opened; raises CSL-405 for one that is not above the floor."""
        with self._change():
            floor, entries = self._head()
            if instance <= floor:
                raise ConsiliumError(errors.SECAGG_REPLAY, f"instance {instance} after {floor}")
            self._write_head(instance, entries)

    def write(self, entry: Entry) -> None:
        """Keep one reply; raises CSL-405 where this request already has another."""
        with self._change():
            kept = self.read(entry.name)
            if kept == entry:
                return
            if kept is not None:
                raise ConsiliumError(errors.SECAGG_REPLAY, "this request has another reply already")
            floor, entries = self._head()
            row = (entry.name, entry.step, entry.instance, entry.view, entry.reply)
            self._connection.execute("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?)", (*row, _sha256(row)))
            self._write_head(floor, entries + 1)

    def new_epoch(self) -> None:
        """Drop the replies of the epoch before; the floor stays."""
        with self._change():
            floor, _ = self._head()
            self._connection.execute("DELETE FROM entry")
            self._write_head(floor, 0)

    def read(self, name: bytes) -> Entry | None:
        """Return what is kept under a request's name, verified; None where there is nothing."""
        with self._reading():
            row = self._connection.execute(f"{_ENTRY} WHERE name = ?", (name,)).fetchone()
            return None if row is None else self._verified(row)

    def names(self) -> tuple[bytes, ...]:
        """Return the names of the requests answered in this epoch, in the order of the answers."""
        with self._reading():
            return tuple(name for (name,) in self._connection.execute("SELECT name FROM entry ORDER BY rowid"))

    def _begin(self) -> None:
        self._write_head(0, 0)

    def _verify(self) -> None:
        _, entries = self._head()
        found = len([self._verified(row).name for row in self._connection.execute(_ENTRY)])
        (state,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok" or found != entries:
            raise self._damaged(f"{found} replies of {entries}")

    def _head(self) -> tuple[int, int]:
        """Return the floor and the number of replies."""
        rows = self._connection.execute("SELECT study, site, floor, entries, sha256 FROM head").fetchall()
        if len(rows) != 1:
            raise self._damaged("the head is missing")
        study, site, floor, entries, sha256 = rows[0]
        if _sha256((SCHEMA, study, site, floor, entries)) != sha256:
            raise self._damaged("the head was changed")
        if (study, site) != (self._study, self._site):
            raise ConsiliumError(errors.JOURNAL_FOREIGN, f"{self._path}: it is of {site} in study {study[:12]}")
        return floor, entries

    def _write_head(self, floor: int, entries: int) -> None:
        row = (self._study, self._site, floor, entries)
        self._connection.execute(
            "INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?, ?)", (*row, _sha256((SCHEMA, *row)))
        )

    def _verified(self, row: tuple[bytes, str, int, bytes, bytes, bytes]) -> Entry:
        *content, sha256 = row
        if _sha256(tuple(content)) != sha256:
            raise self._damaged("a reply was changed")
        return Entry(*row[:5])


class _Replies(Mapping[bytes, bytes]):
    """The replies of a journal's current epoch, without holding them in memory."""

    def __init__(self, journal: SqliteJournal) -> None:
        self._journal = journal

    def __getitem__(self, name: bytes) -> bytes:
        entry = self._journal.read(name)
        if entry is None:
            raise KeyError(name)
        return entry.reply

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._journal.names())

    def __len__(self) -> int:
        return len(self._journal.names())


def _sha256(row: tuple[object, ...]) -> bytes:
    return row_sha256(b"consilium/journal", row)
