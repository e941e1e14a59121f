"""SQLite files that their owner alone may read, and what SQLite and the file system say of them, as coded errors."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from common.errors import ConsiliumError, Fault


def create_private(path: Path) -> None:
    """Make a file with mode 0600, durably, or narrow the mode of the one that is there.

    A file that is there is never opened here: closing it again would drop the lock of this process on it (POSIX).
    """
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        path.chmod(0o600)
        return
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def row_sha256(kind: bytes, row: tuple[object, ...]) -> bytes:
    """Return the SHA-256 of a row of one kind of file: each value's type, length and bytes."""
    digest = hashlib.sha256(kind + b"\x00")
    for value in row:
        raw = value if isinstance(value, bytes) else str(value).encode()
        digest.update(f"{type(value).__name__} {len(raw)} ".encode())
        digest.update(raw)
    return digest.digest()


@dataclass(frozen=True, slots=True)
class FileFaults:
    """The faults of one kind of file.

    locked      another process holds it
    unwritable  the disk is full, or the file may not be written
    damaged     it is not what was written
    """

    locked: Fault
    unwritable: Fault
    damaged: Fault

    @contextmanager
    def coded(self, path: Path) -> Iterator[None]:
        """Turn what is raised inside into coded errors that name the file."""
        try:
            yield
        except sqlite3.Error as error:
            raise self.of(path, error) from error
        except UnicodeDecodeError as error:
            raise ConsiliumError(self.damaged, f"{path}: a text was changed") from error
        except (OSError, OverflowError) as error:
            raise ConsiliumError(self.unwritable, f"{path}: {error}") from error

    def of(self, path: Path, error: sqlite3.Error) -> ConsiliumError:
        """Return the coded error for an SQLite error."""
        # Extended codes carry the primary one in their lowest byte.
        primary = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            fault = self.locked
        else:
            fault = self.unwritable if primary in _UNWRITABLE else self.damaged
        return ConsiliumError(fault, f"{path}: {error}")


class SqliteFile(ABC):
    """One SQLite file whose every call is coded, and whose every change is one synced transaction.

    path          made with mode 0600 where there is none, in a folder that exists
    faults        what is raised for the file
    foreign       the fault for a file of another schema
    schema        number of the one that is known, and the statements that make its ``tables``
    wait_seconds  how long to wait for another process that writes
    exclusive     hold the file against every other process until it is closed

    A call that returned is on disk (WAL with ``synchronous = FULL``); one that raised has changed nothing.
    """

    def __init__(
        self,
        path: Path,
        faults: FileFaults,
        *,
        foreign: Fault,
        schema: int,
        tables: Sequence[str],
        wait_seconds: float,
        exclusive: bool = False,
    ) -> None:
        self._path, self._faults, self._lock = path, faults, threading.RLock()
        self._exclusive = exclusive
        with self._coded():
            create_private(path)
            self._connection = sqlite3.connect(
                path, timeout=wait_seconds, isolation_level=None, check_same_thread=False
            )
        try:
            self._open(foreign, schema, tables)
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; nothing can be read or written afterwards."""
        with self._lock:
            self._connection.close()

    def _open(self, foreign: Fault, schema: int, tables: Sequence[str]) -> None:
        with self._coded():
            if self._exclusive:
                # Taken by the first transaction and, in this mode, never given back before the file is closed.
                self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            # A commit syncs the log alone: one sync, where a rollback journal takes five. Both are on disk after it.
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
        with self._change():
            (found,) = self._connection.execute("PRAGMA user_version").fetchone()
            (there,) = self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            if found == 0 and there == 0:
                for table in tables:
                    self._connection.execute(table)
                self._connection.execute(f"PRAGMA user_version = {schema}")
                self._begin()
            elif found != schema:
                raise ConsiliumError(foreign, f"{self._path}: schema {found}")
            self._verify()

    def _begin(self) -> None:
        """Write what a new file holds from the start."""
        return

    @abstractmethod
    def _verify(self) -> None:
        """Compare everything in the file with what was written; raises the coded error for a byte that changed."""

    def _damaged(self, seen: str) -> ConsiliumError:
        return ConsiliumError(self._faults.damaged, f"{self._path}: {seen}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keep other threads out of what is inside, and code what it raises."""
        with self._lock, self._coded():
            yield

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Make one transaction of what is inside: all of it is on disk afterwards, or none."""
        with self._reading():
            self._connection.execute("BEGIN EXCLUSIVE" if self._exclusive else "BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already.
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    def _coded(self) -> AbstractContextManager[None]:
        return self._faults.coded(self._path)


_UNWRITABLE = frozenset(
    (
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_TOOBIG,
        sqlite3.SQLITE_MISUSE,
    )
)
"""Every other code says that the file is not what was written."""
