"""Masks: AES-256-CTR keystreams added to and taken from vectors of unsigned lanes, modulo a power of two.

A mask's key is HKDF-SHA256 of a secret under the sum's context, so that sites which saw different contexts (another
model, cohort, round) hold masks that do not cancel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Lanes: TypeAlias = NDArray[np.unsignedinteger]
"""One unsigned number a coordinate, little-endian, wrapping around."""

Mask: TypeAlias = tuple[bytes, bool]
"""The key of a mask, and whether to take it away."""

_CHUNK = 128 << 10
_ZEROS = bytes(_CHUNK)


def mask_key(secret: bytes, purpose: bytes, context: bytes) -> bytes:
    """Return the AES key of one mask: ``secret`` is a seed or an agreed secret, ``context`` the sum's."""
    return HKDF(hashes.SHA256(), 32, salt=context, info=b"consilium/v1/secagg/" + purpose).derive(secret)


def add_masks(lanes: Lanes, masks: Iterable[Mask]) -> None:
    """Add keystreams to lanes in place, or take them away; wraps around at the lanes' width.

    A part of the lanes that fits the cache gets its piece of every keystream before the next part has its turn.
    """
    streams = [
        (Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor(), np.subtract if subtract else np.add)
        for key, subtract in masks
    ]
    buffer = bytearray(_CHUNK + 16)
    stream = np.frombuffer(buffer, dtype=lanes.dtype, count=_CHUNK // lanes.itemsize)
    for start in range(0, lanes.size, stream.size):
        part = lanes[start : start + stream.size]
        zeros, piece = _ZEROS[: part.nbytes], stream[: part.size]
        for encryptor, operate in streams:
            encryptor.update_into(zeros, buffer)
            operate(part, piece, out=part)
