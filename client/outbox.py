"""Replies that left, by the request that each answers: a request seen before gets the very same bytes.

A reply computed twice would be two releases of the same records. The operator asks again when an answer was lost, never
long after, so that the last replies are enough; the secure sums' own journal refuses what is older [RULES 5].
"""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Protocol

from common import errors
from common.errors import ConsiliumError
from common.identity import Signature, SiteId
from common.messages import Sealed
from common.parts import Digest
from common.sqlite_files import FileFaults, SqliteFile, row_sha256

KEPT = 16
"""Replies that are kept; the one put first goes first."""
SCHEMA = 1
_TABLES = (
    "CREATE TABLE head (id INTEGER PRIMARY KEY CHECK (id = 1), study TEXT NOT NULL, site TEXT NOT NULL,"
    " last INTEGER NOT NULL, sha256 BLOB NOT NULL) STRICT",
    "CREATE TABLE reply (number INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, header BLOB NOT NULL,"
    " signature BLOB NOT NULL, sha256 BLOB NOT NULL) STRICT",
    "CREATE TABLE part (reply INTEGER NOT NULL, place INTEGER NOT NULL, name TEXT NOT NULL, content BLOB NOT NULL,"
    " PRIMARY KEY (reply, place)) STRICT",
)
_FAULTS = FileFaults(errors.JOURNAL_LOCKED, errors.JOURNAL_UNWRITABLE, errors.JOURNAL_DAMAGED)
_REPLY = "SELECT number, name, header, signature, sha256 FROM reply"


class Outbox(Protocol):
    """Keeps the last replies. A name is the SHA-256 of the request's header, 32 bytes."""

    def find(self, name: bytes) -> Sealed | None:
        """Return the reply to a request; None where there is none any more, or was none."""

    def put(self, name: bytes, sealed: Sealed) -> None:
        """Keep a reply before it is sent; raises CSL-405 where this request already has another."""


class MemoryOutbox:
    """An :class:`Outbox` that dies with the process: for simulations."""

    def __init__(self) -> None:
        self._replies: OrderedDict[bytes, Sealed] = OrderedDict()

    def find(self, name: bytes) -> Sealed | None:
        """See :meth:`Outbox.find`."""
        return self._replies.get(name)

    def put(self, name: bytes, sealed: Sealed) -> None:
        """See :meth:`Outbox.put`."""
        if not _is_new(self.find(name), sealed):
            return
        self._replies[name] = sealed
        while len(self._replies) > KEPT:
            self._replies.popitem(last=False)


class SqliteOutbox(SqliteFile):
    """An :class:`Outbox` in one file, held by this process until it is closed; what was put is on disk.

    path   the file; made with mode 0600 where there is none, in a folder that exists
    study  the digest of the study it belongs to
    site   the site it belongs to

    Opening reads and verifies everything in it. Raises CSL-620 if another process has the file open, CSL-621 if a byte
    changed, CSL-622 for the file of another study, site or schema, CSL-623 if it cannot be written. The same codes hold
    for every call; one that raised has changed nothing.
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

    def find(self, name: bytes) -> Sealed | None:
        """See :meth:`Outbox.find`; what is returned was verified."""
        with self._reading():
            row = self._connection.execute(f"{_REPLY} WHERE name = ?", (name,)).fetchone()
            return None if row is None else self._verified(row)

    def put(self, name: bytes, sealed: Sealed) -> None:
        """See :meth:`Outbox.put`."""
        with self._change():
            if not _is_new(self.find(name), sealed):
                return
            number = self._last() + 1
            parts = tuple(sealed.parts.items())
            sha256 = _sha256_of(number, name, sealed.header, sealed.signature, parts)
            self._connection.execute(
                "INSERT INTO reply VALUES (?, ?, ?, ?, ?)", (number, name, sealed.header, sealed.signature, sha256)
            )
            self._connection.executemany(
                "INSERT INTO part VALUES (?, ?, ?, ?)",
                ((number, place, part, content) for place, (part, content) in enumerate(parts)),
            )
            self._connection.execute("DELETE FROM reply WHERE number <= ?", (number - KEPT,))
            self._connection.execute("DELETE FROM part WHERE reply <= ?", (number - KEPT,))
            self._write_last(number)

    def _begin(self) -> None:
        self._write_last(0)

    def _verify(self) -> None:
        last = self._last()
        numbers = []
        for row in self._connection.execute(f"{_REPLY} ORDER BY number"):
            self._verified(row)
            numbers.append(row[0])
        (strays,) = self._connection.execute(
            "SELECT count(*) FROM part WHERE reply NOT IN (SELECT number FROM reply)"
        ).fetchone()
        (state,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok" or strays or numbers != list(range(max(1, last - KEPT + 1), last + 1)):
            raise self._damaged(f"{len(numbers)} replies of {min(last, KEPT)}")

    def _last(self) -> int:
        """Return the number of the last reply, counted from 1; 0 for none."""
        rows = self._connection.execute("SELECT study, site, last, sha256 FROM head").fetchall()
        if len(rows) != 1:
            raise self._damaged("the head is missing")
        study, site, last, sha256 = rows[0]
        if row_sha256(b"consilium/outbox/head", (SCHEMA, study, site, last)) != sha256:
            raise self._damaged("the head was changed")
        if (study, site) != (self._study, self._site):
            raise ConsiliumError(errors.JOURNAL_FOREIGN, f"{self._path}: it is of {site} in study {study[:12]}")
        return int(last)

    def _write_last(self, last: int) -> None:
        row = (self._study, self._site, last)
        sha256 = row_sha256(b"consilium/outbox/head", (SCHEMA, *row))
        self._connection.execute("INSERT OR REPLACE INTO head VALUES (1, ?, ?, ?, ?)", (*row, sha256))

    def _verified(self, row: tuple[int, bytes, bytes, bytes, bytes]) -> Sealed:
        number, name, header, signature, sha256 = row
        parts = tuple(
            self._connection.execute("SELECT name, content FROM part WHERE reply = ? ORDER BY place", (number,))
        )
        if _sha256_of(number, name, header, signature, parts) != sha256:
            raise self._damaged("a reply was changed")
        return Sealed(header, Signature(signature), dict(parts))


def _is_new(kept: Sealed | None, sealed: Sealed) -> bool:
    if kept is not None and kept != sealed:
        raise ConsiliumError(errors.SECAGG_REPLAY, "this request has another reply already")
    return kept is None


def _sha256_of(
    number: int, name: bytes, header: bytes, signature: bytes, parts: tuple[tuple[str, bytes], ...]
) -> bytes:
    content = (value for part in parts for value in part)
    return row_sha256(b"consilium/outbox/reply", (number, name, header, signature, *content))
