"""The binary form of every protocol message: versioned, typed, bounded, and with one reading only.

Big-endian. A message is a version byte, a kind byte and its fields; every length is checked against a bound before
anything is allocated, and nothing may follow the last field. All errors are CSL-401.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from types import TracebackType

import numpy as np

from common import errors
from common.errors import ConsiliumError
from common.study import MAX_SIMULATED_SITES

VERSION = 1
MAX_VECTOR_BYTES = 1 << 30
SEED, MASK = b"seed", b"mask"
"""The two secrets of an instance, as commitments and mask keys name them."""
KEY_BYTES = 32
NONCE_BYTES = 32
DIGEST_BYTES = 32
SIGNATURE_BYTES = 64
SHARE_BYTES = 32
SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Two shares under AES-GCM with its tag."""
MAX_INSTANCE = 1 << 62
"""No instance number comes near; one that does is a forgery that would overflow its field."""
MAX_PATH = 8
"""Depth of a Merkle tree over at most 255 peers."""
INDEX_BYTES = 2
"""A site's index: deployments stop at 255 sites, simulations go on."""


class Kind(IntEnum):
    """What a message is; the last is a server's own, for its journal."""

    HELLO_REQUEST = 1
    HELLO = 2
    PREPARE_REQUEST = 3
    PREPARE = 4
    ACKNOWLEDGE_REQUEST = 5
    ACKNOWLEDGE = 6
    INPUT_REQUEST = 7
    INPUT = 8
    VIEW_REQUEST = 9
    VIEW = 10
    UNMASK_REQUEST = 11
    UNMASK = 12
    EPOCH = 64


class Writer:
    """Builds one message."""

    def __init__(self, kind: Kind) -> None:
        self._parts = [bytes([VERSION, kind])]

    def fixed(self, value: bytes) -> Writer:
        """Append bytes whose length the reader knows."""
        self._parts.append(value)
        return self

    def number(self, value: int, size: int) -> Writer:
        """Append an unsigned number of ``size`` bytes."""
        self._parts.append(value.to_bytes(size, "big"))
        return self

    def blob(self, value: bytes) -> Writer:
        """Append bytes after their length."""
        return self.number(len(value), 4).fixed(value)

    def indices(self, values: Sequence[int]) -> Writer:
        """Append rising site indices after their count."""
        return self.number(len(values), INDEX_BYTES).fixed(packed_indices(values))

    def done(self) -> bytes:
        """Return the message."""
        return b"".join(self._parts)


class Reader:
    """Reads one message; as a context manager it refuses what is left over."""

    def __init__(self, raw: bytes, kind: Kind) -> None:
        self._raw, self._at = raw, 0
        if self.fixed(2) != bytes([VERSION, kind]):
            raise ConsiliumError(errors.SECAGG_MALFORMED, f"not a {kind.name.lower()} of version {VERSION}")

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and self._at != len(self._raw):
            raise ConsiliumError(errors.SECAGG_MALFORMED, "bytes after the end")

    def fixed(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        if len(self._raw) - self._at < size:
            raise ConsiliumError(errors.SECAGG_MALFORMED, "too short")
        self._at += size
        return self._raw[self._at - size : self._at]

    def number(self, size: int) -> int:
        """Return an unsigned number of ``size`` bytes."""
        return int.from_bytes(self.fixed(size), "big")

    def blob(self, most: int) -> bytes:
        """Return bytes after their length, which is at most ``most``."""
        size = self.number(4)
        if size > most:
            raise ConsiliumError(errors.SECAGG_MALFORMED, "a field is too long")
        return self.fixed(size)

    def indices(self, below: int) -> tuple[int, ...]:
        """Return strictly rising site indices below a bound."""
        values = np.frombuffer(self.fixed(INDEX_BYTES * self.number(INDEX_BYTES)), ">u2").astype(np.int64)
        if (np.diff(values) <= 0).any() or (values >= below).any():
            raise ConsiliumError(errors.SECAGG_MALFORMED, "site indices are out of order or out of range")
        return tuple(values.tolist())


@dataclass(frozen=True, slots=True)
class Hello:
    """A site's channel key for one epoch.

    floor  the highest instance number that the site has ever opened
    """

    nonce: bytes
    key: bytes
    floor: int
    signature: bytes

    def signed(self, study: bytes, server_nonce: bytes, index: int) -> bytes:
        """Return what the signature covers."""
        return study + server_nonce + packed_indices((index,)) + self.nonce + self.key + self.floor.to_bytes(8, "big")

    def write(self, writer: Writer) -> None:
        """Append the fields."""
        writer.fixed(self.nonce).fixed(self.key).number(self.floor, 8).fixed(self.signature)

    @classmethod
    def read(cls, reader: Reader) -> Hello:
        """Read the fields."""
        nonce, key, floor = reader.fixed(NONCE_BYTES), reader.fixed(KEY_BYTES), reader.number(8)
        if floor > MAX_INSTANCE:
            raise ConsiliumError(errors.SECAGG_MALFORMED, "an instance number is out of range")
        return cls(nonce, key, floor, reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Prepare:
    """A site's mask key for one instance, with sealed shares and commitments for every holder in the order of indices.

    sealed       one ciphertext a holder, SEALED_BYTES each; empty for the site itself
    commitments  two digests a peer: of its share of the self-mask seed, of its share of the mask key
    """

    instance: int
    key: bytes
    sealed: tuple[bytes, ...]
    commitments: tuple[tuple[bytes, bytes], ...]
    signature: bytes

    def write(self, writer: Writer) -> None:
        """Append the fields."""
        writer.number(self.instance, 8).fixed(self.key).number(len(self.sealed), 1)
        for sealed, (seed, mask) in zip(self.sealed, self.commitments, strict=True):
            writer.blob(sealed).fixed(seed).fixed(mask)
        writer.fixed(self.signature)

    @classmethod
    def read(cls, reader: Reader) -> Prepare:
        """Read the fields."""
        instance, key, count = reader.number(8), reader.fixed(KEY_BYTES), reader.number(1)
        sealed, commitments = [], []
        for _ in range(count):
            sealed.append(reader.blob(SEALED_BYTES))
            commitments.append((reader.fixed(DIGEST_BYTES), reader.fixed(DIGEST_BYTES)))
        return cls(instance, key, tuple(sealed), tuple(commitments), reader.fixed(SIGNATURE_BYTES))


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one peer sees of another's prepare: its own ciphertext, and the path that ties it to the signed root."""

    key: bytes
    sealed: bytes
    path: tuple[bytes, ...]
    signature: bytes

    def write(self, writer: Writer) -> None:
        """Append the fields."""
        writer.fixed(self.key).blob(self.sealed).number(len(self.path), 1).fixed(b"".join(self.path))
        writer.fixed(self.signature)

    @classmethod
    def read(cls, reader: Reader) -> Delivery:
        """Read the fields."""
        key, sealed, depth = reader.fixed(KEY_BYTES), reader.blob(SEALED_BYTES), reader.number(1)
        if depth > MAX_PATH:
            raise ConsiliumError(errors.SECAGG_MALFORMED, "a path is too long")
        path = tuple(reader.fixed(DIGEST_BYTES) for _ in range(depth))
        return cls(key, sealed, path, reader.fixed(SIGNATURE_BYTES))


def packed_indices(indices: Sequence[int]) -> bytes:
    """Return site indices as they enter messages, signatures and hashes: two bytes each."""
    return struct.pack(f">{len(indices)}H", *indices)


def write_deliveries(writer: Writer, deliveries: Iterable[tuple[int, Delivery]]) -> None:
    """Append deliveries by the index of their sender."""
    listed = list(deliveries)
    writer.number(len(listed), 1)
    for index, delivery in listed:
        writer.number(index, INDEX_BYTES)
        delivery.write(writer)


def read_deliveries(reader: Reader) -> dict[int, Delivery]:
    """Read what :func:`write_deliveries` wrote; indices rise."""
    found: dict[int, Delivery] = {}
    last = 0
    for _ in range(reader.number(1)):
        index = reader.number(INDEX_BYTES)
        if index >= MAX_SIMULATED_SITES or (found and index <= last):
            raise ConsiliumError(errors.SECAGG_MALFORMED, "site indices are out of order or out of range")
        last = index
        found[index] = Delivery.read(reader)
    return found


def write_signatures(writer: Writer, signatures: Iterable[tuple[int, bytes]]) -> None:
    """Append signatures by the index of their signer."""
    listed = sorted(signatures)
    writer.number(len(listed), 1)
    for index, signature in listed:
        writer.number(index, INDEX_BYTES).fixed(signature)


def read_signatures(reader: Reader) -> dict[int, bytes]:
    """Read what :func:`write_signatures` wrote; indices rise."""
    found: dict[int, bytes] = {}
    last = 0
    for _ in range(reader.number(1)):
        index = reader.number(INDEX_BYTES)
        if found and index <= last:
            raise ConsiliumError(errors.SECAGG_MALFORMED, "site indices are out of order")
        last = index
        found[index] = reader.fixed(SIGNATURE_BYTES)
    return found
