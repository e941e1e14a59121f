"""A ledger's files: where they are, who may write in them, and how to read them without a trace.

The lock file serialises processes. Whoever only reads takes a private copy of the database and its log under that lock,
because opening the original would bring a killed site's log into it, and with the log what happened last.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from common import errors
from common.errors import ConsiliumError
from common.sqlite_files import FileFaults

WAIT_SECONDS = 30.0
_POLL_SECONDS = 0.002


def default_anchor(path: Path) -> Path:
    """Return where a ledger's anchor is if nothing else is said."""
    return path.with_name(path.name + ".anchor")


def located(path: Path, anchor: Path | None) -> tuple[Path, Path]:
    """Return the real places of a ledger and its anchor: what is put in place of a link would leave its disk behind."""
    real = Path(os.path.realpath(path))
    return real, Path(os.path.realpath(anchor or default_anchor(real)))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a ledger against every other process; raises CSL-213 where another holds it for too long."""
    with coded(path):
        handle = os.open(_lock(path), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    yield from _holding(handle, fcntl.LOCK_EX, path)


@contextmanager
def unchanging(path: Path) -> Iterator[None]:
    """Keep writers out while reading; raises CSL-213. Nothing is made: where no lock file is, there was no writer."""
    if not _lock(path).exists():
        yield
        return
    with coded(path):
        handle = os.open(_lock(path), os.O_RDONLY | os.O_CLOEXEC)
    yield from _holding(handle, fcntl.LOCK_SH, path)


def copied(path: Path, folder: Path) -> Path | None:
    """Copy a database with its log into a folder while writers are kept out; None where there is no database.

    Whoever closes the database last brings the log into it, outside the lock. So the log is copied first: reading it
    over a database that has it already, wholly or in part, gives the same. Raises CSL-214.
    """
    copy = folder / "ledger.sqlite"
    with coded(path):
        if not path.exists():
            return None
        with suppress(FileNotFoundError):
            shutil.copyfile(path.with_name(path.name + "-wal"), copy.with_name(copy.name + "-wal"))
        shutil.copyfile(path, copy)
    return copy


@contextmanager
def coded(path: Path) -> Iterator[None]:
    """Turn what SQLAlchemy, SQLite and the file system say into coded errors."""
    with _FAULTS.coded(path):
        try:
            yield
        except DBAPIError as error:
            if isinstance(error.orig, sqlite3.Error):
                raise error.orig from error
            raise


def _lock(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _holding(handle: int, kind: int, path: Path) -> Iterator[None]:
    try:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                fcntl.flock(handle, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > deadline:
                    raise ConsiliumError(errors.LEDGER_LOCKED, str(path)) from error
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(handle)


_FAULTS = FileFaults(errors.LEDGER_LOCKED, errors.LEDGER_UNWRITABLE, errors.LEDGER_DAMAGED)
