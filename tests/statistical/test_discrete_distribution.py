"""The discrete Gaussian has its exact masses where there are few, and is normal to the last bit where there are many.

The source is seeded, so what passes once passes always: false-alarm rates say how surprising a failure is after a
change.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from common.privacy.accounting import EVALUATION_SENSITIVITY
from simulations.noise import SeededNoise
from tests.discrete_gaussian import masses, sample

ALARM = 1e-6
GRID = 1.37 * 2.0**32
"""About the deviation of a training step's noise on its grid."""


def counted(values: NDArray[np.int64], reach: int) -> NDArray[np.int64]:
    """Count each of -reach..reach; whatever lies beyond fails the test."""
    assert int(np.abs(values).max()) <= reach
    return np.bincount(values + reach, minlength=2 * reach + 1)


def fit(counts: NDArray[np.int64], due: NDArray[np.float64]) -> float:
    """Return the chi-square p-value of counts; cells with fewer than ten due are one with the rarest of the others."""
    common = due >= 10.0
    seen, wanted = counts[common].astype(np.float64), due[common]
    rarest = int(np.argmin(wanted))
    seen[rarest] += counts[~common].sum()
    wanted[rarest] += due[~common].sum()
    return float(stats.chisquare(seen, wanted).pvalue)


@pytest.fixture(scope="module")
def large() -> NDArray[np.int64]:
    return SeededNoise(31, "large").discrete_gaussian(GRID, 2_000_000)


@pytest.mark.parametrize("deviation", [0.3, 0.5, 1.0, 3.7, 5.0, 40.0])
def test_a_small_one_has_its_exact_masses(deviation: float) -> None:
    """Chi-square over every value of a million, false alarm 1e-6; the reach of 12 sigma is passed once in 1e26."""
    size, reach = 1_000_000, math.ceil(12 * deviation) + 2
    counts = counted(SeededNoise(17, f"discrete {deviation}").discrete_gaussian(deviation, size), reach)
    assert fit(counts, size * masses(deviation, reach)) > ALARM
    # A deviation wrong by one part in a hundred is found.
    assert fit(counts, size * masses(1.01 * deviation, reach)) < ALARM


@pytest.mark.parametrize("deviation", [0.3, 3.7])
def test_it_cannot_be_told_from_the_algorithm_in_fractions(deviation: float) -> None:
    """Chi-square of homogeneity of two samples, false alarm 1e-6."""
    size, reach = 15_000, math.ceil(12 * deviation) + 2
    fast = counted(SeededNoise(18, "fast").discrete_gaussian(deviation, size), reach)
    slow = counted(sample(SeededNoise(18, "slow")._bytes, deviation, size), reach)
    table = np.array([fast, slow])[:, fast + slow >= 20]
    assert table.shape[1] >= 3
    assert stats.chi2_contingency(table).pvalue > ALARM


def test_a_large_one_is_normal(large: NDArray[np.int64]) -> None:
    """Its steps are 2**-32 of its deviation: Kolmogorov-Smirnov sees a normal distribution. False alarm 1e-6."""
    assert stats.kstest(large / GRID, "norm").pvalue > ALARM
    assert stats.kstest(large / (1.01 * GRID), "norm").pvalue < ALARM


def test_a_large_one_has_its_mean_variance_and_fourth_moment(large: NDArray[np.int64]) -> None:
    """Standard errors: 1, sqrt 2 and sqrt 96 over sqrt n; 5.2 of them is 6e-7 in all."""
    scaled, size = large / GRID, len(large)
    assert abs(scaled.mean()) < 5.2 / math.sqrt(size)
    assert abs((scaled**2).mean() - 1.0) < 5.2 * math.sqrt(2.0 / size)
    assert abs((scaled**4).mean() - 3.0) < 5.2 * math.sqrt(96.0 / size)


@pytest.mark.parametrize("beyond", [3.0, 4.0, 4.8])
def test_the_tails_of_a_large_one_hold_what_they_should(large: NDArray[np.int64], beyond: float) -> None:
    """Poisson, two-sided, false alarm 1e-6: 5,400, 127 and 3.2 are due. Both signs are equally frequent."""
    seen = int((np.abs(large) > beyond * GRID).sum())
    due = 2.0 * float(stats.norm.sf(beyond)) * len(large)
    assert stats.poisson.cdf(seen, due) > ALARM / 2
    assert stats.poisson.sf(seen - 1, due) > ALARM / 2
    assert stats.binomtest(int((large > beyond * GRID).sum()), seen).pvalue > ALARM


@pytest.mark.parametrize("low_bits", [1, 4, 8, 20])
def test_the_low_bits_of_a_large_one_are_uniform(large: NDArray[np.int64], low_bits: int) -> None:
    """Here a float64 sum would leave marks [Mironov 2012]. Chi-square over up to 1024 cells, false alarm 1e-6."""
    bits = (large & ((1 << low_bits) - 1)) >> max(0, low_bits - 10)
    assert stats.chisquare(np.bincount(bits, minlength=1 << min(low_bits, 10))).pvalue > ALARM


def test_neighbouring_values_are_unrelated(large: NDArray[np.int64]) -> None:
    """Correlations of values and of squares at four lags: eight tests at 5.5 sigma, 3e-7 in all."""
    scaled = large / GRID
    for lag in (1, 2, 3, 1 << 15):
        one, two = scaled[:-lag], scaled[lag:]
        assert abs(float(one @ two)) < 5.5 * math.sqrt(len(one))
        assert abs(float((one**2 - 1) @ (two**2 - 1))) < 5.5 * 2.0 * math.sqrt(len(one))


def test_that_of_the_evaluation_has_its_variance() -> None:
    """Standard error of a variance: sqrt(2 / n); five of them is 6e-7."""
    size, deviation = 200_000, 5.0 * EVALUATION_SENSITIVITY
    drawn = SeededNoise(18, "cells").discrete_gaussian(deviation, size).astype(float)
    assert abs(drawn.mean()) < 5.0 * deviation / math.sqrt(size)
    assert drawn.var() == pytest.approx(deviation**2, rel=5.0 * math.sqrt(2.0 / size))
