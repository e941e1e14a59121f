"""Private counts, kept apart from public numbers by their type.

How many units or records a site holds, or drew, may steer a computation on site; dividing by it, sending it or printing
it tells of each single unit. A :class:`PrivateCount` has no arithmetic and no text, so that a divisor, a message or a
log line made of one is an error to the type checker and at run time. Public numbers (a plan's, a band) are plain ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, repr=False)
class PrivateCount:
    """A number that depends on who is in the data; at least 0."""

    _value: int = field(repr=False)

    def on_site(self) -> int:
        """Return the number, for sampling, memory and loops on site; never for a divisor, a message or a log."""
        return self._value

    def __repr__(self) -> str:
        return "PrivateCount(withheld)"
