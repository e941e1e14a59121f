"""Randomness that privacy rests on: a CSPRNG keystream turned into uniforms, Gaussians and discrete Gaussians.

Nothing in here can be seeded (RULES 15). The keystream is AES-256-CTR keyed by the operating system, because torch's
CPU generator is a Mersenne twister with 32-bit seeding: two sites with one seed would draw identical noise.
"""

from __future__ import annotations

import math
import os
from typing import Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from client.training.discrete import Bytes, discrete_gaussian_from
from common import errors
from common.errors import ConsiliumError

_BLOCK = 1 << 15
"""Normals made together: their arrays stay in the cache."""
_LOW = np.uint64((1 << 32) - 1)


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
    of its own [Mironov 2012]; docs/privacy.md states that, and the discrete Gaussian is the way out.
    """
    normals = np.empty(size + size % 2, dtype=np.float64)
    for start in range(0, len(normals), _BLOCK):
        part = normals[start : start + _BLOCK]
        pairs = len(part) // 2
        words = np.frombuffer(source(16 * pairs), dtype="<u8")
        # Exact halves, so that their sum is the word rounded once. int64 is what numpy converts fast.
        high, low = (half.view(np.int64) for half in (words[:pairs] >> np.uint64(32), words[:pairs] & _LOW))
        radius = torch.from_numpy((high * 2.0**32 + low + 0.5) * 2.0**-64).log_().mul_(-2.0).sqrt_()
        angle = torch.from_numpy((words[pairs:] >> np.uint64(11)).view(np.int64) * (2.0 * math.pi * 2.0**-53))
        # torch's sine and cosine take a tenth of the time of numpy's, which are within an ulp of them.
        torch.mul(radius, angle.cos(), out=torch.from_numpy(part[:pairs]))
        torch.mul(radius, angle.sin(), out=torch.from_numpy(part[pairs:]))
    return normals[:size]


def uniform_from(source: Bytes, size: int) -> NDArray[np.float64]:
    """Turn uniform bytes into ``size`` uniforms in [0, 1) on a grid of 2**-53."""
    words = np.frombuffer(source(8 * size), dtype="<u8") >> np.uint64(11)
    return words.astype(np.float64) * 2.0**-53
