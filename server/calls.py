"""What the audit log says of late: its calls by name and status, from the end of the file and never beyond a bound."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from common import errors
from common.errors import ConsiliumError
from common.link.fleet_app import PATHS

MOST_BYTES = 16 << 20
"""The most that is read of a log, about a hundred thousand calls."""
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class CallLine:
    """Every call of one name that was answered with one status; ``name`` is ``other`` for a path that is not ours."""

    name: str
    status: int
    count: int
    received: int
    sent: int


@dataclass(frozen=True, slots=True)
class Calls:
    """A summary of the calls since a moment.

    is_whole    whether the log was read back to that moment, or to its beginning
    since       of the oldest call that was counted, in seconds; None where there was none
    unreadable  lines that are none: the last one may be in the midst of being written
    """

    lines: tuple[CallLine, ...]
    is_whole: bool
    since: float | None
    unreadable: int

    @property
    def total(self) -> int:
        """How many calls there were."""
        return sum(line.count for line in self.lines)

    @property
    def refused(self) -> int:
        """How many of them were refused."""
        return sum(line.count for line in self.lines if line.status >= 400)


def calls(path: Path, since: float, *, most_bytes: int = MOST_BYTES) -> Calls:
    """Summarise the calls since a moment, in seconds; raises CSL-633 for a log that cannot be read."""
    counts, received, sent = (Counter[tuple[str, int]]() for _ in range(3))
    oldest: float | None = None
    unreadable = 0
    last, is_whole = _last_lines(path, most_bytes)
    for line in filter(None, reversed(last)):
        try:
            found = json.loads(line)
            at, status = float(found["at"]), int(found["status"])
            up, down = int(found["received"]), int(found["sent"])
            key = _name(str(found["path"]), status), status
        except (ValueError, KeyError, TypeError, RecursionError):
            unreadable += 1
            continue
        if at < since:
            is_whole = True
            break
        oldest = at if oldest is None else min(at, oldest)
        counts[key] += 1
        received[key] += up
        sent[key] += down
    lines = tuple(
        CallLine(name, status, count, received[name, status], sent[name, status])
        for (name, status), count in sorted(counts.items())
    )
    return Calls(lines, is_whole, oldest, unreadable)


def _name(path: str, status: int) -> str:
    return path.rpartition("/")[2] if path in PATHS and status != 404 else "other"


def _last_lines(path: Path, most_bytes: int) -> tuple[list[bytes], bool]:
    """Return a file's last lines and whether they are all of it; none where it is not there yet."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            file.seek(start)
            lines = file.read(most_bytes).split(b"\n")
    except FileNotFoundError:
        return [], True
    except OSError as error:
        raise ConsiliumError(errors.OPERATOR_UNWRITABLE, f"{path}: {error.strerror}") from error
    # The first of a part begins in its midst.
    return lines[start > 0 :], start == 0
