"""Noise comes from the operating system, is never the same twice, and no seed reaches it."""

from __future__ import annotations

import copy
import inspect
import math
import os

import numpy as np
import pytest

from client.training.discrete import discrete_gaussian_from
from client.training.noise import SystemNoise, gaussian_from
from common.errors import ConsiliumError
from simulations.noise import SeededNoise


def test_two_sources_never_draw_the_same() -> None:
    one, two = SystemNoise(), SystemNoise()
    assert not np.isin(one.gaussian(1000), two.gaussian(1000)).any()


def test_a_source_never_repeats_itself() -> None:
    noise = SystemNoise()
    assert not np.isin(noise.gaussian(1000), noise.gaussian(1000)).any()


def test_a_seed_of_numpy_or_torch_changes_nothing() -> None:
    assert "seed" not in inspect.signature(SystemNoise).parameters
    np.random.seed(0)
    first = SystemNoise().gaussian(8)
    np.random.seed(0)
    assert not np.array_equal(first, SystemNoise().gaussian(8))


def test_a_forked_child_does_not_repeat_its_parent() -> None:
    noise = SystemNoise()
    noise.gaussian(2)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write, noise.gaussian(2).tobytes())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = np.frombuffer(os.read(read, 16))
    os.close(read)
    os.close(write)
    assert not np.isin(theirs, noise.gaussian(2)).any()


def test_a_source_cannot_be_copied() -> None:
    with pytest.raises(TypeError):
        copy.deepcopy(SystemNoise())


def test_a_machine_without_randomness_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(size: int) -> bytes:
        raise OSError("no entropy")

    monkeypatch.setattr(os, "urandom", broken)
    with pytest.raises(ConsiliumError, match="CSL-206"):
        SystemNoise().gaussian(1)


def test_the_extreme_words_give_finite_tails_beyond_float32() -> None:
    zeros = gaussian_from(bytes, 2)
    assert zeros.max() == pytest.approx(math.sqrt(130 * math.log(2)))
    ones = gaussian_from(lambda size: b"\xff" * size, 2)
    assert np.isfinite(ones).all()
    assert np.abs(ones).max() < 1e-7


def test_each_pair_of_normals_is_the_box_muller_transform_of_its_two_words() -> None:
    """Against the mathematical functions of C: the first half of the words are radii, the second half angles."""
    stream = SeededNoise(1, "words")._bytes(16 * 1000)
    found = gaussian_from(lambda size: stream[:size], 2000)
    words = np.frombuffer(stream, dtype="<u8").tolist()
    for place, (first, second) in enumerate(zip(words[:1000], words[1000:], strict=True)):
        radius = math.sqrt(-2.0 * math.log((first + 0.5) / 2**64))
        angle = 2.0 * math.pi * ((second >> 11) / 2**53)
        assert abs(found[place] - radius * math.cos(angle)) < 4e-15
        assert abs(found[1000 + place] - radius * math.sin(angle)) < 4e-15


@pytest.mark.parametrize("size", [0, 1, 2, 7])
def test_any_number_can_be_drawn(size: int) -> None:
    noise = SystemNoise()
    assert noise.gaussian(size).shape == (size,)
    assert noise.uniform(size).shape == (size,)
    assert noise.discrete_gaussian(3.0, size).shape == (size,)
    assert noise.discrete_gaussian(3.0, size).dtype == np.int64


@pytest.mark.parametrize("sigma", [0.0, -1.0, math.inf, math.nan])
def test_a_discrete_gaussian_needs_a_deviation(sigma: float) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        discrete_gaussian_from(os.urandom, sigma, 1)


def test_seeded_noise_repeats_itself_and_separates_purposes() -> None:
    assert np.array_equal(SeededNoise(1, "a").gaussian(64), SeededNoise(1, "a").gaussian(64))
    for other in (SeededNoise(2, "a"), SeededNoise(1, "b")):
        assert not np.isin(SeededNoise(1, "a").gaussian(64), other.gaussian(64)).any()
    assert np.array_equal(
        SeededNoise(1, "a").discrete_gaussian(9.5, 16), SeededNoise(1, "a").discrete_gaussian(9.5, 16)
    )
