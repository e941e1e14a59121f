"""The anchor: what a ledger last was, in a file of its own outside the database (RULES 18).

It is written after each change. A database whose chain does not contain the anchor's digest was put back from an older
copy, or lost its end. The anchor also lists accounts and studies, so that a recovery can charge the worst case for
what the database no longer knows. Keep it where the database's backups do not reach.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import rfc8785
from pydantic import Field, ValidationError

from client.ledger.book import Head
from client.ledger.entries import AccountOpened, Entry, Exhausted, StudyJoined
from common import errors
from common.chain import START
from common.errors import ConsiliumError
from common.study import Hex32, Part

STANDING = (AccountOpened, StudyJoined, Exhausted)
"""What must not be forgotten when the database is: charges are not among them, since studies commit in full."""


class Anchor(Part):
    """Where the chain ended, every account and study in it, and the accounts that a recovery has spent.

    ledger  the chain's own random name
    """

    format: Literal["consilium-ledger-anchor/1"] = "consilium-ledger-anchor/1"
    ledger: Hex32
    era: int = Field(default=0, ge=0)
    number: int = Field(default=START.number, ge=0)
    head: Hex32 = START.digest
    accounts: tuple[AccountOpened, ...] = ()
    studies: tuple[StudyJoined, ...] = ()
    exhausted: tuple[Exhausted, ...] = ()

    @classmethod
    def of(cls, ledger: str, head: Head, entries: Iterable[Entry]) -> Anchor:
        """Make the anchor of a chain from its head and those of its entries that are :data:`STANDING`."""
        kept = tuple(entries)
        return cls(
            ledger=ledger,
            era=head.era,
            number=head.number,
            head=head.digest,
            accounts=tuple(entry for entry in kept if isinstance(entry, AccountOpened)),
            studies=tuple(entry for entry in kept if isinstance(entry, StudyJoined)),
            exhausted=tuple(entry for entry in kept if isinstance(entry, Exhausted)),
        )

    def write(self, path: Path) -> None:
        """Put the anchor in place of the one before, synced: after a crash there is one or the other, never a part.

        Raises CSL-214.
        """
        body = rfc8785.dumps(self.model_dump(mode="json"))
        fresh = path.with_name(path.name + ".new")
        try:
            with open(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            sync_folder(path.parent)
        except OSError as error:
            raise ConsiliumError(errors.LEDGER_UNWRITABLE, f"{path}: {error.strerror}") from error


def read_anchor(path: Path) -> Anchor | None:
    """Read an anchor; None where there is no file. Raises CSL-211 for one that is not what was written."""
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConsiliumError(errors.LEDGER_UNWRITABLE, f"{path}: {error.strerror}") from error
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ConsiliumError(errors.LEDGER_DAMAGED, f"{path}: the anchor was changed")
    try:
        return Anchor.model_validate_json(body)
    except (ValidationError, RecursionError) as error:
        raise ConsiliumError(errors.LEDGER_DAMAGED, f"{path}: the anchor cannot be read") from error


def sync_folder(folder: Path) -> None:
    """Make a folder's names durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
