"""The site's own, durable record of privacy spent: accounts, the studies they pay for, and every charge.

A study commits its whole approved epsilon when it is joined; a charge is written down before anything is computed. The
rules live in :mod:`client.ledger.book`, which is pure; :class:`MemoryLedger` and :class:`SqliteLedger` keep a book.
"""

from client.ledger.book import Balance, Book, ChargeKey, Committed
from client.ledger.keeping import Ledger, MemoryLedger
from client.ledger.store import SqliteLedger

__all__ = ["Balance", "Book", "ChargeKey", "Committed", "Ledger", "MemoryLedger", "SqliteLedger"]
