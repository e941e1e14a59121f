"""Randomness that privacy rests on: a CSPRNG keystream turned into uniforms, Gaussians and discrete Gaussians.

Nothing in here can be seeded (RULES 15). The keystream is AES-256-CTR keyed by the operating system, because torch's
CPU generator is a Mersenne twister with 32-bit seeding: two sites with one seed would draw identical noise.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError

Bytes = Callable[[int], bytes]
"""Returns that many fresh uniform bytes."""


class NoiseSource(Protocol):
    """Where sampling and noise come from."""

    def gaussian(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` independent standard normals."""

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` independent uniforms in [0, 1)."""

    def discrete_gaussian(self, sigma: float, size: int) -> NDArray[np.int64]:
        """Return ``size`` independent integers k with probability proportional to exp(-k² / 2 sigma²)."""


class SystemNoise:
    """Noise from an AES-256-CTR keystream under a key that only this object ever holds.

    A fork would repeat the keystream in the child; the key is therefore drawn anew in every process.
    """

    def __init__(self) -> None:
        self._process = -1
        self._keystream: CipherContext | None = None

    def gaussian(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` standard normals in float64; the tails reach 9.49 sigma."""
        return gaussian_from(self._bytes, size)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` uniforms in [0, 1), multiples of 2**-53."""
        return uniform_from(self._bytes, size)

    def discrete_gaussian(self, sigma: float, size: int) -> NDArray[np.int64]:
        """Return ``size`` discrete Gaussians, exactly distributed."""
        return discrete_gaussian_from(self._bytes, sigma, size)

    def __reduce__(self) -> str:
        raise TypeError("a noise source is never copied: two copies would draw the same noise")

    def _bytes(self, size: int) -> bytes:
        if self._keystream is None or self._process != os.getpid():
            try:
                key, nonce = os.urandom(32), os.urandom(16)
            except OSError as error:
                raise ConsiliumError(errors.NOISE_FAULT, "the operating system gave no randomness") from error
            self._keystream = Cipher(algorithms.AES(key), modes.CTR(nonce)).encryptor()
            self._process = os.getpid()
        return self._keystream.update(bytes(size))


def gaussian_from(source: Bytes, size: int) -> NDArray[np.float64]:
    """Turn uniform bytes into ``size`` standard normals by Box-Muller in float64.

    The radius comes from a uniform on a grid of 2**-64 in (0, 1], which keeps its relative precision near 0: the
    largest value is sqrt(130 ln 2) = 9.49, where float32 on 24 bits would stop at 5.77. A float64 sum still has a grid
    of its own [Mironov 2012]; docs/privacy.md states that.
    """
    pairs = (size + 1) // 2
    words = np.frombuffer(source(16 * pairs), dtype="<u8")
    radius = np.sqrt(-2.0 * np.log((words[:pairs].astype(np.float64) + 0.5) * 2.0**-64))
    angle = (words[pairs:] >> np.uint64(11)).astype(np.float64) * (2.0 * math.pi * 2.0**-53)
    normals = np.empty(2 * pairs, dtype=np.float64)
    # torch's cosine and sine in float64 are vectorised and exact to an ulp; numpy's take 16 times as long.
    turned = torch.from_numpy(angle)
    np.multiply(radius, torch.cos(turned).numpy(), out=normals[:pairs])
    np.multiply(radius, torch.sin(turned).numpy(), out=normals[pairs:])
    return normals[:size]


def uniform_from(source: Bytes, size: int) -> NDArray[np.float64]:
    """Turn uniform bytes into ``size`` uniforms in [0, 1) on a grid of 2**-53."""
    words = np.frombuffer(source(8 * size), dtype="<u8") >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-53


def discrete_gaussian_from(source: Bytes, sigma: float, size: int) -> NDArray[np.int64]:
    """Turn uniform bytes into ``size`` exact discrete Gaussians [Canonne, Kamath, Steinke 2020, algorithms 1 to 3].

    Integers and fractions only: no floating point stands between the bytes and the result. Raises CSL-201 unless sigma
    is finite and above 0.
    """
    if not (math.isfinite(sigma) and sigma > 0.0):
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "sigma must be finite and above 0")
    variance = Fraction(sigma) ** 2
    scale = math.floor(sigma) + 1
    return np.array([_discrete_gaussian(source, variance, scale) for _ in range(size)], dtype=np.int64)


def _discrete_gaussian(source: Bytes, variance: Fraction, scale: int) -> int:
    """Algorithm 3: a discrete Laplace of integer scale, accepted with exp(-(|y| - variance / scale)² / 2 variance)."""
    while True:
        candidate = _discrete_laplace(source, scale)
        distance = abs(candidate) - variance / scale
        if _bernoulli_exp(source, distance * distance / (2 * variance)):
            return candidate


def _discrete_laplace(source: Bytes, scale: int) -> int:
    """Algorithm 2 with t = scale and s = 1: probability proportional to exp(-|x| / scale)."""
    while True:
        remainder = _below(source, scale)
        if not _bernoulli_exp(source, Fraction(remainder, scale)):
            continue
        quotient = 0
        while _bernoulli_exp(source, Fraction(1)):
            quotient += 1
        magnitude = remainder + scale * quotient
        negative = _below(source, 2) == 1
        if not (negative and magnitude == 0):
            return -magnitude if negative else magnitude


def _bernoulli_exp(source: Bytes, gamma: Fraction) -> bool:
    """Algorithm 1: return True with probability exp(-gamma), gamma >= 0."""
    while gamma > 1:
        if not _bernoulli_exp(source, Fraction(1)):
            return False
        gamma -= 1
    k = 1
    while _bernoulli(source, gamma / k):
        k += 1
    return k % 2 == 1


def _bernoulli(source: Bytes, probability: Fraction) -> bool:
    return _below(source, probability.denominator) < probability.numerator


def _below(source: Bytes, bound: int) -> int:
    """Return a uniform integer in [0, bound) by rejection."""
    bits = (bound - 1).bit_length()
    size = (bits + 7) // 8
    while True:
        value = int.from_bytes(source(size), "big") >> (8 * size - bits)
        if value < bound:
            return value
