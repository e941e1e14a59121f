"""Two tests of the mechanism itself, sharper than bounds from guesses: that noise is there, and patients are clipped.

Both compare what left with what the claim says must leave, and each gives a false alarm with a chance settled
beforehand. **Noise**: where no known gradient reaches there is nothing but noise, so that its energy over the claimed
variance is chi-squared; too little of it is an alarm. More is not, so gradients that do reach there cannot cause one.
**Weight**: how far the deltas go the way of the canaries inside is, given the coins, a sum of thousands of independent
terms of known means and variances; canaries that weigh more than was claimed are an alarm.

They rest on more than the bounds do: on the attacker's knowledge of all gradients, and on one SGD step a round.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from simulations.audit.reading import Reading

NORMAL = NormalDist()
NOTICED = 0.95
"""Chance at which a fault counts as one that the audit would have noticed."""
_MOST_WEIGHT = 1e6


@dataclass(frozen=True, slots=True)
class NoiseTest:
    """How much noise left, over what was claimed.

    energy, directions  of all rounds together
    level               chance of a false alarm
    """

    energy: float
    directions: int
    level: float

    @classmethod
    def of(cls, readings: Sequence[Reading], level: float) -> NoiseTest:
        """Take all rounds together."""
        return cls(sum(reading.floor for reading in readings), sum(reading.directions for reading in readings), level)

    @property
    def measured(self) -> float:
        """Measured noise over the claimed."""
        return math.sqrt(self.energy / self.directions)

    @property
    def interval(self) -> tuple[float, float]:
        """Limits of the noise over the claimed, each wrong with chance ``level`` at most."""
        low, high = (math.sqrt(chi_squared(self.directions, share)) for share in (self.level, 1.0 - self.level))
        return math.sqrt(self.energy) / high, math.sqrt(self.energy) / low

    @property
    def alarm(self) -> bool:
        """Whether there is less noise than claimed."""
        return self.energy < chi_squared(self.directions, self.level)

    def chance_to_notice(self, share: float) -> float:
        """Return the chance of an alarm if the noise were this share of the claimed one."""
        if share <= 0.0:
            return 1.0
        return chi_squared_share(self.directions, chi_squared(self.directions, self.level) / share**2)

    @property
    def noticed_below(self) -> float:
        """Share of the claimed noise below which an alarm is as good as certain (``NOTICED``)."""
        return math.sqrt(chi_squared(self.directions, self.level) / chi_squared(self.directions, NOTICED))


@dataclass(frozen=True, slots=True)
class WeightTest:
    """How much a canary weighs in the sum, over what was claimed.

    pull, expected, spread, sampling  as in a reading, of all rounds together
    level                             chance of a false alarm
    """

    pull: float
    expected: float
    spread: float
    sampling: float
    level: float

    @classmethod
    def of(cls, readings: Sequence[Reading], level: float) -> WeightTest:
        """Take all rounds together."""
        return cls(
            sum(reading.pull for reading in readings),
            sum(reading.expected for reading in readings),
            sum(reading.spread for reading in readings),
            sum(reading.sampling for reading in readings),
            level,
        )

    @property
    def measured(self) -> float:
        """Measured weight over the claimed."""
        return self.pull / self.expected

    @property
    def interval(self) -> tuple[float, float]:
        """Limits of the weight over the claimed, each wrong with chance ``level`` if the noise is as claimed."""
        margin = -NORMAL.inv_cdf(self.level) * self._deviation(max(self.measured, 1.0)) / self.expected
        return self.measured - margin, self.measured + margin

    @property
    def alarm(self) -> bool:
        """Whether a canary weighs more than claimed."""
        return self.pull > self._threshold

    def chance_to_notice(self, weight: float) -> float:
        """Return the chance of an alarm if canaries weighed this many times what was claimed."""
        return NORMAL.cdf((weight * self.expected - self._threshold) / self._deviation(weight))

    @property
    def noticed_above(self) -> float:
        """Weight over the claimed above which an alarm is as good as certain (``NOTICED``)."""
        low, high = 1.0, _MOST_WEIGHT
        while high / low > 1.0 + 1e-6:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if self.chance_to_notice(middle) < NOTICED else (low, middle)
        return high

    @property
    def _threshold(self) -> float:
        return self.expected - NORMAL.inv_cdf(self.level) * self._deviation(1.0)

    def _deviation(self, weight: float) -> float:
        return math.sqrt(self.spread + weight**2 * self.sampling)


def chi_squared(directions: int, share: float) -> float:
    """Return the quantile of chi-squared, by Wilson and Hilferty's cube root [1931]: to 1e-3 from 30 directions on."""
    spread = 2.0 / (9.0 * directions)
    return directions * max(1.0 - spread + NORMAL.inv_cdf(share) * math.sqrt(spread), 0.0) ** 3


def chi_squared_share(directions: int, value: float) -> float:
    """Return the chance that chi-squared is below a value, by the same approximation."""
    spread = 2.0 / (9.0 * directions)
    return NORMAL.cdf(((value / directions) ** (1.0 / 3.0) - 1.0 + spread) / math.sqrt(spread))
