"""`consilium-client backup | restore`: a hospital's home as one encrypted file, taken while the daemon runs.

Neither the ledger's anchor nor the journals of secure sums are ever in a backup: put back, they would say that nothing
happened since (RULES 5 and 18). So a restored ledger goes on only if an anchor that outlived the disk agrees with it;
else the site does not train before `ledger recover` has charged the worst case.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from client.commands import Home
from client.config import SiteConfig
from client.enrolment import FILE
from client.ledger.files import coded, copied, located, unchanging
from client.ledger.recovery import inspect
from common.archive import Member, name_below, seal, unseal, walk
from common.console import DEFAULT_SOURCE, HERE, Source, coded_errors
from common.errors import ConsiliumError
from common.keystore import read_identity, read_passphrase

_OF_SUMS = (".journal.sqlite", ".outbox.sqlite")
_OF_SQLITE = ("", "-wal", "-shm", "-journal")


def backup(
    file: Annotated[Path, typer.Argument(help="the backup to be written")],
    home: Home = HERE,
    passphrase: Source = DEFAULT_SOURCE,
) -> None:
    """Write keys, settings, studies, ledger and egress log into one encrypted file, and no record of a patient."""
    with coded_errors():
        outside = take(home, file, passphrase=read_passphrase(passphrase))
    typer.echo(f"written: {file}")
    for place in outside:
        typer.echo(f"not in it, since it lies outside {home}: {place}")


def restore(
    file: Annotated[Path, typer.Argument(help="a backup")],
    home: Home = HERE,
    passphrase: Source = DEFAULT_SOURCE,
) -> None:
    """Put a backup into an empty folder, and say what the ledger needs before this hospital trains again."""
    with coded_errors():
        reason = put_back(file, home, passphrase=read_passphrase(passphrase))
        config = SiteConfig.load(home / FILE)
    typer.echo(f"restored: {home}; put the records back yourself")
    if reason:
        anchor = f" --anchor {config.ledger.anchor}" if config.ledger.anchor else ""
        typer.echo(
            f"{reason}. It does not train before: consilium-client ledger recover --ledger {config.ledger_file}{anchor}"
        )


def take(home: Path, file: Path, *, passphrase: bytes) -> tuple[Path, ...]:
    """Write a backup; returns the configured places that lie outside the home and are not in it.

    passphrase  that of the keys: it encrypts the backup too
    Raises CSL-142, CSL-15x for a wrong passphrase, CSL-171, CSL-53x, CSL-211 or CSL-212 for a ledger to be recovered
    first, CSL-213.
    """
    config = SiteConfig.load(home / FILE)
    read_identity(config.keys.identity, passphrase)
    with TemporaryDirectory() as folder:
        seal(file, "client", passphrase, _members(home, config, Path(folder), file))
    places = (config.state, config.studies, config.keys.identity, config.keys.node, config.ledger_file)
    return tuple(place for place in places if name_below(home, place) is None)


def put_back(file: Path, home: Path, *, passphrase: bytes) -> str:
    """Restore a backup into an empty folder; returns why the ledger must be recovered, empty where it need not.

    Raises CSL-142, CSL-170, CSL-171, CSL-53x, CSL-217 for an anchor in its place that is another ledger's.
    """
    unseal(file, "client", passphrase, home)
    config = SiteConfig.load(home / FILE)
    path, anchor = located(config.ledger_file, config.ledger.anchor)
    if not path.exists() and not anchor.exists():
        return ""
    return inspect(path, anchor).reason


def _members(home: Path, config: SiteConfig, folder: Path, out: Path) -> Iterator[Member]:
    """Yield the ledger after the log of what left, so that it is never the older, and last what a start needs."""
    ledger, anchor = config.ledger_file, config.ledger.anchor
    left_out = {
        config.data.folder,
        config.features_folder,
        config.backbones_folder,
        config.state / "lock",
        *(ledger.with_name(ledger.name + suffix) for suffix in (*_OF_SQLITE, ".lock", ".anchor", ".recovered")),
        *(() if anchor is None else (anchor,)),
        home / FILE,
        out,
    }
    names = {name_below(home, place) for place in left_out}
    yield from walk(home, lambda name: name not in names and not _of_a_sum(name))
    place = name_below(home, ledger)
    if place is not None and (copy := _snapshot(ledger, anchor, folder)) is not None:
        yield place, copy
    yield PurePosixPath(FILE), home / FILE


def _of_a_sum(name: PurePosixPath) -> bool:
    return any(name.name.endswith(kind + suffix) for kind in _OF_SUMS for suffix in _OF_SQLITE)


def _snapshot(ledger: Path, anchor: Path | None, folder: Path) -> Path | None:
    """Return a copy of the ledger in one file, taken while writers wait; None where there is no ledger yet."""
    path, where = located(ledger, anchor)
    if not path.exists() and not where.exists():
        return None
    found = inspect(path, where)
    if found.reason:
        raise ConsiliumError(found.fault, f"{path}: {found.reason}")
    with coded(path):
        with unchanging(path):
            copy = copied(path, folder)
        assert copy is not None, "a sound ledger is there"
        whole = folder / "whole.sqlite"
        with closing(sqlite3.connect(copy)) as source, closing(sqlite3.connect(whole)) as target:
            source.backup(target)
        return whole
