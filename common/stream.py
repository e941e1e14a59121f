"""The study's public randomness: the same numbers on every site, and nobody's choice after signing.

An AES-256-CTR keystream keyed by HKDF-SHA256 of the study's ``stream`` and a purpose. It is public: it must never be
used for noise, keys or sampling. Used for the frozen A of FFA-LoRA and the signs of the rotation before encoding.
"""

from __future__ import annotations

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray


def public_bytes(stream: str, purpose: str, size: int) -> bytes:
    """Return ``size`` bytes of the keystream for one purpose.

    stream    64 hex digits, ``study.stream``
    purpose   names the use, such as ``"ffa-lora/layer.4.query"``; different purposes give independent bytes
    """
    key = HKDF(hashes.SHA256(), 32, salt=b"consilium/v1/stream", info=purpose.encode()).derive(bytes.fromhex(stream))
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return encryptor.update(bytes(size))


def public_signs(stream: str, purpose: str, size: int) -> NDArray[np.int8]:
    """Return ``size`` fair signs, each -1 or +1."""
    bits = np.unpackbits(np.frombuffer(public_bytes(stream, purpose, (size + 7) // 8), dtype=np.uint8), count=size)
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)


def public_gaussian(stream: str, purpose: str, size: int) -> NDArray[np.float32]:
    """Return ``size`` standard normal numbers in float32, by Box-Muller in float64 on 53-bit uniforms.

    Rounded to a grid of 2**-12, because ``log`` and ``cos`` may differ between platforms in the last bit of float64:
    two platforms disagree only where a number falls within 2**-52 of a grid midpoint, about once in 2**38 numbers.
    """
    pairs = (size + 1) // 2
    words = np.frombuffer(public_bytes(stream, purpose, pairs * 16), dtype="<u8") >> np.uint64(11)
    uniform = (words.astype(np.float64) + 0.5) * 2.0**-53
    radius = np.sqrt(-2.0 * np.log(uniform[0::2]))
    angle = 2.0 * np.pi * uniform[1::2]
    normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
    return np.asarray(np.round(normal * 4096.0) / 4096.0, dtype=np.float32)
