"""Noise that can be repeated, for simulations only. NOT PRIVATE: whoever knows the seed can take the noise away.

It lives here and enters by constructor: no setting, environment variable or Study field selects it (RULES 15).
"""

from __future__ import annotations

import hashlib

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from client.training.discrete import discrete_gaussian_from
from client.training.noise import gaussian_from, uniform_from


class SeededNoise:
    """A noise source that repeats itself exactly.

    seed     any integer
    purpose  who draws, such as ``"site-003/train"``; two purposes under one seed are independent
    """

    def __init__(self, seed: int, purpose: str) -> None:
        key = hashlib.sha256(f"consilium/v1/simulation/noise\x00{seed}\x00{purpose}".encode()).digest()
        self._keystream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def gaussian(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` standard normals."""
        return gaussian_from(self._bytes, size)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` uniforms in [0, 1)."""
        return uniform_from(self._bytes, size)

    def discrete_gaussian(self, sigma: float, size: int) -> NDArray[np.int64]:
        """Return ``size`` discrete Gaussians."""
        return discrete_gaussian_from(self._bytes, sigma, size)

    def _bytes(self, size: int) -> bytes:
        return self._keystream.update(bytes(size))
