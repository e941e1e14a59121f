"""The coins of an audit, and what was observed of them.

One run holds two games. Canaries of the first kind have one coin for the whole study; those of the second are put in or
left out anew in each round, so that every round gives fresh bits against the much smaller epsilon of one charge. The
second is a single mechanism on all its bits: what a bit changes leaves in its own round, and later rounds see it only
through what has left, which is post-processing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulations.audit.reading import Reading


class Tosser(Protocol):
    """What coins are tossed with."""

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` independent uniforms in [0, 1)."""


@dataclass(frozen=True, slots=True)
class Coins:
    """How the coins fell.

    fixed  (canaries of the first kind,) in for the whole study or out
    fresh  (rounds, canaries of the second kind)
    """

    fixed: NDArray[np.bool_]
    fresh: NDArray[np.bool_]

    @classmethod
    def toss(cls, fixed: int, fresh: int, rounds: int, source: Tosser) -> Coins:
        """Toss fair coins."""
        thrown = source.uniform(fixed + rounds * fresh) < 0.5
        return cls(thrown[:fixed], thrown[fixed:].reshape(rounds, fresh))

    def inside(self, round_index: int) -> NDArray[np.bool_]:
        """Return which canaries are in the site's data in a round, those of the first kind first."""
        return np.concatenate([self.fixed, self.fresh[round_index]])


@dataclass(frozen=True, slots=True)
class Observed:
    """A game that was played: how the coins fell, and what was read in each round."""

    coins: Coins
    readings: tuple[Reading, ...]

    def study_log_odds(self) -> NDArray[np.float64]:
        """Return the log odds of each coin of the first kind, all rounds together."""
        fixed = len(self.coins.fixed)
        total: NDArray[np.float64] = np.sum([reading.log_odds[:fixed] for reading in self.readings], axis=0)
        return total

    def charge_log_odds(self) -> NDArray[np.float64]:
        """Return the log odds of each coin of the second kind, (rounds * canaries,), in the order of its coins."""
        fixed = len(self.coins.fixed)
        return np.concatenate([reading.log_odds[fixed:] for reading in self.readings])
