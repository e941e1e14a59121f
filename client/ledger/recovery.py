"""Recovering a ledger that was damaged, lost its end, or was put back from an older copy: the worst case is charged.

Kept is the longest part of the chain that verifies. Every study in it, or known to the anchor, is charged in full. What
neither knows can only be guessed at: where the anchor is missing or changed, does not know all that the file or the
operator shows, or is of another branch, all that is left of every account is charged too. The file that was found
stays beside the new one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from client.ledger.anchor import Anchor, read_anchor
from client.ledger.book import Book
from client.ledger.entries import (
    MAX_COUNT,
    NAME_BYTES,
    SALT_BYTES,
    Begun,
    Covered,
    Entry,
    Exhausted,
    FoundBehind,
    Record,
    Recovered,
)
from client.ledger.files import coded, copied, located, locked, unchanging
from client.ledger.store import check_pages, engine, migrate, read_links, write_link
from common import errors
from common.chain import START, Link, extend, sound
from common.errors import ConsiliumError, Fault
from common.sqlite_files import create_private, sync_folder


@dataclass(frozen=True, slots=True)
class Found:
    """What is left of a ledger.

    links     the longest part of the chain that verifies
    entries   what stands in it
    newest    the highest number of any row, whether it verifies or not
    anchor    as it was read; None where there is none that can be
    believed  whether the anchor knows all that may have been lost
    behind    what was signed and is not here, as far as chain and anchor remember
    reason    why a recovery is needed; empty where none is
    fault     CSL-211 where something is not what was written, CSL-212 where it is only older
    """

    links: tuple[Link, ...]
    entries: tuple[Entry, ...]
    newest: int
    anchor: Anchor | None
    believed: bool
    behind: FoundBehind | None
    reason: str
    fault: Fault

    @property
    def last(self) -> Link:
        """The end of what verifies."""
        return self.links[-1] if self.links else START


def inspect(path: Path, anchor: Path | None = None) -> Found:
    """Read a ledger without changing a byte of its files, whatever state it is in.

    Raises CSL-212 where there is neither ledger nor anchor, CSL-213, CSL-214 where one cannot be read, CSL-217 where
    the anchor is another ledger's.
    """
    path, where = located(path, anchor)
    with coded(path), TemporaryDirectory() as folder:
        with unchanging(path):
            taken = _taken(path, where, Path(folder))
        return _found(taken)


def recover(
    path: Path, anchor: Path | None = None, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
) -> Found:
    """Charge the worst case and make the ledger usable again; returns what was found, with no reason if all was well.

    Raises what :func:`inspect` raises, CSL-213 and CSL-214. A kill at any point leaves a ledger that is charged in
    full, or one that still says that it must be recovered.
    """
    path, where = located(path, anchor)
    with locked(path):
        with coded(path), TemporaryDirectory() as folder:
            found = _found(_taken(path, where, Path(folder)))
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
        Anchor.of(links[-1], Book((*found.entries, *added))).write(where)
        _exchange(path, fresh)
    return found


def worst_case(found: Found) -> tuple[Entry, ...]:
    """Return the entries that follow what was found and charge all that may have been spent."""
    book = Book(found.entries)
    lost = _known_to_the_anchor(book, found.anchor)
    after = Book((*found.entries, *lost))
    full: list[Entry] = [
        Exhausted(account=balance.account, study=study.study)
        for balance in after.balances()
        for study in balance.studies
        if not study.exhausted
    ]
    known = found.anchor.spent if found.anchor is not None else ()
    full += [
        Exhausted(account=balance.account)
        for balance in after.balances()
        if not balance.exhausted and (balance.account in known or not found.believed)
    ]
    return (*lost, *full, _recovered(book, found))


@dataclass(frozen=True, slots=True)
class _Taken:
    """What was taken of a ledger's files while nobody wrote in them; verifying it keeps no site waiting.

    copy     of the database; None where there is none
    kept     the anchor, if there is one and it is what was written
    changed  what is wrong with an anchor that is not
    """

    path: Path
    where: Path
    copy: Path | None
    kept: Anchor | None
    changed: str


def _taken(path: Path, where: Path, folder: Path) -> _Taken:
    if not path.exists() and not where.exists():
        raise ConsiliumError(errors.LEDGER_BEHIND, f"neither {path} nor {where} is there")
    kept, changed = None, ""
    # The anchor first: it is written last, so that rows read after it hold what it names even beside a writer.
    try:
        kept = read_anchor(where)
    except ConsiliumError as error:
        if error.fault is not errors.LEDGER_DAMAGED:
            raise
        changed = error.detail
    return _Taken(path, where, copied(path, folder), kept, changed)


def _found(taken: _Taken) -> Found:
    kept, older = taken.kept, list[str]()
    rows, damage = _rows(taken)
    links, entries = _verified(rows)
    if taken.copy is None:
        older.append("the ledger is missing")
    if len(links) < len(rows):
        damage.append(f"entry {len(links) + 1} is not what was written")
    if taken.changed:
        damage.append(taken.changed)
    elif kept is None:
        older.append("the anchor is missing")
    book, newest = Book(entries), max((row.number for row in rows), default=START.number)
    behind, believed = book.behind, False
    if kept is not None:
        if book.ledger not in (None, kept.ledger):
            raise ConsiliumError(errors.LEDGER_ANCHOR, str(taken.where))
        goes_on = kept.head in {START.digest, *(link.digest for link in links)}
        if not goes_on:
            older.append(f"the anchor knows entry {kept.number}, the chain ends with {len(links)}")
            behind = _furthest(book.behind, kept.behind)
        another_branch = not goes_on and kept.number <= len(links)
        later_rows = len(links) < len(rows) and newest > kept.number
        believed = not (behind or kept.behind or another_branch or later_rows)
    if behind is not None:
        older.append(f"entry {behind.number} was signed and is not here")
    # A folder's name may hold bytes that are no text.
    reason = "; ".join((*damage, *older)).encode("utf-8", "backslashreplace").decode()
    fault = errors.LEDGER_DAMAGED if damage else errors.LEDGER_BEHIND
    return Found(links, entries, newest, kept, believed, behind, reason, fault)


def _known_to_the_anchor(book: Book, anchor: Anchor | None) -> tuple[Entry, ...]:
    """Return what an anchor, believed or not, adds to the entries that are left: its name, accounts and studies."""
    lost: list[Entry] = []
    if book.ledger is None:
        lost.append(Begun(ledger=os.urandom(NAME_BYTES).hex() if anchor is None else anchor.ledger))
    if anchor is not None:
        accounts = {entry.account for entry in book.accounts()}
        joined = {(entry.account, entry.study) for entry in book.studies()}
        lost += [entry for entry in anchor.accounts if entry.account not in accounts]
        lost += [entry for entry in anchor.studies if (entry.account, entry.study) not in joined]
    return tuple(lost)


def _recovered(book: Book, found: Found) -> Recovered:
    """Return the entry that begins a new era, and says what it answers for.

    With an anchor that is believed, that is what lies between the end of the chain here and the end that it knows. All
    of every account answers for more: for every entry up to those that anything showed, on whatever branch.
    """
    ends = {book.era: found.newest}
    kept = found.anchor
    for era, number in ((one.era, one.number) for one in (kept, found.behind) if one is not None):
        ends[era] = max(number, ends.get(era, 0))
    if not found.believed:
        covered = [Covered(era=era, above=0, number=min(number, MAX_COUNT)) for era, number in sorted(ends.items())]
    elif kept is not None and kept.number > found.last.number:
        covered = [Covered(era=kept.era, above=found.last.number, number=kept.number, head=kept.head)]
    else:
        covered = []
    return Recovered(reason=found.reason[:500], era=max(ends) + 1, covered=tuple(covered))


def _furthest(*missing: FoundBehind | None) -> FoundBehind | None:
    known = [one for one in missing if one is not None]
    return max(known, key=lambda one: (one.era, one.number), default=None)


def _rows(taken: _Taken) -> tuple[list[Link], list[str]]:
    """Return the rows that can still be read, and why not all could."""
    rows: list[Link] = []
    if taken.copy is None:
        return rows, []
    made = engine(taken.copy)
    try:
        with coded(taken.path), made.connect() as connection:
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
        create_private(path)
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
