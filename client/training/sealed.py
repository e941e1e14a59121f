"""A file of sealed records: each is opened by itself, and none can be changed, moved or put into another file unseen.

A header (format, salt, and a tag over both, the file's name and its number of records), then one record after the
other, each as ciphertext and tag of AES-256-GCM. How long each is, the reader knows; the file does not say. The key is
HKDF-SHA256 of the owner's key with a fresh 256-bit salt and the file's name [RFC 5869], a record's nonce is its index,
and each is written once: no key and nonce meet twice.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError

_FORMAT = b"CSLROWS\x01"
_SALT_BYTES = 32
_TAG_BYTES = 16
_NONCE_BYTES = 12
_HEADER_BYTES = len(_FORMAT) + _SALT_BYTES + _TAG_BYTES
_HEADER_NONCE = b"\xff" * _NONCE_BYTES
"""No record has this index."""

Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Layout:
    """Which file it is, and where each record lies in it.

    name  32 bytes
    ends  (n,) int64, where each sealed record ends
    """

    name: bytes
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, name: bytes, sizes: NDArray[np.int64]) -> Layout:
        """Return the layout of records of so many bytes each, (n,) int64, before they are sealed."""
        return cls(name, _HEADER_BYTES + np.cumsum(sizes + _TAG_BYTES))

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def file_bytes(self) -> int:
        """Length of the file."""
        return int(self.ends[-1]) if len(self) else _HEADER_BYTES

    def span(self, index: int) -> tuple[int, int]:
        """Return where a sealed record begins and ends."""
        return int(self.ends[index - 1]) if index else _HEADER_BYTES, int(self.ends[index])


class SealedWriter:
    """Writes a file's records in any order, then its header: before that it is no file to anyone.

    descriptor  open for reading and writing; stays the caller's
    key         the owner's, 32 bytes

    Raises CSL-341 where the disk refuses.
    """

    def __init__(self, descriptor: int, key: bytes, layout: Layout) -> None:
        self._descriptor, self._layout = descriptor, layout
        self._salt = os.urandom(_SALT_BYTES)
        self._seal = _Seal(key, self._salt, layout)
        self._is_written = np.zeros(len(layout), dtype=np.bool_)

    def write(self, index: int, plain: bytes) -> None:
        """Seal one record; raises ValueError for one that was written before or has another size."""
        start, end = self._layout.span(index)
        if self._is_written[index] or len(plain) + _TAG_BYTES != end - start:
            raise ValueError("a record is written once, in the size that was foreseen")
        self._is_written[index] = True
        self._write(self._seal.close(index, plain), start)

    def finish(self) -> SealedFile:
        """Make it a file, durably, and return it for reading; raises ValueError while a record is missing."""
        if not self._is_written.all():
            raise ValueError("a record was not written")
        self._write(_FORMAT + self._salt + self._seal.close_header(), 0)
        with refused_by_disk():
            os.fsync(self._descriptor)
        return SealedFile(self._descriptor, self._seal, self._layout)

    def _write(self, data: bytes, offset: int) -> None:
        with refused_by_disk():
            while data:
                written = os.pwrite(self._descriptor, data, offset)
                data, offset = data[written:], offset + written


class SealedFile:
    """A file's records, mapped into memory and opened one by one.

    The map keeps the descriptor's lock for as long as the file is read. :meth:`opened` is for files found on disk.
    """

    def __init__(self, descriptor: int, seal: _Seal, layout: Layout) -> None:
        self._seal, self._layout = seal, layout
        with refused_by_disk():
            self._map = mmap.mmap(descriptor, layout.file_bytes, access=mmap.ACCESS_READ)

    @classmethod
    def opened(cls, descriptor: int, key: bytes, layout: Layout) -> Self:
        """Return a file after every record in it was verified; raises CSL-340 for one that is not what was written.

        It is read here and not mapped yet: a sector that cannot be read is an error in a read, and the death of the
        process in a map.
        """
        try:
            header = os.pread(descriptor, _HEADER_BYTES, 0)
            seal = _Seal(key, header[len(_FORMAT) : len(_FORMAT) + _SALT_BYTES], layout)
            if not header.startswith(_FORMAT) or os.fstat(descriptor).st_size != layout.file_bytes:
                raise InvalidTag
            seal.check_header(header[-_TAG_BYTES:])
            for index in range(len(layout)):
                start, end = layout.span(index)
                seal.open(index, os.pread(descriptor, end - start, start))
        except (InvalidTag, OSError) as error:
            raise _damaged(layout) from error
        return cls(descriptor, seal, layout)

    def read(self, index: int) -> bytes:
        """Return one record; raises CSL-340 if it is not what was written."""
        start, end = self._layout.span(index)
        try:
            # Beyond the end of a file that was cut short, a map has no bytes, and touching it kills the process.
            if self._map.size() != self._layout.file_bytes:
                raise InvalidTag
            with memoryview(self._map) as mapped:
                return self._seal.open(index, mapped[start:end])
        except (InvalidTag, OSError) as error:
            raise _damaged(self._layout) from error


class _Seal:
    """A file's cipher."""

    def __init__(self, key: bytes, salt: bytes, layout: Layout) -> None:
        self._context = layout.name + len(layout).to_bytes(8, "big")
        derived = HKDF(hashes.SHA256(), 32, salt=salt, info=b"consilium/v1/sealed\x00" + layout.name).derive(key)
        self._cipher = AESGCM(derived)
        self._header = _FORMAT + salt + self._context

    def close(self, index: int, plain: bytes) -> bytes:
        """Return a record's ciphertext and tag."""
        return self._cipher.encrypt(index.to_bytes(_NONCE_BYTES, "big"), plain, self._of(index))

    def open(self, index: int, sealed: Buffer) -> bytes:
        """Return a record; raises InvalidTag."""
        return self._cipher.decrypt(index.to_bytes(_NONCE_BYTES, "big"), sealed, self._of(index))

    def close_header(self) -> bytes:
        """Return the header's tag."""
        return self._cipher.encrypt(_HEADER_NONCE, b"", self._header)

    def check_header(self, tag: bytes) -> None:
        """Check the header's tag; raises InvalidTag."""
        self._cipher.decrypt(_HEADER_NONCE, tag, self._header)

    def _of(self, index: int) -> bytes:
        return self._context + index.to_bytes(8, "big")


@contextmanager
def refused_by_disk() -> Iterator[None]:
    """Turn what the file system says into CSL-341."""
    try:
        yield
    except OSError as error:
        raise ConsiliumError(errors.FEATURES_NOT_KEPT, error.strerror or type(error).__name__) from error


def _damaged(layout: Layout) -> ConsiliumError:
    return ConsiliumError(errors.FEATURES_DAMAGED, f"file {layout.name.hex()[:12]}")
