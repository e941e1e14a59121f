"""A rotation keeps lengths and angles, mixes the whole vector whatever its length, and can be undone."""

from __future__ import annotations

import numpy as np
import pytest

from common.secagg.rotation import rotate, unrotate
from common.stream import public_signs

STREAM = "5a" * 32
LARGE = (1024, 10_007, 65_535, 65_536, 65_537, 131_071, 1_000_003, 2_097_152, 2_100_001)


def test_every_length_is_turned_and_turned_back() -> None:
    dice = np.random.default_rng(1)
    for length in range(1, 1200):
        first, second = dice.standard_normal((2, length))
        turned, other = np.asarray(rotate(first, STREAM)), np.asarray(rotate(second, STREAM))
        assert turned.shape == first.shape
        assert turned @ other == pytest.approx(first @ second, abs=1e-9), length
        assert np.abs(unrotate(turned, STREAM) - first).max() < 1e-12, length


@pytest.mark.parametrize("length", LARGE)
def test_long_vectors_are_turned_and_turned_back(length: int) -> None:
    values = np.random.default_rng(length).standard_normal(length)
    turned = np.asarray(rotate(values, STREAM))
    assert np.linalg.norm(turned) == pytest.approx(np.linalg.norm(values), rel=1e-12)
    assert np.abs(unrotate(turned, STREAM) - values).max() < 1e-12
    single = rotate(values.astype(np.float32), STREAM)
    assert single.dtype == np.float32
    # Float32 rounds at 2**-24 of the norm a product; a few hundred of them add up like a random walk.
    assert np.linalg.norm(single - turned) < 1e-6 * np.linalg.norm(values)


@pytest.mark.parametrize("length", LARGE)
def test_a_lonely_coordinate_ends_up_everywhere(length: int) -> None:
    for place in (0, length // 3, length - 1):
        values = np.zeros(length)
        values[place] = 1.0
        turned = np.abs(rotate(values, STREAM)) * np.sqrt(length)
        assert turned.max() < 8.0, place
        # Flat: half of the coordinates hold at least a tenth of an equal part.
        assert np.median(turned) > 0.1, place


def test_what_is_in_one_slab_or_the_tail_becomes_nearly_as_flat_as_noise() -> None:
    length = 100_003
    for part in (slice(0, 50), slice(500, 1600), slice(length - 300, length)):
        values = np.zeros(length)
        values[part] = 1.0
        turned = np.asarray(rotate(values, STREAM)) / np.linalg.norm(values) * np.sqrt(length)
        # What comes from one slab has a deviation of up to sqrt(2), the largest entry of a matrix of Hartley's. Normal
        # coordinates reach six deviations once in 5,000 vectors of this length; and this rotation is fixed.
        assert np.abs(turned).max() < 6.0 * np.sqrt(2)


def test_without_a_tail_it_is_signs_and_a_kronecker_product() -> None:
    signs = public_signs(STREAM, "secagg/rotation/slabs", 512)
    matrix = np.ones((1, 1))
    for _ in range(9):
        matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    values = np.random.default_rng(2).standard_normal(512)
    assert rotate(values, STREAM) == pytest.approx(matrix @ (signs * values) / np.sqrt(512))


def test_another_stream_turns_elsewhere() -> None:
    values = np.ones(1000)
    turned, other = rotate(values, STREAM), rotate(values, "5b" * 32)
    assert abs(np.asarray(turned) @ np.asarray(other)) < 200


@pytest.mark.parametrize("length", [1, 7, 257, 10_007])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_visible(length: int, bad: float) -> None:
    for place in {0, length // 2, length - 1}:
        values = np.zeros(length, dtype=np.float32)
        values[place] = bad
        with np.errstate(invalid="ignore"):
            assert not np.isfinite(rotate(values, STREAM)).all()
