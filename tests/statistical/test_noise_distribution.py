"""Noise has the distribution that the accountant assumes. Each test states its false-alarm rate.

The source is seeded, so what passes once passes always: the rates say how surprising a failure is after a change.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from simulations.noise import SeededNoise

ALARM = 1e-6


def test_gaussian_fits_by_kolmogorov_smirnov() -> None:
    sample = SeededNoise(11, "ks").gaussian(200_000)
    assert stats.kstest(sample, "norm").pvalue > ALARM


def test_gaussian_fits_by_chi_square_over_equal_cells() -> None:
    sample = SeededNoise(12, "chi").gaussian(1_000_000)
    counts = np.histogram(stats.norm.cdf(sample), bins=1000, range=(0, 1))[0]
    assert stats.chisquare(counts).pvalue > ALARM


def test_gaussian_has_its_mean_variance_and_fourth_moment() -> None:
    """Standard errors of the three estimates: 1, sqrt 2 and sqrt 96 over sqrt n; 5.2 of them is 6e-7 in all."""
    n = 1_000_000
    sample = SeededNoise(13, "moments").gaussian(n)
    assert abs(sample.mean()) < 5.2 / math.sqrt(n)
    assert abs(sample.var() - 1.0) < 5.2 * math.sqrt(2.0 / n)
    assert abs((sample**4).mean() - 3.0) < 5.2 * math.sqrt(96.0 / n)


def test_neighbouring_draws_are_uncorrelated() -> None:
    """Box-Muller pairs a draw with the one half a block away. Eight tests at 5.5 sigma: 3e-7 in all."""
    n = 400_000
    sample = SeededNoise(14, "lags").gaussian(n)
    for lag in (1, 2, 3, n // 2):
        pairs = n - lag
        correlation = float(sample[:-lag] @ sample[lag:]) / pairs
        assert abs(correlation) < 5.5 / math.sqrt(pairs)
        squares = float((sample[:-lag] ** 2 - 1) @ (sample[lag:] ** 2 - 1)) / (2.0 * pairs)
        assert abs(squares) < 5.5 / math.sqrt(pairs)


@pytest.mark.slow
def test_tails_beyond_five_sigma_appear_as_often_as_they_should() -> None:
    """P(|x| > 5) = 5.73e-7: 115 expected in 2e8. Poisson two-sided test, false alarm 1e-6."""
    noise, block, blocks = SeededNoise(15, "tails"), 2_000_000, 100
    seen = sum(int((np.abs(noise.gaussian(block)) > 5.0).sum()) for _ in range(blocks))
    expected = 2.0 * stats.norm.sf(5.0) * block * blocks
    assert stats.poisson.cdf(seen, expected) > ALARM / 2
    assert stats.poisson.sf(seen - 1, expected) > ALARM / 2


def test_tails_go_beyond_where_float32_stops() -> None:
    """Given that a uniform's 26 high bits are zero, the rest of the tail must follow its law."""
    from client.training.noise import gaussian_from

    generator = SeededNoise(16, "rare")

    def rare(size: int) -> bytes:
        words = np.frombuffer(generator._bytes(size), dtype="<u8").copy()
        words[: len(words) // 2] >>= np.uint64(26)
        return words.tobytes()

    radius = np.hypot(*gaussian_from(rare, 200_000).reshape(2, -1))
    assert radius.min() > 5.77
    tail = np.exp(-(radius**2) / 2.0) * 2.0**26
    assert stats.kstest(tail, "uniform").pvalue > ALARM


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.7, 40.0])
def test_discrete_gaussian_fits_its_masses(sigma: float) -> None:
    n = 20_000
    sample = SeededNoise(17, f"discrete {sigma}").discrete_gaussian(sigma, n)
    reach = math.ceil(6 * sigma)
    support = np.arange(-4 * reach, 4 * reach + 1)
    masses = np.exp(-(support.astype(float) ** 2) / (2 * sigma**2))
    masses /= masses.sum()
    expected = n * masses
    observed = np.array([(sample == k).sum() for k in support], dtype=float)
    common = expected >= 10
    cells_seen = np.append(observed[common], observed[~common].sum())
    cells_due = np.append(expected[common], expected[~common].sum())
    assert observed.sum() == n
    assert stats.chisquare(cells_seen, cells_due).pvalue > ALARM


def test_discrete_gaussian_of_the_evaluation_has_its_variance() -> None:
    """Standard error of a variance: sqrt(2 / n); five of them is 6e-7."""
    from common.privacy.accounting import EVALUATION_SENSITIVITY

    n, sigma = 20_000, 5.0 * EVALUATION_SENSITIVITY
    sample = SeededNoise(18, "cells").discrete_gaussian(sigma, n).astype(float)
    assert abs(sample.mean()) < 5.0 * sigma / math.sqrt(n)
    assert sample.var() == pytest.approx(sigma**2, rel=5.0 * math.sqrt(2.0 / n))


def test_uniform_fits_and_stays_below_one() -> None:
    sample = SeededNoise(19, "uniform").uniform(200_000)
    assert sample.min() >= 0.0
    assert sample.max() < 1.0
    assert stats.kstest(sample, "uniform").pvalue > ALARM
