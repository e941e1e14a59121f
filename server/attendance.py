"""Who is connected, and how long a coordinator waits for whom: one deadline of a round, from which the rest follows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common.messages import Stage

_COMPUTING = 0.6
"""Share of a round in which sites compute; the stages around it have a tenth of the rest each."""
_TALKING = 0.08
_LEAST = 3.0
"""Seconds that a stage of talking has at least: a busy machine is not a lost site."""


class Attendance(Protocol):
    """What a coordinator can know of connections, beside what its grid delivers."""

    def connection(self, node: int) -> str | None:
        """Return what names a node's present connection; None while it has none."""

    def wait(self, seconds: float) -> bool:
        """Wait for somebody to connect or go, at most so long; returns False where nobody will."""


class Everyone:
    """All nodes are here from the beginning, as in one process."""

    def connection(self, node: int) -> str | None:
        """Return the same for ever."""
        del node
        return ""

    def wait(self, seconds: float) -> bool:
        """Return at once."""
        del seconds
        return False


@dataclass(frozen=True, slots=True)
class Deadline:
    """How long a round may take from its first request to its sum, in seconds; None waits for ever.

    A stage has its share. A site that is not connected is waited for as long as a stage of talking, and so is a quorum
    that is there while others are still missing; for the quorum itself a whole round.
    """

    seconds: float | None = None

    def of(self, stage: Stage) -> float | None:
        """Return how long a stage may take."""
        if self.seconds is None:
            return None
        return self.seconds * _COMPUTING if stage in (Stage.FIT, Stage.COUNTS) else self.patience

    @property
    def patience(self) -> float:
        """Return how long somebody who is not connected is waited for."""
        return 0.0 if self.seconds is None else max(_LEAST, self.seconds * _TALKING)
