"""Exact discrete Gaussians, many at a time [Canonne, Kamath, Steinke 2020, algorithms 1 to 3].

The algorithms toss coins of rational probability and compute with integers. A coin is a uniform number of as many bits
as it needs. The first 64 are compared with the probability in float64, whose error stays below a proven bound that
rests on +, -, *, / and the conversion of integers alone, all correctly rounded [IEEE 754]; a coin that falls closer to
its probability than that bound, one in 2**44, is decided by the exact fraction and further bits. So the result has
exactly the distribution of the paper: floating point decides how fast a coin falls, never how.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError

Bytes = Callable[[int], bytes]
"""Returns that many fresh uniform bytes."""

Exact = Callable[[int], Fraction]
"""From a lane, the place of a value in an array, to its exact number."""

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LEAST_DEVIATION, MOST_DEVIATION = 2.0**-20, 2.0**40
_NEAR = 2.0**-45
"""Coins closer than this to their probability are decided exactly. The float64 difference of the two errs by less than
2**-48: 2**-49 for a probability (:func:`_gaussians`), 2**-53 for the bits that are left out, 2**-53 for rounding."""
_BLOCK = 1 << 15
"""Values drawn together: their arrays stay in the cache."""
_KEPT_LAPLACES, _KEPT_GAUSSIANS = 0.6, 0.7
"""About what part of the candidates is kept; only speed depends on it."""


def discrete_gaussian_from(source: Bytes, deviation: float, size: int) -> Integers:
    """Turn uniform bytes into ``size`` independent integers k with probability proportional to exp(-k² / 2 deviation²).

    deviation  its exact binary value is meant; within [2**-20, 2**40]
    returns    (size,) int64

    Raises CSL-201 for a deviation out of range.
    """
    if not LEAST_DEVIATION <= deviation <= MOST_DEVIATION:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "a discrete Gaussian's deviation must be within [2**-20, 2**40]")
    found = np.empty(size, dtype=np.int64)
    for start in range(0, size, _BLOCK):
        part = found[start : start + _BLOCK]
        part[:] = _first(len(part), _KEPT_GAUSSIANS, lambda tries: _gaussians(source, deviation, tries))
    return found


def _gaussians(source: Bytes, deviation: float, tries: int) -> Integers:
    """Algorithm 3: discrete Laplaces y of scale t, each kept with probability exp(-(|y| - s²/t)² / 2s²).

    The exponent g is computed with an error of at most 2**-50 max(1, g): with c = s²/t <= s, the difference d = |y| - c
    errs by 2**-53 (c + |d|), hence g = d² / 2s² by 2**-53 (2 |d| (c + |d|) / 2s² + 3 g) <= 2**-53 (sqrt(2 g) + 5 g),
    and by less than twice that where |y| exceeds 2**53. Coins divide g by at least max(1, g), which leaves 2**-49.
    """
    variance, scale = Fraction(deviation) ** 2, math.floor(deviation) + 1
    centre = variance / scale
    drawn = _first(tries, _KEPT_LAPLACES, lambda more: _laplaces(source, scale, more))
    exponents = (np.abs(drawn) - float(centre)) ** 2 * float(1 / (2 * variance))

    def exact(lane: int) -> Fraction:
        return (abs(int(drawn[lane])) - centre) ** 2 / (2 * variance)

    kept: Integers = drawn[_fall_exponentially(source, exponents, exact)]
    return kept


def _laplaces(source: Bytes, scale: int, tries: int) -> Integers:
    """Algorithm 2 with t = scale and s = 1: some integers x with probability proportional to exp(-|x| / scale)."""
    low = _below(source, scale, tries)
    low = low[_fall_by_series(source, low / scale, lambda lane: Fraction(int(low[lane]), scale))]
    magnitudes = low + scale * _geometrics(source, len(low))
    negative = np.frombuffer(source(len(low)), dtype=np.uint8) % 2 == 1
    kept: Integers = np.where(negative, -magnitudes, magnitudes)[~(negative & (magnitudes == 0))]
    return kept


def _geometrics(source: Bytes, size: int) -> Integers:
    """Return how many coins of probability 1/e fall heads in a row, ``size`` times."""
    counts, lanes = np.zeros(size, dtype=np.int64), np.arange(size)
    while len(lanes):
        lanes = lanes[_fall_by_series(source, np.ones(len(lanes)), lambda _: Fraction(1))]
        counts[lanes] += 1
    return counts


def _fall_exponentially(source: Bytes, exponents: Floats, exact: Exact) -> NDArray[np.bool_]:
    """Toss one coin of probability exp(-g) for each exponent g >= 0.

    exp(-g) is the product of n factors exp(-g/n), for any n. An n is taken that is surely not below g, so that
    algorithm 1 tosses coins of probability g/n <= 1 and less.
    """
    factors = np.floor(exponents * (1.0 + 2.0**-20) + 2.0**-20) + 1.0
    shares, heads, lanes = exponents / factors, np.ones(len(exponents), dtype=np.bool_), np.arange(len(exponents))
    turn = 1
    while len(lanes):

        def share(lane: int, lanes: Integers = lanes) -> Fraction:
            return exact(int(lanes[lane])) / int(factors[lanes[lane]])

        fell = _fall_by_series(source, shares[lanes], share)
        heads[lanes[~fell]] = False
        lanes, turn = lanes[fell], turn + 1
        lanes = lanes[factors[lanes] >= turn]
    return heads


def _fall_by_series(source: Bytes, exponents: Floats, exact: Exact) -> NDArray[np.bool_]:
    """Algorithm 1 for exponents g in [0, 1]: toss coins of g/1, g/2, g/3, ... until one falls tails at an odd place."""
    heads, lanes = np.ones(len(exponents), dtype=np.bool_), np.arange(len(exponents))
    place = 1
    while len(lanes):

        def share(lane: int, lanes: Integers = lanes, place: int = place) -> Fraction:
            return exact(int(lanes[lane])) / place

        fell = _toss(source, exponents / place, share)
        exponents, lanes, place = exponents[fell], lanes[fell], place + 1
        heads[lanes] = place % 2 == 1
    return heads


def _toss(source: Bytes, probabilities: Floats, exact: Exact) -> NDArray[np.bool_]:
    """Toss one coin for each probability in [0, 1], known to 2**-49; ``exact`` is asked where that does not decide."""
    words = np.frombuffer(source(8 * len(probabilities)), dtype="<u8")
    # As int64, which numpy converts ten times as fast as uint64.
    ahead = probabilities - (words >> np.uint64(11)).view(np.int64) * 2.0**-53
    heads = ahead > 0.0
    for lane in np.flatnonzero(np.abs(ahead) <= _NEAR).tolist():
        heads[lane] = _is_below(source, int(words[lane]), exact(lane))
    return heads


def _is_below(source: Bytes, word: int, probability: Fraction) -> bool:
    """Return whether a uniform number whose first 64 bits are ``word`` is below a probability; draws the other bits."""
    rest = probability * (1 << 64) - word
    if not 0 < rest < 1:
        return rest > 0
    bits = (rest.denominator - 1).bit_length()
    while True:
        value = int.from_bytes(source((bits + 7) // 8), "big") >> (-bits % 8)
        if value < rest.denominator:
            return value < rest.numerator


def _below(source: Bytes, bound: int, size: int) -> Integers:
    """Return uniform integers in [0, bound), bound at most 2**41."""
    whole = (1 << 64) // bound

    def attempt(tries: int) -> Integers:
        words = np.frombuffer(source(8 * tries), dtype="<u8")
        quotients = words // np.uint64(bound)
        remainders: Integers = (words - quotients * np.uint64(bound)).astype(np.int64)
        return remainders[quotients < whole]

    return _first(size, 1.0, attempt)


def _first(size: int, share: float, attempt: Callable[[int], Integers]) -> Integers:
    """Return the first ``size`` values that attempts give; of n tries about ``share`` n give one."""
    kept = attempt(math.ceil(size / share))
    while len(kept) < size:
        kept = np.concatenate([kept, attempt(math.ceil((size - len(kept)) / share))])
    return kept[:size]
