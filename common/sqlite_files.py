"""SQLite files that their owner alone may read, and what SQLite and the file system say of them, as coded errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
