"""What a released pair of noised counts says: an accuracy with its interval. Post-processing: it costs no privacy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.privacy.accounting import EVALUATION_SCALE, EVALUATION_SENSITIVITY
from common.study import Study

_TWO_SIDED_95 = 1.959963984540054


def released_accuracy(
    counts: Sequence[int] | NDArray[np.int64], survivors: int, study: Study
) -> tuple[float, float, float]:
    """Return (accuracy, low, high) from the sum of the survivors' noised cells: post-processing of what was released.

    counts     (weight, correct weight) at the fixed-point scale
    survivors  number of sites in the sum, each of which added noise of its own

    The 95 % interval covers both the noise and the chance of which units were tested. It is the set of r for which
    (correct - r weight)² <= z² (v (1 + r²) + weight r (1 - r)), with v the variance of the noise of one cell: Fieller's
    interval for a ratio where noise dominates, Wilson's for a share where v is 0. Where the noise drowns the weight no
    ratio is excluded, and the interval is (0, 1).
    """
    weight, correct = (float(count) / EVALUATION_SCALE for count in counts)
    deviation = study.evaluation.noise_multiplier * EVALUATION_SENSITIVITY / EVALUATION_SCALE
    return share_with_interval(weight, correct, survivors * deviation**2)


def share_with_interval(weight: float, correct: float, variance: float) -> tuple[float, float, float]:
    """Return (share, low, high) for a noised weight and correct weight, each of noise ``variance``; see above."""
    share = min(1.0, max(0.0, correct / weight)) if weight > 0.0 else 0.5
    z2 = _TWO_SIDED_95**2
    square = weight**2 - z2 * variance + z2 * weight
    if weight <= 0.0 or weight**2 <= z2 * variance:
        return share, 0.0, 1.0
    half = correct * weight + 0.5 * z2 * weight
    constant = correct**2 - z2 * variance
    root = math.sqrt(max(0.0, half**2 - square * constant))
    low, high = (half - root) / square, (half + root) / square
    return share, max(0.0, min(low, share)), min(1.0, max(high, share))
