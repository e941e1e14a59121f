"""From noise to epsilon and back: the accountant of record.

One privacy loss distribution (PLD) holds a site's whole participation: Poisson-subsampled Gaussian steps and unsampled
evaluation releases, under adding or removing one privacy unit. Losses are rounded up to a grid, so the epsilon found
here is an upper bound of the true one [Koskela et al. 2020; Doroshenko et al. 2022, "Connect the dots"].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from common import errors
from common.errors import ConsiliumError
from common.privacy.grid import LEAST_GRID_DEVIATION, MOST_DIMENSION, DiscreteNoise, discrete_epsilon
from common.privacy.support import gaussian_points, mixture_points
from common.study import TrainingNoise

if TYPE_CHECKING:
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

ACCOUNTANT = "PLD (dp-accounting)"
DISCRETISATION = 1e-3
"""Grid of the privacy losses, rounded up; 1e-4 gains little and costs seconds."""
_COARSE_DISCRETISATION = 1e-2
_LITTLE_NOISE = 0.4
MOST_POINTS = 2**21
"""Points that a composition may take: some 400 MiB, and seconds. What needs more has an epsilon in the thousands."""

EVALUATION_SCALE = 4096
"""Fixed point of the evaluation's cells: a unit of total weight one is 4096 (RULES 9)."""
EVALUATION_CELLS = 2
"""Weight and correct weight."""
EVALUATION_SENSITIVITY = EVALUATION_SCALE * math.sqrt(EVALUATION_CELLS)
"""L2 norm of what one unit can add to the cells: all of its weight, all of it correct."""

_LEAST_NOISE = 0.05
_MOST_NOISE = 100_000.0
_MOST_STEPS = 10_000_000
_LEAST_EVALUATION_NOISE = 0.05
_UNACCOUNTED = 1e9
"""Stands for the epsilon of what is not composed where noise is searched: above all that can be asked for."""


def accountant_version() -> str:
    """Return which accountant, release and grid an epsilon was computed with."""
    return f"{ACCOUNTANT} {version('dp-accounting')}, grid {DISCRETISATION:g}, add/remove one unit"


def pld_accountant(grid: float) -> PLDAccountant:
    """Return an accountant that has composed nothing yet, under adding or removing one unit.

    Its package takes a second to load, and is loaded where it is used: a command that computes no epsilon never waits.
    """
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    return PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, grid)


def training_event(noise_multiplier: float, sampling_rate: float, steps: int) -> dp_accounting.DpEvent:
    """Return ``steps`` Poisson-subsampled Gaussian steps."""
    import dp_accounting

    gaussian = dp_accounting.GaussianDpEvent(noise_multiplier)
    return dp_accounting.SelfComposedDpEvent(dp_accounting.PoissonSampledDpEvent(sampling_rate, gaussian), steps)


def evaluation_event(noise_multiplier: float, releases: int) -> dp_accounting.DpEvent:
    """Return ``releases`` Gaussian releases that every unit is in: evaluated units are not subsampled."""
    import dp_accounting

    return dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise_multiplier), releases)


def whole_event(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    evaluation_noise_multiplier: float,
    evaluation_releases: int,
) -> dp_accounting.DpEvent:
    """Return training and evaluation as one composition."""
    import dp_accounting

    parts = [training_event(noise_multiplier, sampling_rate, steps)] if steps else []
    if evaluation_releases:
        parts.append(evaluation_event(evaluation_noise_multiplier, evaluation_releases))
    return dp_accounting.ComposedDpEvent(parts)


def grid_of(
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    evaluation_noise_multiplier: float,
    evaluation_releases: int,
) -> float | None:
    """Return the grid for a whole participation, the coarse one for little noise; None if it fits none.

    Noise is little below 0.4, in training or evaluation, and where the fine grid would take more than
    :data:`MOST_POINTS`: epsilon is then so large that a hundredth is nothing.
    """
    noises = [noise_multiplier] * (steps > 0) + [evaluation_noise_multiplier] * (evaluation_releases > 0)
    fine = min(noises, default=math.inf) >= _LITTLE_NOISE
    for grid in (DISCRETISATION, _COARSE_DISCRETISATION) if fine else (_COARSE_DISCRETISATION,):
        points = 0.0
        if steps:
            points += mixture_points(noise_multiplier, (0.0, 1.0), (1.0 - sampling_rate, sampling_rate), steps, grid)
        if evaluation_releases:
            points += gaussian_points(evaluation_noise_multiplier, evaluation_releases, grid)
        if points <= MOST_POINTS:
            return grid
    return None


def discrete_noises(
    noise: TrainingNoise, steps: int, evaluation_noise_multiplier: float, evaluation_releases: int
) -> tuple[DiscreteNoise, ...]:
    """Return where a participation adds discrete Gaussians: in every evaluation, and in training if it says so."""
    found = []
    if noise is TrainingNoise.DISCRETE and steps:
        found.append(DiscreteNoise(LEAST_GRID_DEVIATION, MOST_DIMENSION * steps))
    if evaluation_releases:
        deviation = evaluation_noise_multiplier * EVALUATION_SENSITIVITY
        found.append(DiscreteNoise(deviation, EVALUATION_CELLS * evaluation_releases))
    return tuple(found)


@lru_cache(maxsize=4096)
def epsilon_of(
    *,
    noise_multiplier: float,
    sampling_rate: float,
    steps: int,
    delta: float,
    evaluation_noise_multiplier: float,
    evaluation_releases: int,
    noise: TrainingNoise = TrainingNoise.GAUSSIAN,
) -> float:
    """Return an upper bound of epsilon at ``delta`` for a whole participation.

    noise_multiplier             noise standard deviation over clip norm of a step
    sampling_rate                probability with which each unit enters a step, in (0, 1]
    steps                        number of steps; 0 leaves the evaluation alone
    evaluation_noise_multiplier  noise over L2 sensitivity of a release
    evaluation_releases          number of releases; 0 leaves training alone
    noise                        how a step's noise is drawn; the evaluation's is always discrete

    Raises CSL-201 for a value out of range, and, before anything is composed, for so little noise in so many steps or
    releases that the composition would not fit :data:`MOST_POINTS`: its epsilon would be in the thousands.
    """
    _check("noise_multiplier", noise_multiplier, _LEAST_NOISE, _MOST_NOISE)
    _check("evaluation_noise_multiplier", evaluation_noise_multiplier, _LEAST_EVALUATION_NOISE, _MOST_NOISE)
    _check_composition(sampling_rate, steps, delta, evaluation_releases)
    grid = grid_of(noise_multiplier, sampling_rate, steps, evaluation_noise_multiplier, evaluation_releases)
    if grid is None:
        raise ConsiliumError(
            errors.PRIVACY_PARAMETER,
            f"noise_multiplier {noise_multiplier:g} in {steps:,} steps and evaluation_noise_multiplier "
            f"{evaluation_noise_multiplier:g} in {evaluation_releases:,} releases are too little noise to be accounted",
        )
    accountant = pld_accountant(grid)
    accountant.compose(
        whole_event(noise_multiplier, sampling_rate, steps, evaluation_noise_multiplier, evaluation_releases)
    )
    noises = discrete_noises(noise, steps, evaluation_noise_multiplier, evaluation_releases)
    epsilon = discrete_epsilon(accountant, delta, noises)
    if not math.isfinite(epsilon):
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "no finite epsilon holds at this delta")
    return epsilon


@lru_cache(maxsize=1024)
def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    evaluation_noise_multiplier: float,
    evaluation_releases: int,
    noise: TrainingNoise = TrainingNoise.GAUSSIAN,
) -> float:
    """Return the least noise multiplier, rounded up to four decimals, whose epsilon is at most the one asked for.

    Noise that is too little to be accounted counts as spending too much. Raises CSL-201 for a value out of range,
    CSL-202 when no noise suffices (the evaluation alone may spend it all).
    """
    _check("epsilon", epsilon, math.ulp(0.0), 1e6)
    _check("evaluation_noise_multiplier", evaluation_noise_multiplier, _LEAST_EVALUATION_NOISE, _MOST_NOISE)
    _check_composition(sampling_rate, steps, delta, evaluation_releases)
    if steps < 1:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "steps must be at least 1")
    target = epsilon * (1.0 - 1e-9)

    def excess(noise_multiplier: float) -> float:
        if grid_of(noise_multiplier, sampling_rate, steps, evaluation_noise_multiplier, evaluation_releases) is None:
            return math.log(_UNACCOUNTED / target)
        spent = epsilon_of(
            noise_multiplier=noise_multiplier,
            sampling_rate=sampling_rate,
            steps=steps,
            delta=delta,
            evaluation_noise_multiplier=evaluation_noise_multiplier,
            evaluation_releases=evaluation_releases,
            noise=noise,
        )
        return math.log(max(spent, 1e-300) / target)

    low, high = _bracket(excess)
    least = math.ceil(_least_root(excess, low, high) * 1e4) / 1e4
    while excess(least) > 0.0:
        least = round(least + 1e-4, 4)
    return least


def _bracket(excess: Callable[[float], float]) -> tuple[float, float]:
    """Return noise that spends too much (or the least allowed) and noise that does not; raises CSL-202."""
    low, high = 0.5, 1.0
    while excess(high) > 0.0:
        low, high = high, high * 2.0
        if high > _MOST_NOISE:
            raise ConsiliumError(errors.PRIVACY_UNREACHABLE, "the evaluation alone spends it")
    while low > _LEAST_NOISE and excess(low) <= 0.0:
        low, high = max(low / 2.0, _LEAST_NOISE), low
    return low, high


def _least_root(excess: Callable[[float], float], low: float, high: float) -> float:
    """Find where a falling function of log noise crosses zero, from the safe side, to 2e-5 (Illinois method)."""
    at_low, at_high = excess(low), excess(high)
    if at_low <= 0.0:
        return low
    x_low, x_high = math.log(low), math.log(high)
    side = 0
    while math.exp(x_high) - math.exp(x_low) > 2e-5:
        middle = x_high - at_high * (x_high - x_low) / (at_high - at_low)
        margin = min(1e-5 / math.exp(x_high), 0.5 * (x_high - x_low))
        middle = min(max(middle, x_low + margin), x_high - margin)
        value = excess(math.exp(middle))
        if value <= 0.0:
            at_low = at_low / 2.0 if side == -1 else at_low
            x_high, at_high, side = middle, value, -1
        else:
            at_high = at_high / 2.0 if side == 1 else at_high
            x_low, at_low, side = middle, value, 1
    return math.exp(x_high)


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, f"{name} is {value:g}, not within [{low:g}, {high:g}]")


def _check_composition(sampling_rate: float, steps: int, delta: float, evaluation_releases: int) -> None:
    if not 0.0 < sampling_rate <= 1.0:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, f"sampling_rate is {sampling_rate:g}, not within (0, 1]")
    if not 0.0 < delta < 1.0:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, f"delta is {delta:g}, not within (0, 1)")
    _check("steps", steps, 0, _MOST_STEPS)
    _check("evaluation_releases", evaluation_releases, 0, _MOST_STEPS)
