"""Recovering a ledger that was damaged, lost its end, or was put back from an older copy: the worst case is charged.

Kept is the longest part of the chain that verifies. Every study in it, or known to the anchor, is charged in full. What
neither knows can only be guessed at: where the anchor is missing, changed, or itself older than what the site signed,
all that is left of every account is charged too. The file that was found stays beside the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from client.ledger.anchor import Anchor, read_anchor, sync_folder
from client.ledger.book import Book, Head
from client.ledger.entries import NAME_BYTES, SALT_BYTES, Begun, Entry, Exhausted, Record, Recovered
from client.ledger.store import (
    check_pages,
    coded,
    create,
    default_anchor,
    engine,
    locked,
    migrate,
    read_links,
    write_link,
)
from common import errors
from common.chain import START, Link, extend, sound
from common.errors import ConsiliumError


@dataclass(frozen=True, slots=True)
class Found:
    """What is left of a ledger.

    links    the longest part of the chain that verifies
    entries  what stands in it
    anchor   None where there is none that can be believed
    reason   why a recovery is needed; empty where none is
    """

    links: tuple[Link, ...]
    entries: tuple[Entry, ...]
    anchor: Anchor | None
    reason: str

    @property
    def last(self) -> Link:
        """The end of what verifies."""
        return self.links[-1] if self.links else START


def inspect(path: Path, anchor: Path | None = None) -> Found:
    """Read a ledger without changing it, whatever state it is in.

    Raises CSL-212 where there is neither ledger nor anchor.
    """
    where = anchor or default_anchor(path)
    if not path.exists() and not where.exists():
        raise ConsiliumError(errors.LEDGER_BEHIND, f"neither {path} nor {where} is there")
    rows, reasons = _rows(path)
    links, entries = _verified(rows)
    if len(links) < len(rows):
        reasons.append(f"entry {len(links) + 1} is not what was written")
    try:
        believed = read_anchor(where)
        if believed is None:
            reasons.append("the anchor is missing")
    except ConsiliumError as error:
        believed = None
        reasons.append(error.detail)
    if believed is not None and links and believed.ledger != Book(entries).ledger:
        raise ConsiliumError(errors.LEDGER_ANCHOR, str(where))
    if believed is not None and believed.head not in {START.digest, *(link.digest for link in links)}:
        reasons.append(f"the anchor knows entry {believed.number}, the chain ends with {len(links)}")
    if (behind := Book(entries).behind) is not None:
        reasons.append(f"entry {behind.number} was signed and is not here")
        believed = None
    return Found(links, entries, believed, "; ".join(reasons))


def recover(
    path: Path, anchor: Path | None = None, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Found:
    """Charge the worst case and make the ledger usable again; returns what was found, with no reason if all was well.

    Raises what :func:`inspect` raises, CSL-213 and CSL-214. A kill at any point leaves a ledger that is charged in
    full, or one that still says that it must be recovered.
    """
    where = anchor or default_anchor(path)
    with locked(path):
        found = inspect(path, where)
        if not found.reason:
            return found
        added = worst_case(found)
        links = list(found.links)
        for entry in added:
            moment = clock().strftime("%Y-%m-%dT%H:%M:%SZ")
            record = Record(at=moment, salt=os.urandom(SALT_BYTES).hex(), entry=entry)
            links.append(extend(links[-1] if links else START, record.canonical()))
        fresh = path.with_name(path.name + ".recovered")
        _write(fresh, links)
        # The anchor first: a kill between here and the exchange finds the old file behind it, and recovers once more.
        book = Book((*found.entries, *added))
        head = Head(book.era, links[-1].number, links[-1].digest)
        assert book.ledger is not None
        Anchor.of(book.ledger, head, (*found.entries, *added)).write(where)
        _exchange(path, fresh)
    return found


def worst_case(found: Found) -> tuple[Entry, ...]:
    """Return the entries that follow what was found and charge all that may have been spent."""
    book, kept = Book(found.entries), found.anchor
    accounts = {balance.account: balance for balance in book.balances()}
    joined = {(name, study.study) for name, balance in accounts.items() for study in balance.studies}
    lost: list[Entry] = []
    if book.ledger is None:
        lost.append(Begun(ledger=kept.ledger if kept is not None else os.urandom(NAME_BYTES).hex()))
    if kept is not None:
        lost += [account for account in kept.accounts if account.account not in accounts]
        lost += [study for study in kept.studies if (study.account, study.study) not in joined]
    after = Book((*found.entries, *lost))
    full: list[Entry] = [
        Exhausted(account=balance.account, study=study.study)
        for balance in after.balances()
        for study in balance.studies
        if not study.exhausted
    ]
    if kept is None:
        full += [Exhausted(account=balance.account) for balance in after.balances()]
    else:
        full += [
            entry for entry in kept.exhausted if entry.study is None and not after.balance(entry.account).exhausted
        ]
    shown = [(book.era, found.last.number)]
    shown += [(kept.era, kept.number)] if kept is not None else []
    shown += [(book.behind.era, book.behind.number)] if book.behind is not None else []
    era, number = max(shown)
    return (*lost, *full, Recovered(reason=found.reason[:500], era=era, number=number))


def _rows(path: Path) -> tuple[list[Link], list[str]]:
    """Return the rows that can still be read, and why not all could."""
    if not path.exists():
        return [], ["the ledger is missing"]
    made = engine(path, reading=True)
    rows: list[Link] = []
    try:
        with coded(path), made.connect() as connection:
            while batch := read_links(connection, rows[-1].number + 1 if rows else 1, at_most=1000):
                rows += batch
            check_pages(connection)
    except ConsiliumError as error:
        return rows, [error.detail]
    finally:
        made.dispose()
    return rows, []


def _verified(rows: Iterable[Link]) -> tuple[tuple[Link, ...], tuple[Entry, ...]]:
    """Return the longest part of a chain in which every digest is right and every entry can follow the one before."""
    links: list[Link] = []
    entries: list[Entry] = []
    book = Book()
    for link in sound(rows):
        try:
            entry = Record.from_canonical(link.body).entry
            book.add(entry)
        except ConsiliumError:
            break
        links.append(link)
        entries.append(entry)
    return tuple(links), tuple(entries)


def _write(path: Path, links: Iterable[Link]) -> None:
    with coded(path):
        path.unlink(missing_ok=True)
        create(path)
        made = engine(path)
        try:
            with made.begin() as connection:
                migrate(connection)
                for link in links:
                    write_link(connection, link)
        finally:
            # Closing the last connection brings everything from the write-ahead log into the file.
            made.dispose()


def _exchange(path: Path, fresh: Path) -> None:
    """Put the new file in place of the old one, which stays beside it under a name of its own."""
    with coded(path):
        number = 1
        while (aside := path.with_name(f"{path.name}.set-aside-{number}")).exists():
            number += 1
        for suffix in ("", "-wal"):
            if (old := path.with_name(path.name + suffix)).exists():
                shutil.copy2(old, aside.with_name(aside.name + suffix))
        # A log left beside another database would be applied to it.
        for suffix in ("-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        fresh.replace(path)
        sync_folder(path.parent)
