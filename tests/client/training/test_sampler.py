"""Each unit enters a step by its own coin, at exactly the plan's rate."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from client.training.noise import SystemNoise
from client.training.sampler import poisson_sample
from common.errors import ConsiliumError
from common.privacy.sensitive import PrivateCount
from simulations.noise import SeededNoise


class Coins(SeededNoise):
    """Uniforms that a test chose."""

    def __init__(self, *values: float) -> None:
        super().__init__(0, "coins")
        self._values = np.array(values)

    def uniform(self, size: int) -> NDArray[np.float64]:
        return self._values[:size]


def test_a_unit_enters_when_its_coin_is_below_the_rate() -> None:
    assert poisson_sample(PrivateCount(4), 0.3, Coins(0.1, 0.3, 0.2999, 0.9)).tolist() == [0, 2]


def test_no_unit_at_all_is_an_answer() -> None:
    assert poisson_sample(PrivateCount(3), 0.1, Coins(0.5, 0.6, 0.7)).tolist() == []
    assert poisson_sample(PrivateCount(0), 0.1, SystemNoise()).tolist() == []


def test_rate_one_takes_everyone() -> None:
    assert poisson_sample(PrivateCount(100), 1.0, SystemNoise()).tolist() == list(range(100))


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.0001, math.nan])
def test_a_rate_out_of_range_is_refused(rate: float) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        poisson_sample(PrivateCount(10), rate, SystemNoise())


def test_the_rate_is_not_rounded_to_a_batch_size() -> None:
    """300 of 1000 asked of batches of 4 would become 0.25 or 0.333. False alarm below 1e-9 (6.1 sigma)."""
    noise = SeededNoise(1, "rate")
    drawn = sum(len(poisson_sample(PrivateCount(1000), 0.3, noise)) for _ in range(1000))
    assert abs(drawn / 1e6 - 0.3) < 6.1 * math.sqrt(0.3 * 0.7 / 1e6)


def test_batch_sizes_vary_as_a_binomial() -> None:
    """Fixed-size batches would have variance 0. Chi-square of the variance, false alarm below 1e-6."""
    noise = SeededNoise(2, "sizes")
    sizes = [len(poisson_sample(PrivateCount(200), 0.1, noise)) for _ in range(4000)]
    assert np.var(sizes) == pytest.approx(200 * 0.1 * 0.9, rel=5.0 * math.sqrt(2 / 4000))
