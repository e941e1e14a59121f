"""Masks: AES-256-CTR keystreams added to and taken from vectors of unsigned lanes, modulo a power of two.

A mask's key is HKDF-SHA256 of a secret under the sum's context, so that sites which saw different contexts (another
model, cohort, round) hold masks that do not cancel.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

Lanes: TypeAlias = NDArray[np.unsignedinteger]
"""One unsigned number a coordinate, little-endian, wrapping around."""

_CHUNK = 128 << 10
_ZEROS = bytes(_CHUNK)


def mask_key(secret: bytes, purpose: bytes, context: bytes) -> bytes:
    """Return the AES key of one mask: ``secret`` is a seed or an agreed secret, ``context`` the sum's."""
    return HKDF(hashes.SHA256(), 32, salt=context, info=b"consilium/v1/secagg/" + purpose).derive(secret)


def add_mask(lanes: Lanes, key: bytes, *, subtract: bool = False) -> None:
    """Add a keystream to lanes in place, or take it away; wraps around at the lanes' width."""
    encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    buffer = bytearray(_CHUNK + 16)
    stream = np.frombuffer(buffer, dtype=lanes.dtype, count=_CHUNK // lanes.itemsize)
    operate = np.subtract if subtract else np.add
    for start in range(0, lanes.size, stream.size):
        part = lanes[start : start + stream.size]
        encryptor.update_into(_ZEROS[: part.nbytes], buffer)
        operate(part, stream[: part.size], out=part)
