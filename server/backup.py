"""`consilium-server backup | restore`: an operator's home as one encrypted file, taken while the server runs.

The witnesses are copied last: they may know more of the sites' ledgers than the journal, never less. A journal in
PostgreSQL is its own administrator's to back up, and not in the file.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from common import errors
from common.archive import Member, name_below, seal, unseal, walk
from common.console import DEFAULT_SOURCE, HERE, Source, coded_errors
from common.keystore import read_identity, read_passphrase
from common.sqlite_files import FileFaults
from server.commands import Home
from server.config import ServerConfig
from server.enrolment import FILE

_DATABASES = ("journal.sqlite", "witnesses.sqlite")
_FAULTS = FileFaults(errors.OPERATOR_LOCKED, errors.OPERATOR_UNWRITABLE, errors.OPERATOR_DAMAGED)
_WAIT_SECONDS = 30.0


def backup(
    file: Annotated[Path, typer.Argument(help="the backup to be written")],
    home: Home = HERE,
    passphrase: Source = DEFAULT_SOURCE,
) -> None:
    """Write keys, sites, studies, journal, witnesses and releases into one encrypted file."""
    with coded_errors():
        missing = take(home, file, passphrase=read_passphrase(passphrase))
    typer.echo(f"written: {file}")
    for what in missing:
        typer.echo(f"not in it: {what}")


def restore(
    file: Annotated[Path, typer.Argument(help="a backup")],
    home: Home = HERE,
    passphrase: Source = DEFAULT_SOURCE,
) -> None:
    """Put a backup into an empty folder; studies go on from where it was taken."""
    with coded_errors():
        unseal(file, "server", read_passphrase(passphrase), home)
    typer.echo(f"restored: {home}; tell the sites, who may have answered more than it knows")


def take(home: Path, file: Path, *, passphrase: bytes) -> tuple[str, ...]:
    """Write a backup; returns what belongs to the server and is not in it.

    passphrase  that of the keys: it encrypts the backup too
    Raises CSL-142, CSL-15x for a wrong passphrase, CSL-171, CSL-54x, CSL-63x for a journal that cannot be read.
    """
    config = ServerConfig.load(home / FILE)
    read_identity(config.keys.identity, passphrase)
    with TemporaryDirectory() as folder:
        seal(file, "server", passphrase, _members(home, config, Path(folder), file))
    outside = (config.state, config.studies, config.sites, config.keys.identity, config.tls.key)
    missing = [f"{place}, which lies outside {home}" for place in outside if name_below(home, place) is None]
    if config.journal is not None:
        missing.append("the journal, whose address is given: back it up before this")
    return tuple(missing)


def _members(home: Path, config: ServerConfig, folder: Path, out: Path) -> Iterator[Member]:
    databases = [config.state / name for name in _DATABASES]
    left_out = {
        *(path.with_name(path.name + suffix) for path in databases for suffix in ("", "-wal", "-shm", ".lock")),
        *(() if config.backbone is None or config.backbone.folder is None else (config.backbone.folder,)),
        home / FILE,
        out,
    }
    names = {name_below(home, place) for place in left_out}
    yield from walk(home, lambda name: name not in names and not name.name.startswith(".making-"))
    for path in databases:
        place = name_below(home, path)
        if place is not None and path.exists():
            yield place, _snapshot(path, folder / path.name)
    yield PurePosixPath(FILE), home / FILE


def _snapshot(path: Path, target: Path) -> Path:
    """Copy a database through SQLite, as it was at one moment, whatever is being written."""
    with (
        _FAULTS.coded(path),
        closing(sqlite3.connect(path, timeout=_WAIT_SECONDS)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
    return target
