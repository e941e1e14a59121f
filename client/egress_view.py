"""What left this site as people look at it again and again: summed up by day, with the last entries, and verified.

A log grows by some ten thousand lines a day. So what was verified once in this process is not read anew: a look goes on
where the last one ended, and begins again where the file is not the one that was read.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass
from pathlib import Path

from client.egress_log import Control, Entry, Payload, Torn, read_on
from common.chain import START, Link
from common.parts import Digest

_LAST = 100


@dataclass(frozen=True, slots=True)
class DayLine:
    """All that left on one day, in UTC, at one stage or by one call of the link.

    study      first digits; empty for a call of the link
    guarantee  under which it left
    """

    day: str
    study: str
    what: str
    times: int
    total_bytes: int
    guarantee: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The log as it was found.

    days    the latest first, replies before the link's own calls
    last    the latest entries that are no calls of the link, the latest first
    torn    lines that a crash cut short, whose bytes were never sent
    head    digest of the whole chain
    """

    entries: int
    replies: int
    reply_bytes: int
    link_bytes: int
    torn: int
    days: tuple[DayLine, ...]
    last: tuple[Payload | Torn, ...]
    head: Digest


class EgressView:
    """Looks at one log; may be called by several threads. Raises CSL-603 where it is not what was written."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._forget()

    def _forget(self) -> None:
        self._link: Link = START
        self._end = self._file = self._torn = 0
        self._times: Counter[tuple[str, str, str, str]] = Counter()
        self._bytes: Counter[tuple[str, str, str, str]] = Counter()
        self._last: deque[Payload | Torn] = deque(maxlen=_LAST)

    def look(self) -> Seen:
        """Take in what was written since, and return the whole; a log that is not there yet is an empty one."""
        with self._lock:
            if self._is_another():
                self._forget()
            if self._path.exists():
                try:
                    for entry, link, end in read_on(self._path, self._link, self._end):
                        self._take(entry)
                        self._link, self._end = link, end
                except BaseException:
                    # Half a look must not pass for a whole one.
                    self._forget()
                    raise
                self._file = self._path.stat().st_ino
            return self._seen()

    def _is_another(self) -> bool:
        """Return whether the file was put in another's place, or is shorter than what was read of it."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return True
        return found.st_ino != self._file or found.st_size < self._end

    def _take(self, entry: Entry) -> None:
        match entry:
            case Payload():
                key = entry.time[:10], entry.study[:16], entry.stage.value, entry.guarantee
                size = entry.total_bytes
            case Control():
                key = entry.time[:10], "", entry.method, f"the link's own call, to {entry.peer}"
                size = entry.sent
            case Torn():
                self._torn += 1
                self._last.append(entry)
                return
        if isinstance(entry, Payload):
            self._last.append(entry)
        self._times[key] += 1
        self._bytes[key] += size

    def _seen(self) -> Seen:
        order = sorted(self._times, key=lambda key: (not key[1], *key[1:]))
        order.sort(key=lambda key: key[0], reverse=True)
        days = tuple(
            DayLine(day, study, what, self._times[key], self._bytes[key], guarantee)
            for key in order
            for day, study, what, guarantee in (key,)
        )
        return Seen(
            entries=self._link.number,
            replies=sum(line.times for line in days if line.study),
            reply_bytes=sum(line.total_bytes for line in days if line.study),
            link_bytes=sum(line.total_bytes for line in days if not line.study),
            torn=self._torn,
            days=days,
            last=tuple(reversed(self._last)),
            head=self._link.digest,
        )
