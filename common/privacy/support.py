"""How many points of a grid a composed privacy loss takes, found in milliseconds before anything is composed.

The accountant stores a loss's distribution point by point, between bounds that leave out what hardly ever happens. Of
little noise in many steps it would fill any memory. What is found here is at least what it takes: its bounds come from
Chernoff's inequality at the same orders, over the same losses, integrated numerically.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_TAIL = 10.1
"""Deviations of the noise within which the accountant looks at it: it leaves out exp(-50) either side."""
_LEFT_OUT = math.log(2.0 / 1e-15)
"""Minus the logarithm of what it leaves out of a composition, either side."""
_ORDERS = np.arange(1, 21)
"""Its Chernoff orders, in units of one over the width of a single step's losses."""
_QUADRATURE = np.linspace(-_TAIL, _TAIL, 401)
_WEIGHTS = np.exp(-0.5 * _QUADRATURE**2) / np.exp(-0.5 * _QUADRATURE**2).sum()
_NEVER = 1e-18
_MARGIN = 1.3
"""Of rare steps it takes up to 1.15 times as many: it rounds chances to 1e-10, which its orders raise far out."""


def gaussian_points(deviation: float, releases: int, grid: float) -> float:
    """Return the points of unsampled Gaussian releases, which compose to a single one of less deviation.

    deviation  noise over sensitivity of each
    """
    one = deviation / math.sqrt(releases)
    return _MARGIN * 2.0 * (0.5 / one**2 + _TAIL / one) / grid + 3.0


def step_points(deviation: float, distances: Sequence[float], chances: Sequence[float], grid: float) -> float:
    """Return the points of one step; for the arguments see :func:`mixture_points`."""
    far, logs = _mixture(distances, chances)
    ends = _losses(np.array([-_TAIL * deviation - far[-1], _TAIL * deviation]), deviation, far, logs)
    return float(ends[0] - ends[1]) / grid + 3.0


def mixture_points(
    deviation: float, distances: Sequence[float], chances: Sequence[float], steps: int, grid: float
) -> float:
    """Return the points of ``steps`` steps that move a Gaussian by one of ``distances`` each.

    deviation  of the Gaussian, in the unit of the distances
    distances  rising, not negative
    chances    of each distance, sum 1

    A Poisson-subsampled step has the distances 0 and 1.
    """
    far, logs = _mixture(distances, chances)
    chance = np.exp(logs)
    single = step_points(deviation, distances, chances, grid)
    happening = [(distance, mass) for distance, mass in zip(far, chance, strict=True) if mass > _NEVER]
    parts = [_losses(deviation * _QUADRATURE - distance, deviation, far, logs) for distance, _ in happening]
    weights = np.concatenate([mass * _WEIGHTS for _, mass in happening])
    added = _width(-_losses(deviation * _QUADRATURE, deviation, far, logs), _WEIGHTS, steps, single * grid, grid)
    removed = _width(np.concatenate(parts), weights, steps, single * grid, grid)
    composed = max(added, removed) / grid
    return _MARGIN * max(single, min(composed, single * steps))


def _mixture(distances: Sequence[float], chances: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distances and the logarithms of their chances, each (m,)."""
    with np.errstate(divide="ignore"):
        return np.asarray(distances, dtype=np.float64), np.log(np.asarray(chances, dtype=np.float64))


def _losses(
    places: NDArray[np.float64], deviation: float, distances: NDArray[np.float64], logs: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return log (mixture / Gaussian at 0) at each place, (n,)."""
    ratios = logs - distances * (0.5 * distances + places[:, None]) / deviation**2
    most = ratios.max(axis=1)
    found: NDArray[np.float64] = most + np.log(np.exp(ratios - most[:, None]).sum(axis=1))
    return found


def _width(losses: NDArray[np.float64], weights: NDArray[np.float64], steps: int, single: float, grid: float) -> float:
    """Return how far apart the Chernoff bounds of a composition lie; ``single`` is the width of one step's losses.

    A loss between two points of the grid is shared out between them, which moves it within one step of the grid
    [Hoeffding's lemma].
    """
    orders = _ORDERS / single
    above = np.exp(np.outer(orders, losses - losses.min())) @ weights
    below = np.exp(-np.outer(orders, losses - losses.min())) @ weights
    shared = orders**2 * grid**2 / 8.0
    upper, lower = ((steps * (np.log(mgf) + shared) + _LEFT_OUT) / orders for mgf in (above, below))
    return float(upper.min() + lower.min())
