"""Noise has the distribution that the accountant assumes. Each test states its false-alarm rate.

The source is seeded, so what passes once passes always: the rates say how surprising a failure is after a change.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from client.training.noise import gaussian_from
from simulations.noise import SeededNoise

ALARM = 1e-6
ANDERSON_DARLING_LIMIT = 17.5
FLOAT32_STOPS = 5.77
"""Largest normal that Box-Muller makes of a float32 on 24 bits: sqrt(48 ln 2)."""


def kolmogorov_smirnov(ordered: NDArray[np.float64]) -> float:
    """Return the p-value of a sample in rising order against the standard normal law."""
    size = len(ordered)
    chances, steps = stats.norm.cdf(ordered), np.arange(size + 1) / size
    distance = max(float((steps[1:] - chances).max()), float((chances - steps[:-1]).max()))
    return float(stats.kstwobign.sf(distance * math.sqrt(size)))


def anderson_darling(ordered: NDArray[np.float64]) -> float:
    """Return A² of a sample in rising order against the standard normal law."""
    size = len(ordered)
    odd = 2.0 * np.arange(size) + 1.0
    return -size - float(np.mean(odd * (stats.norm.logcdf(ordered) + stats.norm.logcdf(-ordered[::-1]))))


def blocks(purpose: str, number: int, size: int = 4096) -> NDArray[np.float64]:
    """Return (number, 2, size / 2) normals: in each block the cosines come first and their sines after them."""
    noise = SeededNoise(14, purpose)
    return np.array([noise.gaussian(size) for _ in range(number)]).reshape(number, 2, size // 2)


def independent(one: NDArray[np.float64], two: NDArray[np.float64]) -> float:
    """Return the p-value of a chi-square over 20 x 20 cells of equal probability, none of them estimated."""
    cells = [np.minimum((20.0 * stats.norm.cdf(values)).astype(np.int64), 19) for values in (one.ravel(), two.ravel())]
    return float(stats.chisquare(np.bincount(20 * cells[0] + cells[1], minlength=400)).pvalue)


@pytest.fixture(scope="module")
def ordered() -> NDArray[np.float64]:
    """Ten million draws in rising order."""
    return np.sort(SeededNoise(11, "many").gaussian(10_000_000))


def test_ten_million_draws_fit_by_kolmogorov_smirnov(ordered: NDArray[np.float64]) -> None:
    """False alarm 1e-6; a deviation wrong by three parts in a thousand is found."""
    assert kolmogorov_smirnov(ordered) > ALARM
    assert kolmogorov_smirnov(1.003 * ordered) < ALARM


def test_ten_million_draws_fit_by_anderson_darling(ordered: NDArray[np.float64]) -> None:
    """Weighs the tails up. False alarm below 1e-6; a deviation wrong by three parts in a thousand is found."""
    assert anderson_darling(ordered) < ANDERSON_DARLING_LIMIT
    assert anderson_darling(1.003 * ordered) > ANDERSON_DARLING_LIMIT


def test_the_anderson_darling_limit_has_the_stated_false_alarm_rate() -> None:
    """In the limit A² is the sum of z²/(j (j + 1)) over standard normals [Anderson and Darling 1952]: Chernoff's bound.

    What is left out of the product, beyond j = 1e6, multiplies it by less than 1 + 2e-6.
    """
    j = np.arange(1.0, 1e6)
    bounds = [
        -s * ANDERSON_DARLING_LIMIT - 0.5 * float(np.log1p(-2.0 * s / (j * (j + 1.0))).sum())
        for s in np.linspace(0.9, 0.999, 100)
    ]
    assert math.exp(min(bounds)) < 0.99 * ALARM


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
    """Six tests at 5.5 sigma: 3e-7 in all."""
    sample = SeededNoise(14, "lags").gaussian(400_000)
    for lag in (1, 2, 3):
        pairs = len(sample) - lag
        correlation = float(sample[:-lag] @ sample[lag:]) / pairs
        assert abs(correlation) < 5.5 / math.sqrt(pairs)
        squares = float((sample[:-lag] ** 2 - 1) @ (sample[lag:] ** 2 - 1)) / (2.0 * pairs)
        assert abs(squares) < 5.5 / math.sqrt(pairs)


def test_successive_values_and_blocks_are_independent() -> None:
    """Joint chi-squares, false alarm 1e-6 each: of neighbours, and of equal places in successive blocks."""
    values = blocks("successive", 600)
    assert independent(values[:, :, :-1:2], values[:, :, 1::2]) > ALARM
    assert independent(values[:-1:2], values[1::2]) > ALARM


def test_a_cosine_tells_nothing_of_its_sine() -> None:
    """Both halves come of one radius and one angle. Joint chi-square, and correlations of moments at 5.5 sigma."""
    values = blocks("halves", 600)
    one, two = values[:, 0].ravel(), values[:, 1].ravel()
    assert independent(one, two) > ALARM
    for left, right in ((one, two), (one**2 - 1.0, two**2 - 1.0), (np.abs(one), two)):
        expected = math.sqrt(len(one) * float((left**2).mean()) * float((right**2).mean()))
        assert abs(float(left @ right)) < 5.5 * expected
    # And so they should: a shared radius with a wrong angle would show here.
    assert independent(one, np.hypot(one, two) / math.sqrt(2.0)) < ALARM


def test_radius_and_angle_have_their_laws() -> None:
    """The squared radius is exponential and the angle uniform. Kolmogorov-Smirnov, false alarm 1e-6 each."""
    values = blocks("polar", 200)
    cosines, sines = values[:, 0].ravel(), values[:, 1].ravel()
    assert stats.kstest((cosines**2 + sines**2) / 2.0, "expon").pvalue > ALARM
    assert stats.kstest(np.arctan2(sines, cosines) / (2.0 * math.pi) + 0.5, "uniform").pvalue > ALARM


@pytest.mark.slow
def test_tails_beyond_where_float32_stops_are_seen_as_often_as_they_should() -> None:
    """In 2e9 draws 1,147 beyond 5 and 15.9 beyond 5.77 are due. Poisson, two-sided, false alarm 1e-6 each.

    A tail that ends at 5.77 shows nothing there, which has probability 1.3e-7: it would be found.
    """
    noise, block, number = SeededNoise(15, "tails"), 1 << 20, 1908
    seen = {5.0: 0, FLOAT32_STOPS: 0}
    for _ in range(number):
        far = np.abs(noise.gaussian(block))
        far = far[far > 5.0]
        for beyond in seen:
            seen[beyond] += int((far > beyond).sum())
    for beyond, count in seen.items():
        expected = 2.0 * stats.norm.sf(beyond) * block * number
        assert stats.poisson.cdf(count, expected) > ALARM / 2, (beyond, count)
        assert stats.poisson.sf(count - 1, expected) > ALARM / 2, (beyond, count)
    assert stats.poisson.cdf(0, 2.0 * stats.norm.sf(FLOAT32_STOPS) * block * number) < ALARM / 2


def test_tails_beyond_where_float32_stops_follow_their_law() -> None:
    """Given that a uniform's 26 high bits are zero, the rest of the tail must follow its law."""
    generator = SeededNoise(16, "rare")

    def rare(size: int) -> bytes:
        words = np.frombuffer(generator._bytes(size), dtype="<u8").copy()
        words[: len(words) // 2] >>= np.uint64(26)
        return words.tobytes()

    radius = np.concatenate([np.hypot(*gaussian_from(rare, 20_000).reshape(2, -1)) for _ in range(10)])
    assert radius.min() > FLOAT32_STOPS
    tail = np.exp(-(radius**2) / 2.0) * 2.0**26
    assert stats.kstest(tail, "uniform").pvalue > ALARM


def test_uniform_fits_and_stays_below_one() -> None:
    sample = SeededNoise(19, "uniform").uniform(200_000)
    assert sample.min() >= 0.0
    assert sample.max() < 1.0
    assert stats.kstest(sample, "uniform").pvalue > ALARM
