"""A public random rotation of a whole vector, so that no coordinate of it stays much larger than another.

A vector of length d is read as ``across`` slabs of ``within`` = 2**k coordinates, and what is left over, the tail, is
shorter than a slab. Three orthonormal steps, undone in reverse order by their transposes:

    1  all slabs: random signs, then the Kronecker product of small flat matrices along every axis, slabs included
    2  the last ``within`` coordinates, the tail among them: random signs, then the same inside this one slab
    3  all slabs counted from the end, the tail included: one flat matrix with random signs across the slabs

Step 1 spreads every coordinate but the tail's over all slabs, and random signs keep flat what is flat; step 2 spreads
the tail's over a slab and step 3 that slab over all others. So every coordinate reaches the whole vector, at d**-0.5
times a small number. A small flat matrix is Hadamard's, or Hartley's where the side is no power of two; products with
them are BLAS calls on what fits the cache, at most 7 bits of the length each, d log d in whole. Where a vector has no
tail, step 1 is all.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from common.stream import public_signs

_DENSE = 256
_SIDE_BITS = 7
_PANEL = 1024


def rotate(values: NDArray[np.floating], stream: str) -> NDArray[np.floating]:
    """Return a vector, (d,) of either float type, under the rotation that ``stream`` chooses: as long as before.

    Rounds in the type of ``values``, relative to the vector's norm by a few units in the last place. What is not finite
    makes some coordinate not finite; nothing is raised.
    """
    across, within = _slabs(len(values))
    whole = across * within
    rotated = values.copy()
    rotated[:whole] *= _signs(stream, "slabs", whole)
    _mix_within(rotated[:whole], within)
    _mix_across(rotated[:whole], _flat(across, rotated.dtype.char))
    if whole < len(values):
        rotated[-within:] *= _signs(stream, "tail", within)
        _mix_within(rotated[-within:], within)
        _mix_across(rotated[-whole:], _signed(stream, across, rotated.dtype.char))
    return rotated


def unrotate(values: NDArray[np.floating], stream: str) -> NDArray[np.float64]:
    """Undo :func:`rotate`, (d,), in float64, to rounding."""
    across, within = _slabs(len(values))
    whole = across * within
    plain = values.astype(np.float64)
    if whole < len(values):
        _mix_across(plain[-whole:], _signed(stream, across, plain.dtype.char).T)
        _mix_within(plain[-within:], within)
        plain[-within:] *= _signs(stream, "tail", within)
    _mix_across(plain[:whole], _flat(across, plain.dtype.char))
    _mix_within(plain[:whole], within)
    plain[:whole] *= _signs(stream, "slabs", whole)
    return plain


def _slabs(length: int) -> tuple[int, int]:
    """Return how many slabs there are and how long one is: few enough for one matrix, each a power of two."""
    if length <= _DENSE:
        return length, 1
    bits = length.bit_length()
    within = 1 << (bits - min(_SIDE_BITS, (bits + 1) // 2))
    return length // within, within


def _mix_within(values: NDArray[np.floating], within: int) -> None:
    """Apply the flat matrix of side ``within`` to each slab in place, one axis of at most 7 bits after the other."""
    bits = within.bit_length() - 1
    axes = -(-bits // _SIDE_BITS)
    sides = [1 << ((bits + axis) // axes) for axis in range(axes)]
    for start in range(0, len(values), within):
        slab = values[start : start + within]
        mixed, right = slab, within
        for side in sides:
            right //= side
            flat = _flat(side, values.dtype.char)
            mixed = mixed.reshape(-1, side) @ flat if right == 1 else flat @ mixed.reshape(-1, side, right)
        slab[:] = mixed.reshape(-1)


def _mix_across(values: NDArray[np.floating], matrix: NDArray[np.floating]) -> None:
    """Apply a matrix across the slabs in place, a panel of columns at a time."""
    slabs = values.reshape(len(matrix), -1)
    for start in range(0, slabs.shape[1], _PANEL):
        panel = slabs[:, start : start + _PANEL]
        panel[:] = matrix @ panel


@lru_cache(maxsize=8)
def _signs(stream: str, part: str, length: int) -> NDArray[np.int8]:
    """Return public signs, a byte a coordinate; eight vectors of them are kept."""
    return public_signs(stream, f"secagg/rotation/{part}", length)


@lru_cache(maxsize=16)
def _signed(stream: str, side: int, dtype: str) -> NDArray[np.floating]:
    """Return the flat matrix after random signs, (side, side)."""
    signed: NDArray[np.floating] = _flat(side, dtype) * _signs(stream, "slabs with the tail", side)
    return signed


@lru_cache(maxsize=64)
def _flat(side: int, dtype: str) -> NDArray[np.floating]:
    """Return a symmetric orthonormal matrix, (side, side), no entry above sqrt(2 / side)."""
    if side.bit_count() == 1:
        matrix = np.ones((1, 1))
        while len(matrix) < side:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    else:
        # Hartley's: cos + sin. The product of the indices is reduced first: a large angle would cost digits.
        angles = 2.0 * np.pi / side * (np.outer(np.arange(side), np.arange(side)) % side)
        matrix = np.cos(angles) + np.sin(angles)
    flat: NDArray[np.floating] = (matrix / np.sqrt(side)).astype(dtype)
    return flat
