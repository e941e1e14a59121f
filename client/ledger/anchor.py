"""The anchor: what a ledger last was, in a file of its own outside the database (RULES 18).

It is written after each change. A database whose chain does not contain the anchor's digest was put back from an older
copy, or lost its end. The anchor also lists what must not be forgotten when the database is: accounts, studies, and
what was found to be missing. Charges are not among them, since studies commit in full. Keep it where the database's
backups do not reach.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Literal

import rfc8785
from pydantic import ValidationError

from client.ledger.book import Book
from client.ledger.entries import AccountOpened, Count, FoundBehind, StudyJoined
from common import errors
from common.chain import START, Link
from common.errors import ConsiliumError
from common.parts import Hex32, Name, Part
from common.sqlite_files import sync_folder


class Anchor(Part):
    """Where the chain ended, and what must be known if that end is lost.

    ledger  the chain's own random name
    spent   accounts of which a recovery has charged all
    behind  what was found to be missing and is not recovered yet
    """

    format: Literal["consilium-ledger-anchor/1"] = "consilium-ledger-anchor/1"
    ledger: Hex32
    era: Count = 0
    number: Count = START.number
    head: Hex32 = START.digest
    accounts: tuple[AccountOpened, ...] = ()
    studies: tuple[StudyJoined, ...] = ()
    spent: tuple[Name, ...] = ()
    behind: FoundBehind | None = None

    @classmethod
    def of(cls, last: Link, book: Book) -> Anchor:
        """Make the anchor of a chain that has begun, from its last entry and what its entries amount to."""
        assert book.ledger is not None, "a chain has its name from its first entry on"
        return cls(
            ledger=book.ledger,
            era=book.era,
            number=last.number,
            head=last.digest,
            accounts=book.accounts(),
            studies=book.studies(),
            spent=book.spent_accounts(),
            behind=book.behind,
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
