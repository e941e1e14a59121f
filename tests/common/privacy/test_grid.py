"""Discrete noise costs what is stated, never less, and its grid keeps every unit within the clip in exact numbers."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from common.errors import ConsiliumError
from common.privacy.accounting import calibrate_noise
from common.privacy.grid import (
    LEAST_GRID_DEVIATION,
    MOST_DIMENSION,
    DiscreteNoise,
    NoiseGrid,
    discrete_epsilon,
    discrete_slack,
)
from common.privacy.groups import epsilon_for_group
from common.privacy.plan import PrivacyPlan
from common.study import TrainingNoise, Unit

COARSE = [(1.0, 1, 1), (1.0, 1, 4), (2.0, 1, 16), (3.0, 2, 9), (0.8, 1, 3), (4.0, 1, 50)]
"""Deviation, distance in each coordinate, coordinates: so coarse that discrete and continuous noise differ."""


def plan(noise: TrainingNoise = TrainingNoise.DISCRETE, **changes: object) -> PrivacyPlan:
    made = PrivacyPlan(Unit.RECORD, 1, 0.1, 1.1, 1.0, 100, 1, 20.0, 1, 1e-5, 1000, noise)
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def accountant(*events: dp_accounting.DpEvent) -> PLDAccountant:
    made = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    for event in events:
        made.compose(event)
    return made


def test_epsilon_covers_an_exact_accounting_of_discrete_noise_and_without_the_slack_would_not() -> None:
    """In one dimension dp-accounting knows the discrete Gaussian exactly, and coordinates compose."""
    short = []
    for deviation, distance, draws in COARSE:
        exact = from_discrete_gaussian_mechanism(deviation, distance, value_discretization_interval=1e-4)
        whole = exact.self_compose(draws)
        continuous = accountant(dp_accounting.GaussianDpEvent(deviation / (distance * math.sqrt(draws))))
        for delta in (1e-2, 1e-5):
            true = whole.get_epsilon_for_delta(delta)
            assert discrete_epsilon(continuous, delta, [DiscreteNoise(deviation, draws)]) > true
            short.append(continuous.get_epsilon(delta) < true - 1e-3)
    assert any(short)


def lattice(deviation: float, centre: int, reach: int = 40) -> NDArray[np.float64]:
    support = np.arange(-reach, reach + 1)
    weights = np.exp(-((support - centre) ** 2) / (2.0 * deviation**2))
    found: NDArray[np.float64] = weights / weights.sum()
    return found


@pytest.mark.parametrize("rate", [0.2, 1.0])
@pytest.mark.parametrize(("deviation", "moved"), [(1.0, (1, 0)), (1.5, (2, 1)), (2.5, (2, 2))])
def test_epsilon_covers_a_sampled_step_in_two_dimensions(deviation: float, moved: tuple[int, int], rate: float) -> None:
    """Hockey-stick divergences summed over every pair of integers, adding and removing a unit."""
    without = np.outer(lattice(deviation, 0), lattice(deviation, 0))
    present = np.outer(lattice(deviation, moved[0]), lattice(deviation, moved[1]))
    mixed = (1.0 - rate) * without + rate * present
    gaussian = dp_accounting.GaussianDpEvent(deviation / math.hypot(*moved))
    step = accountant(dp_accounting.PoissonSampledDpEvent(rate, gaussian) if rate < 1.0 else gaussian)
    for delta in (1e-3, 1e-6):
        factor = math.exp(min(700.0, discrete_epsilon(step, delta, [DiscreteNoise(deviation, 2)])))
        for one, other in ((mixed, without), (without, mixed)):
            assert float(np.maximum(one - factor * other, 0.0).sum()) <= delta


@given(st.floats(1.0, 1e4), st.floats(0.0, 30.0))
def test_rounding_a_gaussian_changes_its_density_by_the_factor_of_the_proof(deviation: float, distance: float) -> None:
    """The mean over a cell by quadrature, in logarithms: -1/(24 s²) and t²/(24 s⁴) are its bounds."""
    at = float(round(distance * deviation))
    points, weights = np.polynomial.legendre.leggauss(60)
    u = points / 2.0
    found = math.log(float(np.sum(weights / 2.0 * np.exp(-(at * u + u**2 / 2.0) / deviation**2))))
    assert -1.0 / (24.0 * deviation**2) - 1e-14 <= found <= at**2 / (24.0 * deviation**4) + 1e-14


@given(st.integers(1, 10_000), st.floats(0.01, 300.0))
def test_squares_exceed_the_bound_of_the_proof_no_more_often_than_it_says(draws: int, tail: float) -> None:
    assert stats.chi2.logsf(2.0 * draws + 3.0 * tail, draws) <= -tail


@pytest.mark.parametrize("draws", [1, 100, 10**6])
@pytest.mark.parametrize("deviation", [1.0, 10.0, 2.0**32])
def test_the_slack_covers_both_factors_of_the_proof_and_what_delta_grows_by(draws: int, deviation: float) -> None:
    s, n, tail = Fraction(deviation), draws, 120
    a = n / (24 * s**2)
    b = (4 * n + 6 * tail) / (24 * s**2) + n / (48 * s**4)
    assert Fraction(discrete_slack([DiscreteNoise(deviation, draws)], tail)) * (1 + Fraction(1, 10**12)) >= a + b
    assert discrete_slack([DiscreteNoise(deviation, draws)], 0.0) >= 5.999 * a
    # e^a (delta e^-6a + 2 delta e^-100) is at most delta.
    if a < 50:
        left = -math.expm1(-5.0 * float(a))
        assert left >= 2.0 * math.exp(float(a) - 100.0)


def test_ten_thousand_million_draws_of_a_step_cost_less_than_1e_8() -> None:
    assert discrete_slack([DiscreteNoise(LEAST_GRID_DEVIATION, 10**10)], 200.0) < 1e-8


def test_discrete_noise_costs_a_little_more_everywhere_and_never_less() -> None:
    continuous, discrete = plan(TrainingNoise.GAUSSIAN), plan()
    for records in (1, 2, 10):
        low, high = epsilon_for_group(continuous, records), epsilon_for_group(discrete, records)
        assert low < high < low + 1e-6
    assert (discrete.discrete_noises[0].draws, discrete.discrete_noises[0].deviation) == (100 * MOST_DIMENSION, 2.0**32)
    assert len(continuous.discrete_noises) == 1
    assert plan(evaluation_releases=0).discrete_noises == discrete.discrete_noises[:1]


def test_calibration_sees_discrete_noise() -> None:
    """At ten million steps the slack is 1.4e-4, and shows in the fourth decimal of the noise."""
    shared = {"delta": 1e-5, "sampling_rate": 1e-4, "steps": 10_000_000, "evaluation_noise_multiplier": 20.0}
    found = {kind: calibrate_noise(epsilon=0.05, evaluation_releases=0, noise=kind, **shared) for kind in TrainingNoise}
    assert found[TrainingNoise.DISCRETE] > found[TrainingNoise.GAUSSIAN]


@given(st.floats(1e-12, 1e12), st.floats(0.05, 100.0))
def test_a_grid_scales_without_rounding(clip_norm: float, multiplier: float) -> None:
    grid = NoiseGrid.of(clip_norm, multiplier * clip_norm)
    assert math.frexp(grid.step)[0] == 0.5
    assert 2.0**32 <= grid.deviation < 2.0**33
    assert Fraction(grid.deviation) * Fraction(grid.step) == Fraction(multiplier * clip_norm)
    assert Fraction(grid.clip) * Fraction(grid.step) == Fraction(clip_norm)


@given(st.floats(1e-12, 1e12), st.floats(0.05, 100.0), st.integers(0, 10**6))
def test_a_rounded_clip_leaves_room_for_rounding_and_takes_little(
    clip_norm: float, multiplier: float, dimension: int
) -> None:
    grid = NoiseGrid.of(clip_norm, multiplier * clip_norm)
    lowered = Fraction(grid.rounded_clip(dimension))
    error = Fraction(dimension + 8, 2**53)
    longest = lowered * (1 + error) + Fraction(math.isqrt(dimension * 10**20) + 1, 2 * 10**10)
    assert longest <= Fraction(grid.clip)
    assert longest * Fraction(multiplier) <= Fraction(grid.deviation)
    assert lowered > Fraction(grid.clip) * (1 - Fraction(1, 10**4))


@pytest.mark.parametrize("dimension", [-1, MOST_DIMENSION + 1])
def test_a_dimension_that_epsilon_does_not_cover_is_refused(dimension: int) -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-201.*coordinates"):
        plan().grid.rounded_clip(dimension)


def test_a_clip_norm_lost_in_the_grid_is_refused() -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-201.*too small"):
        plan(clip_norm=1e-6, noise_multiplier=1e6).grid.rounded_clip(MOST_DIMENSION)


@pytest.mark.parametrize("clip_norm", [1e-60, 1e60, 1e300])
def test_noise_beyond_the_grids_range_is_refused(clip_norm: float) -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-201.*no grid"):
        plan(clip_norm=clip_norm, noise_multiplier=1e10 if clip_norm == 1e300 else 1.0)


def test_a_sum_that_might_not_fit_64_bits_is_refused_before_anything_is_signed() -> None:
    assert plan(noise_multiplier=1.0, population=100_000_000).grid.clip * 2 * 10**8 <= 2.0**62
    with pytest.raises(ConsiliumError, match=r"CSL-201.*64 bits"):
        plan(noise_multiplier=0.05, population=100_000_000)
    assert plan(TrainingNoise.GAUSSIAN, noise_multiplier=0.05, population=100_000_000).noise is TrainingNoise.GAUSSIAN
