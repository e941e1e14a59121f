"""Where a study stands between two stages: all that a new process needs to go on with it, and where that is kept.

A coordinator keeps its progress after every stage, before it asks for the next; a simulation keeps none. What is kept
is what the operator sees anyway: sealed messages, masked vectors, decoded sums.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.identity import SiteId
from common.secagg import Sum
from server.aggregation import Vector


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """What the operator learns from one round, and all of it."""

    round_index: int
    attempt: int
    survivors: tuple[SiteId, ...]
    update_norm: float
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True, slots=True)
class Progress:
    """A study between two stages.

    instance   number of the sum that is under way or was the last, 0 before the first
    attempt    of that sum, from 0
    rounds     how many are done
    under_way  whether that sum has begun and has no result yet
    vector     (dimension,) float32, the global vector after those rounds
    optimizer  the server optimiser's own state, empty where it has none
    session    the epoch as :meth:`common.secagg.ServerSession.store` wrote it; empty where none is open
    """

    instance: int
    attempt: int
    rounds: int
    under_way: bool
    vector: Vector
    optimizer: bytes = b""
    session: bytes = b""


@dataclass(frozen=True, slots=True)
class Ending:
    """How a study's evaluation ended.

    counts         the sum of the noised cells; None where none was agreed or none came about
    not_evaluated  why no counts came about
    """

    counts: NDArray[np.int64] | None
    survivors: tuple[SiteId, ...] = ()
    instance: int = 0
    not_evaluated: str = ""

    @classmethod
    def of(cls, counts: Sum | None, not_evaluated: str) -> Ending:
        """Return the ending that a coordinator has come to."""
        if counts is None:
            return cls(None, not_evaluated=not_evaluated)
        return cls(np.asarray(counts.values, dtype=np.int64), counts.survivors, counts.instance)


class StudyJournal(Protocol):
    """One study's durable record. A call that returned is on disk, whole; one that raised has changed nothing."""

    def progress(self) -> Progress | None:
        """Return where the study stands; None before anything was kept."""

    def rounds(self) -> tuple[RoundRecord, ...]:
        """Return every round that is done, in order."""

    def keep(self, progress: Progress, done: RoundRecord | None = None) -> None:
        """Replace where the study stands and, in the same transaction, add the round that is now done."""

    def end(self, ending: Ending) -> None:
        """Note how the evaluation ended: nothing is left to do but the release."""

    def ending(self) -> Ending | None:
        """Return how the evaluation ended; None before that."""
