"""What a site writes down before it sends anything, so that a restart neither goes back nor says two things (RULES 5).

The session is pure; where a journal keeps this is its own affair. A hospital's is on disk, synced and locked
(:mod:`client.journal`); :class:`MemoryJournal` serves simulated sites and tests.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from common import errors
from common.errors import ConsiliumError


@dataclass(frozen=True, slots=True, repr=False)
class Entry:
    """One reply, written down before it is sent.

    name      32 bytes, digest of the request that it answers
    step      which step was taken, the value of a :class:`~common.secagg.transitions.Step`
    instance  the highest that was opened by then, 0 for none
    view      32 bytes once a view was signed, else empty
    reply     the bytes that leave
    """

    name: bytes
    step: str
    instance: int
    view: bytes
    reply: bytes


class Journal(Protocol):
    """Where a site's session keeps what it must not forget. Every change is durable when the call returns."""

    def floor(self) -> int:
        """Return the highest instance that was ever opened, 0 for none."""

    def replies(self) -> Mapping[bytes, bytes]:
        """Return the replies of the current epoch by the names of their requests."""

    def opened(self, instance: int) -> None:
        """Note that an instance is opened; raises CSL-405 for one that is not above the floor."""

    def write(self, entry: Entry) -> None:
        """Keep one reply."""

    def new_epoch(self) -> None:
        """Drop the replies of the epoch before; the floor stays."""


class MemoryJournal:
    """A journal for one process's lifetime."""

    def __init__(self) -> None:
        self._floor = 0
        self._replies: dict[bytes, bytes] = {}

    def floor(self) -> int:
        """Return the highest instance that was ever opened; see :class:`Journal`."""
        return self._floor

    def replies(self) -> Mapping[bytes, bytes]:
        """Return the replies of the current epoch; see :class:`Journal`."""
        return self._replies

    def opened(self, instance: int) -> None:
        """Note that an instance is opened; see :class:`Journal`."""
        if instance <= self._floor:
            raise ConsiliumError(errors.SECAGG_REPLAY, f"instance {instance} after {self._floor}")
        self._floor = instance

    def write(self, entry: Entry) -> None:
        """Keep one reply; see :class:`Journal`."""
        self._replies[entry.name] = entry.reply

    def new_epoch(self) -> None:
        """Drop the replies of the epoch before; see :class:`Journal`."""
        self._replies.clear()
