"""What the operator keeps for a site to be shown again: where its ledger last ended, sealed by the site (RULES 18).

One row a site's *key*, whatever the study: a ledger belongs to a hospital, and a new process, or the first epoch of
another study, must carry what the last one saw. To the operator a row is bytes. An old row does no harm, and a lost one
loses only a witness: nothing is decided by it here. Studies that run at once share one file; of two replies of a site
the one taken in last is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from common import errors
from common.identity import PublicKey
from common.sqlite_files import FileFaults, SqliteFile

SCHEMA = 1
_TABLE = "CREATE TABLE witness (key BLOB PRIMARY KEY, sealed BLOB NOT NULL, sha256 BLOB NOT NULL) STRICT"
_WAIT_SECONDS = 30.0
_FAULTS = FileFaults(errors.OPERATOR_LOCKED, errors.OPERATOR_UNWRITABLE, errors.OPERATOR_DAMAGED)


class Witnesses(Protocol):
    """The last sealed head of each site's ledger, by the site's public key."""

    def of(self, key: PublicKey) -> bytes | None:
        """Return what a site showed last; None where it has shown nothing."""

    def keep(self, shown: Mapping[PublicKey, bytes]) -> None:
        """Replace what these sites showed before; durable when the call returns, for all of them or none."""


class MemoryWitnesses:
    """:class:`Witnesses` for one process's lifetime: for simulations, whose ledgers live no longer either."""

    def __init__(self) -> None:
        self._shown: dict[PublicKey, bytes] = {}

    def of(self, key: PublicKey) -> bytes | None:
        """Return what a site showed last."""
        return self._shown.get(key)

    def keep(self, shown: Mapping[PublicKey, bytes]) -> None:
        """Replace what these sites showed before."""
        self._shown.update(shown)


class SqliteWitnesses(SqliteFile):
    """:class:`Witnesses` in one SQLite file.

    path          made with mode 0600 where there is none, in a folder that exists
    wait_seconds  how long to wait for another process that writes

    A call that returned is on disk (WAL with ``synchronous = FULL``), and every row carries a SHA-256 that is compared
    whenever it is read; opening compares all of them. Raises CSL-630 if another process writes for too long, CSL-631 if
    a byte changed, CSL-632 for another schema, CSL-633 if the disk refuses. The same codes hold for every call; one
    that raised has changed nothing.
    """

    def __init__(self, path: Path, *, wait_seconds: float = _WAIT_SECONDS) -> None:
        super().__init__(
            path, _FAULTS, foreign=errors.OPERATOR_FOREIGN, schema=SCHEMA, tables=(_TABLE,), wait_seconds=wait_seconds
        )

    def of(self, key: PublicKey) -> bytes | None:
        """Return what a site showed last, verified."""
        with self._reading():
            found = self._connection.execute("SELECT key, sealed, sha256 FROM witness WHERE key = ?", (key,)).fetchone()
            return None if found is None else self._verified(found)

    def keep(self, shown: Mapping[PublicKey, bytes]) -> None:
        """Replace what these sites showed before, in one synced transaction."""
        rows = [(key, sealed, _sha256(key, sealed)) for key, sealed in shown.items()]
        with self._change():
            self._connection.executemany("INSERT OR REPLACE INTO witness VALUES (?, ?, ?)", rows)

    def _verify(self) -> None:
        (state,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if state != "ok":
            raise self._damaged(state)
        for row in self._connection.execute("SELECT key, sealed, sha256 FROM witness"):
            self._verified(row)

    def _verified(self, row: tuple[object, object, object]) -> bytes:
        key, sealed, sha256 = row
        if not (isinstance(key, bytes) and isinstance(sealed, bytes) and _sha256(key, sealed) == sha256):
            raise self._damaged("a row was changed")
        return sealed


def _sha256(key: bytes, sealed: bytes) -> bytes:
    """Return the digest of a row, in which the key's length parts the two."""
    return hashlib.sha256(b"consilium/witness\x00" + len(key).to_bytes(8, "big") + key + sealed).digest()
