"""Keeping a book: what a site asks of its ledger, and a ledger that lives in memory.

Whoever keeps one says how entries become durable (:meth:`Ledger._appending`); which entries may follow is the book's
affair, so that a simulated site is charged by the very rules of a hospital.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime

from client.ledger.book import Balance, Book, ChargeKey, Head
from client.ledger.entries import LEAST_CAP, NAME_BYTES, SALT_BYTES, Begun, Entry, Record
from common.chain import START, Link, extend
from common.parts import Digest
from common.privacy.plan import PrivacyPlan
from common.study import Unit

Append = Callable[[Entry | None], None]
"""Writes one entry down; nothing for None."""


class Ledger(ABC):
    """Where a site writes down what it spends. Every change is durable when the call returns.

    clock    for the times that people read
    entropy  source of its name and of the salts
    """

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._clock, self._entropy = clock, entropy
        self._lock = threading.RLock()
        self._book = Book()
        self._last: Link = START
        self._numbers: dict[Digest, int] = {START.digest: START.number}

    @property
    def name(self) -> str:
        """Return the 64 random hex digits with which the chain begins."""
        with self._lock:
            assert self._book.ledger is not None, "a ledger begins when it is made"
            return self._book.ledger

    def open_account(self, account: str, *, population: str, unit: Unit, epsilon: float, delta: float) -> None:
        """Open an account for a patient population; raises CSL-215 if there is one of this name.

        population      a sentence that says whose records these are
        unit            whom the caps are for; studies that promise by another unit are refused (RULES 8)
        epsilon, delta  the most that all studies together may commit
        """
        with self._appending() as append:
            append(self._book.open_account(account, population, unit, epsilon, delta))

    def join(self, account: str, study: Digest, plan: PrivacyPlan) -> None:
        """Commit a study's whole epsilon and delta to an account, once; see :meth:`Book.join` for what it raises."""
        with self._appending() as append:
            append(self._book.join(account, study, plan))

    def charge(self, key: ChargeKey) -> None:
        """Write down a charge before its reply is computed; see :meth:`Book.charge` for what it raises."""
        with self._appending() as append:
            append(self._book.charge(key))

    def close(self, account: str, study: Digest) -> None:
        """End a study's charges; it gives back what it committed only if there was none."""
        with self._appending() as append:
            append(self._book.close(account, study))

    def charges(self, study: Digest) -> tuple[ChargeKey, ...]:
        """Return a study's charges in the order in which they were made."""
        with self._lock:
            return self._book.charges(study)

    def balances(self) -> tuple[Balance, ...]:
        """Return every account in order of its name."""
        with self._lock:
            return self._book.balances()

    def head(self) -> Head:
        """Return where the chain ends."""
        with self._lock:
            return Head(self._book.era, self._last.number, self._last.digest)

    def vouch(self, shown: Head | None) -> None:
        """Check that nothing this site signed is missing here; raises CSL-212, and writes down what it was.

        shown  a head that this site signed before, if somebody kept one. One from before a recovery is covered by it
               if it is not beyond what the recovery knew

        Once something is missing this raises whatever is shown, so that nobody can ask what it was.
        """
        with self._appending() as append:
            if shown is not None and not self._holds(shown):
                append(self._book.behind_by(shown))
            self._book.check_whole()

    def _holds(self, head: Head) -> bool:
        return self._numbers.get(head.digest) == head.number or self._book.covers(head)

    @abstractmethod
    def _appending(self) -> AbstractContextManager[Append]:
        """Return a context in which the book is up to date and nobody else writes, and what writes an entry down."""

    def _record(self, entry: Entry) -> Record:
        return Record(
            at=self._clock().strftime("%Y-%m-%dT%H:%M:%SZ"), salt=self._entropy(SALT_BYTES).hex(), entry=entry
        )

    def _take(self, link: Link, entry: Entry) -> None:
        """Take in an entry that is written down."""
        self._book.add(entry)
        self._last = link
        self._numbers[link.digest] = link.number


class MemoryLedger(Ledger):
    """A ledger for one process's lifetime, for simulated sites, whose patients are not real.

    A study that asks for an account which does not exist has it opened, as large as the study needs.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        entropy: Callable[[int], bytes] = os.urandom,
    ) -> None:
        super().__init__(clock=clock, entropy=entropy)
        with self._appending() as append:
            append(Begun(ledger=entropy(NAME_BYTES).hex()))

    def join(self, account: str, study: Digest, plan: PrivacyPlan) -> None:
        """Commit a study; see :class:`Ledger`."""
        if account not in {balance.account for balance in self.balances()}:
            epsilon = max(plan.epsilon(), LEAST_CAP)
            self.open_account(account, population="simulated", unit=plan.unit, epsilon=epsilon, delta=plan.delta)
        super().join(account, study, plan)

    @contextmanager
    def _appending(self) -> Iterator[Append]:
        def append(entry: Entry | None) -> None:
            if entry is not None:
                # Nobody reads these bytes again, so their form is free; the canonical one is slow for large cohorts.
                self._take(extend(self._last, self._record(entry).model_dump_json().encode()), entry)

        with self._lock:
            yield append
