"""From numbers to lanes and back: rotate, clamp, round, pack; and the proof that a sum cannot overflow.

A vector is rotated by a public random rotation, so that no coordinate is much larger than another; clamped to the
study's bound; multiplied by the site's public weight; and rounded to a grid, up or down at random. A sum of lanes
modulo 2**bits is then the sum of the rounded numbers exactly, because

    sum over the roster of (weight * clamp / step + 1)  <  2**(bits - 1),

which is checked when the encoding is made. Rounding adds at most one step to each site's part of a coordinate, in whole
an error of at most sites * step / weight of the survivors. Its mean is zero but for the fixed point that it is done in:
a number of steps x becomes floor((rint(x * 2**f) + u) / 2**f) with u uniform below 2**f, whose mean is rint(x * 2**f) /
2**f exactly, within 2**-(f + 1) of x; f = 16 up to 16 bits and 32 beyond.

A block of coordinates has contributors of its own, named in the study. Another site's numbers there are zeros before
the rotation, so that they cannot matter. :meth:`Encoding.among` leaves blocks out of a sum to which too few of a cohort
contribute, or one of them too much: they are zeros at every site, and in the decoded mean. What a site alone has in a
block thus never enters a sum (RULES 4).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg.masks import Lanes
from common.secagg.rotation import rotate, unrotate
from common.study import Block, Study

Entropy = Callable[[int], bytes]
_COUNT_BITS = 64
_CHUNK = 1 << 15


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
    blocks     ranges to which only some sites contribute, in order; every site contributes to all other coordinates
    left_out   the names of the blocks that are not in this sum
    """

    kind: Literal["vector", "counts"]
    dimension: int
    bits: int
    bound: float
    step: float
    weights: tuple[tuple[SiteId, float], ...]
    stream: str = field(repr=False)
    blocks: tuple[Block, ...] = ()
    left_out: tuple[str, ...] = ()

    @classmethod
    def vector(cls, study: Study, dimension: int) -> Encoding:
        """Return the encoding of a study's updates, all blocks in the sum.

        Raises CSL-409 when no grid fits under the modulus, and CSL-408 for a block that ends outside the vector.
        """
        largest = max(member.band for member in study.roster)
        weights = tuple((member.site_id, member.band / largest) for member in study.roster)
        total, sites = sum(weight for _, weight in weights), len(weights)
        room = (1 << (study.aggregation.bits - 1)) - 2 * sites
        if dimension < 1 or room < 1:
            raise ConsiliumError(errors.SECAGG_OVERFLOW, f"{study.aggregation.bits} bits are too few for {sites} sites")
        bound, blocks = study.aggregation.clamp, study.aggregation.blocks
        for block in blocks:
            if block.stop > dimension:
                raise ConsiliumError(errors.SECAGG_VALUE, f"block {block.name} ends at {block.stop} of {dimension}")
        step = total * bound / room
        return cls("vector", dimension, study.aggregation.bits, bound, step, weights, study.stream, blocks)

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
        """Return 32 bytes that name this encoding, weights and blocks included; they enter every mask's key."""
        return _digest(self)

    def among(self, cohort: Collection[SiteId], needed: int, max_share: float) -> Encoding:
        """Return this encoding without the blocks in which a sum would say too much of one site (RULES 4).

        cohort     the sites that may take part in the sum
        needed     fewest members of it that must contribute to a block
        max_share  largest part of one contributor in the weight of a block's contributors

        A function of the cohort alone, whatever this encoding leaves out already: all sites find the same.
        """
        refused = tuple(b.name for b in self.blocks if self._fault_in(b, cohort, needed, max_share) is not None)
        return self if refused == self.left_out else replace(self, left_out=refused)

    def check_survivors(self, survivors: Collection[SiteId], needed: int, max_share: float) -> None:
        """Raise CSL-404 where losses left a block that is in the sum with too few contributors, or too heavy a one."""
        for block in self.blocks:
            fault = self._fault_in(block, survivors, needed, max_share)
            if fault is not None and block.name not in self.left_out:
                raise ConsiliumError(errors.SECAGG_THRESHOLD, fault)

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
            numbers: NDArray[np.floating] = values.astype(precision, copy=False)
            rotated = rotate(self._own(site, numbers), self.stream)
        return self._rounded(rotated, dict(self.weights)[site] / self.step, entropy)

    def decode(self, total: Lanes, survivors: Collection[SiteId]) -> NDArray[np.float64] | NDArray[np.int64]:
        """Return the weighted mean over the survivors, (dimension,) float64, or the sums of counts, int64.

        In a block it is the mean over its contributors among them; a block that is left out is exactly zero.
        """
        signed = self._signed(total)
        if self.kind == "counts":
            return signed.astype(np.int64, copy=False)
        mean = unrotate(signed * (self.step / self._weight(survivors)), self.stream)
        for block in self.blocks:
            contributors = [] if block.name in self.left_out else _contributors(block, survivors)
            share = self._weight(contributors) / self._weight(survivors)
            mean[block.start : block.stop] *= 1.0 / share if contributors else 0.0
        return mean

    def clamped(self, values: NDArray[np.float32], site: SiteId | None = None) -> NDArray[np.float64]:
        """Return what a vector is after the clamp, back in its own coordinates: what sums are tested against.

        site    whose vector it is; without one, that of a site which contributes to every block
        """
        numbers = self._own(site, values.astype(np.float64))
        return unrotate(np.clip(rotate(numbers, self.stream), -self.bound, self.bound), self.stream)

    def empty(self) -> Lanes:
        """Return lanes of zeros."""
        return np.zeros(self.dimension, dtype=self._lane)

    def pack(self, lanes: Lanes) -> bytes:
        """Return lanes modulo 2**bits as bytes, densely, low bits first."""
        if self.bits == lanes.itemsize * 8:
            return lanes.tobytes()
        if self.bits == 8:
            return lanes.astype(np.uint8).tobytes()
        # 12 and 20 bits: two lanes make a word of 3 or 5 bytes.
        words = np.zeros((self.dimension + 1) // 2, dtype=self._pair)
        words[: self.dimension // 2] = lanes[1::2]
        words <<= np.uint8(self.bits)
        words |= lanes[0::2] & lanes.dtype.type((1 << self.bits) - 1)
        packed = np.empty((len(words), self.bits // 4), dtype=np.uint8)
        for place in range(packed.shape[1]):
            packed[:, place] = words
            words >>= np.uint8(8)
        return packed.tobytes()[: self.packed_bytes]

    def unpack(self, raw: bytes) -> Lanes:
        """Return lanes from their bytes; raises CSL-401 for another length."""
        if len(raw) != self.packed_bytes:
            raise ConsiliumError(errors.SECAGG_MALFORMED, f"{len(raw)} bytes where {self.packed_bytes} were expected")
        if self.bits in (16, 32, 64):
            return np.frombuffer(raw, dtype=self._lane).copy()
        if self.bits == 8:
            return np.frombuffer(raw, dtype=np.uint8).astype(self._lane)
        width = self.bits // 4
        packed = np.frombuffer(raw + bytes(-len(raw) % width), dtype=np.uint8).reshape(-1, width)
        words = packed[:, 0].astype(self._pair)
        for place in range(1, width):
            words |= packed[:, place].astype(self._pair) << np.uint8(8 * place)
        lanes = np.empty(2 * len(words), dtype=self._lane)
        lanes[0::2] = words & self._pair.type((1 << self.bits) - 1)
        lanes[1::2] = words >> np.uint8(self.bits)
        return lanes[: self.dimension]

    @property
    def _lane(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(np.uint16 if self.bits <= 16 else np.uint32 if self.bits <= 32 else np.uint64)

    @property
    def _pair(self) -> np.dtype[np.unsignedinteger]:
        return np.dtype(np.uint32 if self.bits <= 16 else np.uint64)

    def _signed(self, lanes: Lanes) -> NDArray[np.signedinteger]:
        """Read lanes modulo 2**bits as signed numbers of the same width."""
        unused = lanes.dtype.type(lanes.itemsize * 8 - self.bits)
        signed = (lanes << unused).view(f"i{lanes.itemsize}")
        signed >>= signed.dtype.type(unused)
        return signed

    def _own(self, site: SiteId | None, values: NDArray[np.floating]) -> NDArray[np.floating]:
        """Return a site's vector with zeros where it does not contribute, or nobody does."""
        foreign = [b for b in self.blocks if b.name in self.left_out or not (site is None or site in b.sites)]
        own = values.copy() if foreign else values
        for block in foreign:
            own[block.start : block.stop] = 0.0
        return own

    def _weight(self, sites: Collection[SiteId]) -> float:
        return sum(weight for site, weight in self.weights if site in sites)

    def _fault_in(self, block: Block, sites: Collection[SiteId], needed: int, max_share: float) -> str | None:
        """Return why a sum over these sites would say too much of one in a block, or None where it would not."""
        contributors, weights = _contributors(block, sites), dict(self.weights)
        if len(contributors) < max(needed, 1):
            return f"{len(contributors)} contribute to block {block.name}, {needed} are needed"
        if max(weights[site] for site in contributors) > max_share * self._weight(contributors):
            return f"one site would be too large a part of block {block.name}"
        return None

    def _rounded(self, rotated: NDArray[np.floating], scale: float, entropy: Entropy) -> tuple[Lanes, int]:
        """Return lanes and how many coordinates were clamped; a chunk at a time, so that it stays in the cache.

        rotated   (dimension,), overwritten; raises CSL-408 where it is not finite
        scale     steps a unit

        The fixed point holds: a chunk's numbers are below 2**15 - 1 steps, or 2**31 - 1, by the proof of no overflow.
        """
        number, random, fraction = (np.int32, "<u2", 16) if self.bits <= 16 else (np.int64, "<u4", 32)
        factor = rotated.dtype.type(scale * 2.0**fraction)
        encryptor = Cipher(algorithms.AES(entropy(32)), modes.CTR(bytes(16))).encryptor()
        zeros, clamped, lanes = bytes(_CHUNK * fraction // 8), 0, self.empty()
        for start in range(0, self.dimension, _CHUNK):
            part = rotated[start : start + _CHUNK]
            lowest, highest = float(part.min()), float(part.max())
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise ConsiliumError(errors.SECAGG_VALUE, "a value is not finite")
            if max(-lowest, highest) > self.bound:
                clamped += int(np.count_nonzero(np.abs(part) > self.bound))
                np.clip(part, -self.bound, self.bound, out=part)
            part *= factor
            fixed = np.rint(part, out=part).astype(number)
            fixed += np.frombuffer(encryptor.update(zeros), dtype=random)[: len(part)]
            fixed >>= fraction
            lanes[start : start + _CHUNK] = fixed.astype(self._lane)
        return lanes, clamped


@lru_cache(maxsize=8)
def _digest(encoding: Encoding) -> bytes:
    return hashlib.sha256(repr((encoding, encoding.stream)).encode()).digest()


def _contributors(block: Block, sites: Collection[SiteId]) -> list[SiteId]:
    """Return the sites that contribute to a block."""
    return [SiteId(site) for site in block.sites if site in sites]
