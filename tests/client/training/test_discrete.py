"""Floating point decides how fast a coin of the discrete Gaussian falls, never how."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.training import discrete
from client.training.discrete import discrete_gaussian_from
from common.errors import ConsiliumError
from simulations.noise import SeededNoise

DEVIATIONS = [2.0**-20, 0.3, 1.0, 3.7, 28963.094, 2.0**32, 2.0**32 * 1.7, 2.0**40]


def keystream(purpose: str) -> discrete.Bytes:
    return SeededNoise(1, purpose)._bytes


def scripted(*parts: bytes) -> discrete.Bytes:
    """Return a source of exactly these bytes, in these pieces."""
    left: Iterator[bytes] = iter(parts)

    def source(size: int) -> bytes:
        part = next(left)
        assert len(part) == size
        return part

    return source


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_where_no_coin_is_decided_in_floating_point_the_same_numbers_come_out(
    deviation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = discrete_gaussian_from(keystream("same"), deviation, 400)
    monkeypatch.setattr(discrete, "_NEAR", 2.0)
    assert np.array_equal(discrete_gaussian_from(keystream("same"), deviation, 400), fast)
    assert deviation < 0.1 or len(set(fast.tolist())) > 1


@pytest.mark.parametrize("deviation", DEVIATIONS)
def test_every_probability_in_floating_point_is_within_the_proven_bound(
    deviation: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    worst, toss = Fraction(0), discrete._toss

    def checked(source: discrete.Bytes, near: NDArray[np.float64], exact: discrete.Exact) -> NDArray[np.bool_]:
        nonlocal worst
        worst = max([worst, *(abs(Fraction(float(value)) - exact(lane)) for lane, value in enumerate(near))])
        return toss(source, near, exact)

    monkeypatch.setattr(discrete, "_toss", checked)
    discrete_gaussian_from(keystream("bound"), deviation, 400)
    assert worst <= Fraction(1, 2**49)


@given(st.fractions(0, 1, max_denominator=2**80), st.integers(-4, 4))
def test_a_coin_beside_its_probability_falls_as_the_fraction_says(probability: Fraction, off: int) -> None:
    word = min(max(probability * 2**64 // 1 + off, 0), 2**64 - 1)
    words = [word.to_bytes(8, "little")]
    # The further bits, where they are asked for: all zeros, the smallest number that there is.
    heads = discrete._toss(
        lambda size: words.pop() if words else bytes(size), np.array([float(probability)]), lambda _: probability
    )
    assert heads.tolist() == [Fraction(word, 2**64) < probability]


def test_an_undecided_coin_draws_as_many_bits_as_it_needs() -> None:
    """1/3 is 0x5555... and a third of the last bit: of the next two bits 00 is heads and 11 is drawn again."""
    third, word = Fraction(1, 3), (2**64 // 3).to_bytes(8, "little")

    def toss(*further: int) -> bool:
        source = scripted(word, *(bytes([value << 6]) for value in further))
        return bool(discrete._toss(source, np.array([1 / 3]), lambda _: third)[0])

    assert [toss(0b00), toss(0b01), toss(0b10)] == [True, False, False]
    assert [toss(0b11, 0b11, 0b00), toss(0b11, 0b10)] == [True, False]


@pytest.mark.parametrize(("probability", "heads"), [(0.0, False), (1.0, True)])
@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_what_is_certain_or_impossible_is_so_for_every_word(probability: float, heads: bool, byte: bytes) -> None:
    found = discrete._toss(lambda size: byte * size, np.array([probability]), lambda _: Fraction(probability))
    assert found.tolist() == [heads]


@pytest.mark.parametrize("bound", [1, 2, 3, 2**32, 2**32 + 1, 2**41 - 1])
def test_integers_below_a_bound_are_uniform_to_the_last_word(bound: int) -> None:
    """Words beyond the last whole multiple of the bound would favour small numbers; they are drawn again."""
    whole = 2**64 // bound * bound
    words = [0, bound - 1, whole - 1] + ([whole, 2**64 - 1] if whole < 2**64 else [])
    raw = b"".join(word.to_bytes(8, "little") for word in words)
    again = (5 % bound).to_bytes(8, "little")
    found = discrete._below(scripted(raw, *([again * 2] if whole < 2**64 else [])), bound, len(words))
    assert found.tolist() == [0, bound - 1, bound - 1] + ([5 % bound] * 2 if whole < 2**64 else [])


@pytest.mark.parametrize("size", [0, 1, 2, 7, discrete._BLOCK, discrete._BLOCK + 3])
def test_any_number_can_be_drawn(size: int) -> None:
    found = discrete_gaussian_from(keystream("size"), 2.0**32, size)
    assert found.shape == (size,)
    assert found.dtype == np.int64
    assert len(np.unique(found)) >= 0.99 * size


@pytest.mark.parametrize("deviation", [0.0, -1.0, float("inf"), float("nan"), 2.0**-21, 2.0**41])
def test_a_deviation_out_of_range_is_refused(deviation: float) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        discrete_gaussian_from(keystream("refused"), deviation, 1)


@pytest.mark.parametrize("exponent", [0.0, 0.25, 1.0, 2.0, 5.5])
def test_coins_fall_exponentially(exponent: float) -> None:
    """A binomial share over 200,000 coins; 5.5 standard errors, below 4e-8 each."""
    size, chance = 200_000, float(np.exp(-exponent))
    exact: Callable[[int], Fraction] = lambda _: Fraction(exponent)  # noqa: E731
    heads = discrete._fall_exponentially(keystream(f"coins {exponent}"), np.full(size, exponent), exact)
    assert abs(heads.mean() - chance) <= 5.5 * (chance * (1 - chance) / size) ** 0.5
