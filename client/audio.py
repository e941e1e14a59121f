"""A recording's file, by a path that the hospital's query returned, as one channel of plain samples.

WAV with integer samples (PCM) of 8, 16, 24 or 32 bits, read by the standard library: no decoder of somebody's own.
"""

from __future__ import annotations

import io
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.opening import read_below
from common.contents import Recording

MAX_BYTES = 1 << 29
MAX_SECONDS = 3600
"""Of a recording. What claims to be longer is not read."""
LEAST_RATE, MAX_RATE = 1_000, 400_000
"""Samples a second: below speech, and as bats are recorded."""
_EXTENSIBLE, _PCM = b"\xfe\xff", b"\x01\x00"
_PCM_FORMAT = bytes.fromhex("0100000000001000800000aa00389b71")
"""KSDATAFORMAT_SUBTYPE_PCM."""


def read_recording(folder: Path, path: str) -> Recording | None:
    """Return a recording, or None for one that cannot be read: it contributes nothing and stops nobody (RULES 13).

    folder  what the path is below once links are followed
    path    relative to it

    Raises CSL-502 for a path that leads out of the folder.
    """
    raw = read_below(folder, path, MAX_BYTES)
    return None if raw is None else recording_of(raw)


def recording_of(raw: bytes, seconds: float = MAX_SECONDS) -> Recording | None:
    """Return what a WAV file records: the mean of its channels, no more of it than ``seconds`` from its start.

    A file that is shorter than it says is not read: half a recording is none.
    """
    try:
        with wave.open(io.BytesIO(_as_plain(raw))) as file:
            channels, width, rate, frames = file.getparams()[:4]
            if not LEAST_RATE <= rate <= MAX_RATE or not 0 < frames <= rate * MAX_SECONDS or width > 4:
                return None
            if len(raw) < frames * channels * width:
                return None
            wanted = min(frames, max(1, int(np.ceil(rate * min(seconds, MAX_SECONDS)))))
            file.setpos(frames - 1)
            if len(file.readframes(1)) != channels * width:
                return None
            file.setpos(0)
            whole = _samples(file.readframes(wanted), width).reshape(wanted, channels)
    except Exception:
        # What a damaged or hostile file makes of a reader is anybody's guess; it must not fail the round (RULES 13).
        return None
    return Recording(whole.mean(axis=1, dtype=np.float32), rate)


def _as_plain(raw: bytes) -> bytes:
    """Return a file of the extensible format as one of the plain format, as all versions of the library read it."""
    if raw[12:16] == b"fmt " and raw[20:22] == _EXTENSIBLE and raw[44:60] == _PCM_FORMAT:
        return raw[:20] + _PCM + raw[22:]
    return raw


def _samples(raw: bytes, width: int) -> NDArray[np.float32]:
    """Return little-endian integers of some bytes each, in [-1, 1]; those of one byte have no sign."""
    if width == 1:
        return (np.frombuffer(raw, dtype=np.uint8).astype(np.float32) - np.float32(128)) / np.float32(128)
    wide = np.zeros((len(raw) // width, 4), dtype=np.uint8)
    wide[:, 4 - width :] = np.frombuffer(raw, dtype=np.uint8).reshape(-1, width)
    return (wide.reshape(-1).view("<i4") / 2.0**31).astype(np.float32)
