"""Discrete noise: the grid on which a training step is exact in integers, and what an accountant must add for it.

On the grid a step is integer arithmetic alone: each unit's clipped gradient is rounded by itself, sums and noise are
integers, and only the finished number is scaled back. Floating point then decides which integers a unit contributes and
nothing about how they are hidden [Mironov 2012].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import errors
from common.errors import ConsiliumError

if TYPE_CHECKING:
    import dp_accounting

LEAST_GRID_DEVIATION = 2.0**32
"""A step's noise has a deviation of 2**32 to 2**33 grid steps."""
MOST_DIMENSION = 1_000_000_000
"""Coordinates of an update; epsilon is computed for as many, because the Study does not know how many there are."""
_LEAST_NOISE, _MOST_NOISE = 2.0**-160, 2.0**160
"""Deviations between which no float32 gradient, in steps, nor its square leaves the normal range of float64."""
_SAFE_SUM = 2.0**62
_TAIL = 100.0


@dataclass(frozen=True, slots=True)
class NoiseGrid:
    """Where the numbers of a training step lie. All of it is public.

    step       distance of neighbouring numbers, a power of two, so that scaling by it rounds nothing
    clip       the clip norm in steps
    deviation  the noise's deviation in steps, within [2**32, 2**33)
    """

    step: float
    clip: float
    deviation: float

    @classmethod
    def of(cls, clip_norm: float, noise_deviation: float) -> NoiseGrid:
        """Derive the grid from two numbers of a plan; raises CSL-201 where they are too small or too large."""
        if not _LEAST_NOISE <= noise_deviation <= _MOST_NOISE:
            raise ConsiliumError(errors.PRIVACY_PARAMETER, f"no grid for noise of deviation {noise_deviation:g}")
        step = math.ldexp(1.0, math.frexp(noise_deviation)[1] - 33)
        return cls(step, clip_norm / step, noise_deviation / step)

    def rounded_clip(self, dimension: int) -> float:
        """Return the L2 norm, in steps, to which a unit's gradient is clipped before it is rounded.

        Guarantee: integers that lie within 1/2 of each of ``dimension`` coordinates so clipped in float64 have an L2
        norm of at most ``clip``, and of at most ``deviation`` over the plan's noise multiplier.

        Rounding adds at most sqrt(dimension) / 2. In float64 a sum of ``dimension`` squares, in whatever order, its
        root, the division and the product with each coordinate err by less than (dimension + 8) 2**-53 together, and
        so does the product of noise multiplier and clip norm; twice as much is set aside. Raises CSL-201 where nothing
        is left, and for more than a billion coordinates.
        """
        if not 0 <= dimension <= MOST_DIMENSION:
            raise ConsiliumError(errors.PRIVACY_PARAMETER, f"{dimension:,} coordinates are too many for discrete noise")
        clip = self.clip * (1.0 - (dimension + 16) * 2.0**-52) - math.sqrt(dimension) / 2.0
        if clip <= 0.0:
            raise ConsiliumError(errors.PRIVACY_PARAMETER, "the clip norm is too small beside the noise to be rounded")
        return clip

    def check_sum(self, units: int) -> None:
        """Raise CSL-201 unless the integers of so many units, and as much noise again, surely fit 64 bits.

        The bound is for the sum to be right. Privacy does not lean on it: a sum that wraps is the private one modulo
        2**64, which is post-processing.
        """
        if units * self.clip > _SAFE_SUM:
            raise ConsiliumError(errors.PRIVACY_PARAMETER, f"integers of {units:,} units may not fit 64 bits")


@dataclass(frozen=True, slots=True)
class DiscreteNoise:
    """Discrete Gaussians for which an accountant composes continuous ones.

    deviation  of each, in steps of its grid, at least 1
    draws      how many there are in all releases together
    """

    deviation: float
    draws: int


def discrete_epsilon(
    accountant: dp_accounting.PrivacyAccountant, delta: float, noises: Sequence[DiscreteNoise]
) -> float:
    """Return epsilon at ``delta`` of what an accountant composed of continuous Gaussians, if ``noises`` are discrete.

    Compare with the continuous Gaussian rounded to integers, which is post-processing of it where sums are integers.
    Let s be the deviation, n the number of draws and t the integer that a draw adds. The rounded Gaussian's mass at t
    is its density there times the mean of exp(-(t u + u²/2) / s²) over u in [-1/2, 1/2], whose logarithm lies between
    -1/(24 s²) (Jensen) and t²/(24 s⁴) (sinh x / x <= exp(x²/6)). The discrete Gaussian's mass is the density but for a
    constant, the same everywhere. So, for neighbouring data P and Q, step by step and given all that came before:

    * P discrete <= e^a P rounded, everywhere, with a = n/(24 s²);
    * Q discrete >= e^-b Q rounded, where the drawn t have a sum of squares of at most 24 s⁴ b. A sum of n squared
      normals exceeds 2n + 3L with probability e^-L at most [Laurent and Massart 2000, lemma 1], and t² <= 2 g² + 1/2
      for the normal g that it rounds: b = (4n + 6L)/(24 s²) + n/(48 s⁴) leaves out e^-L of Q's outcomes and samples.

    Hence delta discrete(eps + a + b) <= e^a (delta(eps) + e^(eps - L)). With L = eps + log(1/delta) + 100 what is left
    out is nothing beside a part of a in delta: :func:`discrete_slack` returns (n + L)/(4 s²) >= a + b, summed over
    ``noises``, and n/(4 s²) >= 6 a pays for e^a. It holds for any distance between P and Q.
    """
    epsilon = float(accountant.get_epsilon(delta * math.exp(-discrete_slack(noises, 0.0))))
    return epsilon + discrete_slack(noises, epsilon - math.log(delta) + _TAIL)


def discrete_slack(noises: Sequence[DiscreteNoise], tail: float) -> float:
    """Return the sum of (n + L)/(4 s²), by which epsilon grows; see :func:`discrete_epsilon`. ``tail`` is L."""
    return math.fsum((noise.draws + tail) / (4.0 * noise.deviation**2) for noise in noises)
