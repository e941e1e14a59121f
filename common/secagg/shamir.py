"""Shamir's secret sharing over GF(256), byte by byte, vectorised over bytes and holders [Shamir 1979].

The holder at place i (from 0) has the polynomial's value at x = i + 1. Table look-ups are not constant-time; an
attacker who can time a hospital's cache is outside the threat model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError

_POLYNOMIAL = 0x11B
_GENERATOR = 3


def _tables() -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]:
    exponent = np.zeros(510, dtype=np.uint8)
    logarithm = np.zeros(256, dtype=np.int64)
    value = 1
    for power in range(255):
        exponent[power] = exponent[power + 255] = value
        logarithm[value] = power
        doubled = value << 1
        value ^= doubled ^ _POLYNOMIAL if doubled & 0x100 else doubled
    product = np.zeros((256, 256), dtype=np.uint8)
    for factor in range(1, 256):
        product[factor, 1:] = exponent[logarithm[factor] + logarithm[1:]]
    return exponent, logarithm, product


_EXP, _LOG, _MUL = _tables()


def split(secret: bytes, holders: int, threshold: int, entropy: Callable[[int], bytes]) -> list[bytes]:
    """Return one share a holder, each as long as the secret; any ``threshold`` of them give it back, fewer nothing.

    holders    1 to 255
    threshold  1 to ``holders``
    """
    if not 1 <= threshold <= holders <= 255:
        raise ConsiliumError(errors.SECAGG_THRESHOLD, f"{threshold} of {holders} shares")
    coefficients = np.frombuffer(entropy((threshold - 1) * len(secret)), dtype=np.uint8).reshape(
        threshold - 1, len(secret)
    )
    shares = np.zeros((holders, len(secret)), dtype=np.uint8)
    points = np.arange(1, holders + 1, dtype=np.uint8)[:, None]
    for coefficient in coefficients[::-1]:
        shares = _MUL[shares ^ coefficient, points]
    shares ^= np.frombuffer(secret, dtype=np.uint8)
    return [share.tobytes() for share in shares]


def combine(places: Sequence[int], shares: Sequence[bytes]) -> bytes:
    """Return the secret from shares and the places (from 0) of their holders, as many as the threshold was."""
    stacked = np.stack([np.frombuffer(share, dtype=np.uint8) for share in shares])
    weights = np.array(_lagrange(tuple(places)), dtype=np.uint8)
    return bytes(np.bitwise_xor.reduce(_MUL[weights[:, None], stacked], axis=0).tobytes())


@lru_cache(maxsize=1024)
def _lagrange(places: tuple[int, ...]) -> tuple[int, ...]:
    """Return each share's weight in the value at zero."""
    if len(set(places)) != len(places):
        raise ConsiliumError(errors.SECAGG_SHARE, "a share was given twice")
    points = np.array(places, dtype=np.int64) + 1
    # The logarithm of zero stands as 0 in the table, so that a point adds nothing for itself below the fraction.
    above = _LOG[points].sum() - _LOG[points]
    below = _LOG[points[:, None] ^ points[None, :]].sum(axis=1)
    return tuple(int(weight) for weight in _EXP[(above - below) % 255])
