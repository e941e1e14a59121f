"""What an audit could have found: the bound it would typically give, and its chance to notice a fault.

A bound of zero is worth nothing if a broken mechanism would have given zero as well. The guesses are therefore played
again many times against the mechanism as claimed and against one with a quarter of its noise, by the very numbers of
bits, rounds and guesses of the audit, and with canaries as distinct as they were or as distinct as any can be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.audit.bounds import epsilon_at_least, fewest_right, guess_counts, right_guesses

TRIALS = 200
"""Games played again; a chance of one half is known to 7 points."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a game is decided by.

    delta   at which epsilon is claimed
    rate    sampling rate
    level   chance that the game's bound is wrong
    """

    delta: float
    rate: float
    level: float


@dataclass(frozen=True, slots=True)
class Replays:
    """Right guesses of many replays of one game.

    bits    coins in a game
    counts  numbers of guesses
    right   (replays, counts) right ones
    """

    rules: Rules
    bits: int
    counts: tuple[int, ...]
    right: NDArray[np.int64]

    def typical_bound(self) -> float:
        """Return the bound that the median number of right guesses proves, at the best number of guesses."""
        share = self.rules.level / len(self.counts)
        middle = np.floor(np.median(self.right, axis=0)).astype(int)
        return max(
            epsilon_at_least(self.bits, guesses, int(right), self.rules.delta, share)
            for guesses, right in zip(self.counts, middle, strict=True)
        )

    def chance_above(self, epsilon: float) -> float:
        """Return the share of replays whose bound is above a claim."""
        share = self.rules.level / len(self.counts)
        needed = [fewest_right(self.bits, guesses, epsilon, self.rules.delta, share) for guesses in self.counts]
        return float((self.right >= np.array(needed)).any(axis=1).mean())


def replay(
    amplitudes: Sequence[NDArray[np.float64]], rules: Rules, dice: np.random.Generator, *, fresh: bool
) -> Replays:
    """Play a game again against a subsampled Gaussian in which every canary has a direction of its own.

    amplitudes  one array (canaries,) a round: deviations of the noise that being in a step moves a canary by
    fresh       whether coins are tossed anew in each round, or once for all rounds
    """
    moved = np.array(amplitudes)
    rounds, canaries = moved.shape
    bits = rounds * canaries if fresh else canaries
    counts, right = guess_counts(bits), []
    for _ in range(TRIALS):
        coins = dice.random((rounds if fresh else 1, canaries)) < 0.5
        present = coins & (dice.random(moved.shape) < rules.rate)
        shifted = moved * (moved * present + dice.standard_normal(moved.shape)) - 0.5 * moved**2
        odds = np.logaddexp(math.log1p(-rules.rate) if rules.rate < 1.0 else -np.inf, math.log(rules.rate) + shifted)
        right.append(right_guesses(odds.ravel() if fresh else odds.sum(axis=0), coins.ravel(), counts))
    return Replays(rules, bits, counts, np.array(right))
