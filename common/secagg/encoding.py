"""From numbers to lanes and back: rotate, clamp, round, pack; and the proof that a sum cannot overflow.

A vector is rotated by a public random rotation, so that no coordinate is much larger than another; clamped to the
study's bound; multiplied by the site's public weight; and rounded to a grid, up or down at random, without bias. A
sum of lanes modulo 2**bits is then the sum of the rounded numbers exactly, because

    sum over the roster of (weight * clamp / step + 1)  <  2**(bits - 1),

which is checked when the encoding is made. Rounding adds at most one step to each site's part of a coordinate, in whole
an error of at most sites * step / weight of the survivors, with mean zero.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg.masks import Lanes
from common.stream import public_signs
from common.study import Study

Entropy = Callable[[int], bytes]
_COUNT_BITS = 64
_DEAL = 2


@dataclass(frozen=True, slots=True)
class Encoding:
    """How one kind of payload becomes lanes.

    kind       ``vector`` for weighted means of floats, ``counts`` for plain sums of integers
    dimension  number of coordinates
    bits       of a lane as it travels: the modulus is 2**bits
    bound      clamp of a rotated coordinate, or the largest count either side of zero
    step       the grid's width; 1 for counts
    weights    each site's weight, at most 1; all 1 for counts
    stream     public randomness of the rotation
    """

    kind: Literal["vector", "counts"]
    dimension: int
    bits: int
    bound: float
    step: float
    weights: tuple[tuple[SiteId, float], ...]
    stream: str = field(repr=False)

    @classmethod
    def vector(cls, study: Study, dimension: int) -> Encoding:
        """Return the encoding of a study's updates; raises CSL-409 when no grid fits under the modulus."""
        largest = max(member.band for member in study.roster)
        weights = tuple((member.site_id, member.band / largest) for member in study.roster)
        total, sites = sum(weight for _, weight in weights), len(weights)
        room = (1 << (study.aggregation.bits - 1)) - 2 * sites
        if dimension < 1 or room < 1:
            raise ConsiliumError(errors.SECAGG_OVERFLOW, f"{study.aggregation.bits} bits are too few for {sites} sites")
        bound = study.aggregation.clamp
        return cls("vector", dimension, study.aggregation.bits, bound, total * bound / room, weights, study.stream)

    @classmethod
    def counts(cls, study: Study, *, cells: int, maximum: int) -> Encoding:
        """Return the encoding of signed counts within ``maximum`` either side of zero; raises CSL-409."""
        if cells < 1 or len(study.roster) * float(maximum) >= 1 << (_COUNT_BITS - 1):
            raise ConsiliumError(errors.SECAGG_OVERFLOW, "counts of this size do not fit")
        weights = tuple((member.site_id, 1.0) for member in study.roster)
        return cls("counts", cells, _COUNT_BITS, float(maximum), 1.0, weights, study.stream)

    @property
    def packed_bytes(self) -> int:
        """Bytes of one packed payload."""
        return (self.dimension * self.bits + 7) // 8

    def digest(self) -> bytes:
        """Return 32 bytes that name this encoding, weights included; they enter every mask's key."""
        return hashlib.sha256(repr((self, self.stream)).encode()).digest()

    def encode(self, site: SiteId, values: NDArray[np.generic], entropy: Entropy) -> tuple[Lanes, int]:
        """Return a site's lanes, (dimension,), and how many coordinates were clamped, which stays on site.

        Raises CSL-408 for another shape, a value that is not finite, or a count out of range.
        """
        if values.shape != (self.dimension,):
            raise ConsiliumError(errors.SECAGG_VALUE, f"shape {values.shape}, expected ({self.dimension},)")
        if self.kind == "counts":
            if not np.issubdtype(values.dtype, np.integer):
                raise ConsiliumError(errors.SECAGG_VALUE, "counts are integers")
            if values.size and max(int(values.max()), -int(values.min())) > self.bound:
                raise ConsiliumError(errors.SECAGG_VALUE, "a count is out of range")
            return values.astype(np.int64).view(np.uint64).copy(), 0
        # Beyond 16 bits float32 is coarser than the grid: its rounding would eat the proof's slack; a sum could wrap.
        precision: type[np.float32] | type[np.float64] = np.float32 if self.bits <= 16 else np.float64
        with np.errstate(over="ignore", invalid="ignore"):
            rotated = rotate(values.astype(precision), self.stream)
        # Every coordinate enters others, so that this finds what was not finite before and what overflowed since.
        if not np.isfinite(rotated).all():
            raise ConsiliumError(errors.SECAGG_VALUE, "a value is not finite")
        clamped = int(np.count_nonzero(np.abs(rotated) > self.bound))
        np.clip(rotated, -self.bound, self.bound, out=rotated)
        scaled = rotated * precision(dict(self.weights)[site] / self.step)
        scaled += uniform(self.dimension, entropy)
        return np.floor(scaled).astype(np.int64).astype(self._lane), clamped

    def decode(self, total: Lanes, survivors: Collection[SiteId]) -> NDArray[np.float64] | NDArray[np.int64]:
        """Return the weighted mean over the survivors, (dimension,) float64, or the sums of counts, int64."""
        signed = self._signed(total)
        if self.kind == "counts":
            return signed
        weight = sum(weight for site, weight in self.weights if site in survivors)
        return unrotate(signed.astype(np.float64) * (self.step / weight), self.stream)

    def clamped(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return what a vector is after the clamp, back in its own coordinates: what sums are tested against."""
        rotated = np.clip(rotate(values.astype(np.float64), self.stream), -self.bound, self.bound)
        return unrotate(rotated, self.stream)

    def empty(self) -> Lanes:
        """Return lanes of zeros."""
        return np.zeros(self.dimension, dtype=self._lane)

    def pack(self, lanes: Lanes) -> bytes:
        """Return lanes modulo 2**bits as bytes, densely."""
        if self.bits == lanes.itemsize * 8:
            return lanes.tobytes()
        if self.bits == 8:
            return lanes.astype(np.uint8).tobytes()
        # 12 and 20 bits: through single bits, low bit first.
        bits = np.unpackbits(lanes.view(np.uint8).reshape(self.dimension, -1), axis=1, bitorder="little")
        return np.packbits(bits[:, : self.bits].reshape(-1), bitorder="little").tobytes()

    def unpack(self, raw: bytes) -> Lanes:
        """Return lanes from their bytes; raises CSL-401 for another length."""
        if len(raw) != self.packed_bytes:
            raise ConsiliumError(errors.SECAGG_MALFORMED, f"{len(raw)} bytes where {self.packed_bytes} were expected")
        if self.bits in (16, 32, 64):
            return np.frombuffer(raw, dtype=self._lane).copy()
        if self.bits == 8:
            return np.frombuffer(raw, dtype=np.uint8).astype(self._lane)
        bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8), count=self.dimension * self.bits, bitorder="little")
        wide = np.zeros((self.dimension, self._lane.itemsize * 8), dtype=np.uint8)
        wide[:, : self.bits] = bits.reshape(self.dimension, self.bits)
        return np.packbits(wide, axis=1, bitorder="little").view(self._lane).reshape(self.dimension)

    @property
    def _lane(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(np.uint16 if self.bits <= 16 else np.uint32 if self.bits <= 32 else np.uint64)

    def _signed(self, lanes: Lanes) -> NDArray[np.int64]:
        """Read lanes modulo 2**bits as signed numbers."""
        if self.bits == _COUNT_BITS:
            return lanes.astype(np.uint64).view(np.int64)
        values = lanes.astype(np.int64) & ((1 << self.bits) - 1)
        return values - ((values >> (self.bits - 1)) << self.bits)


def uniform(size: int, entropy: Entropy) -> NDArray[np.float32]:
    """Return ``size`` uniforms in [0, 1) on a grid of 2**-24, from an AES-256-CTR keystream under a fresh key."""
    encryptor = Cipher(algorithms.AES(entropy(32)), modes.CTR(bytes(16))).encryptor()
    words = np.frombuffer(encryptor.update(bytes(4 * size)), dtype="<u4") >> np.uint32(8)
    return words.astype(np.float32) * np.float32(2.0**-24)


def rotate(values: NDArray[np.floating], stream: str) -> NDArray[np.floating]:
    """Return the vector under a public random rotation that mixes all of it: linearithmic, and as long as before.

    Random signs and Hadamard transforms of the largest power of two that fits. Where that is not the whole length, over
    the start and over the end; then, with the coordinates of both dealt out among each other, over both once more.
    """
    rotated = values.copy()
    for number, window in enumerate(_windows(len(values))):
        if number == _DEAL:
            rotated = rotated[_dealt(len(values))]
        rotated[window] *= public_signs(stream, f"secagg/rotation/{number}", window.stop - window.start)
        _hadamard(rotated[window])
    return rotated


def unrotate(values: NDArray[np.float64], stream: str) -> NDArray[np.float64]:
    """Undo :func:`rotate`."""
    plain = values.copy()
    for number, window in reversed(list(enumerate(_windows(len(values))))):
        _hadamard(plain[window])
        plain[window] *= public_signs(stream, f"secagg/rotation/{number}", window.stop - window.start)
        if number == _DEAL:
            scattered = np.empty_like(plain)
            scattered[_dealt(len(values))] = plain
            plain = scattered
    return plain


def _windows(length: int) -> list[slice]:
    power = 1 << (length.bit_length() - 1)
    start, end = slice(0, power), slice(length - power, length)
    return [start] if power == length else [start, end, start, end]


def _dealt(length: int) -> NDArray[np.int64]:
    """Return an order whose neighbours come from all over the vector: steps of the golden section, no place twice."""
    stride = next(step for step in range(round(0.618 * length), length + 1) if math.gcd(step, length) == 1)
    return np.arange(length, dtype=np.int64) * stride % length


def _hadamard(values: NDArray[np.floating]) -> None:
    """Apply the orthonormal Walsh-Hadamard transform in place; the length is a power of two."""
    half = 1
    while half < len(values):
        pairs = values.reshape(-1, 2, half)
        left, right = pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]
        pairs[:, 0], pairs[:, 1] = left, right
        half *= 2
    values /= np.sqrt(len(values)).astype(values.dtype)
