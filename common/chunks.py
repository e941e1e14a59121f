"""How a backbone's bytes travel from the operator: in chunks, each with its place, and what is missing as the reply.

The study's manifest says which files there are and which bytes are right; their sizes it does not say, so that each
chunk carries its file's. Names and limits here are what both sides must read alike.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Self

from common import errors
from common.errors import ConsiliumError
from common.study import BackboneManifest

NEED = "need"
"""Part of a site's reply: the place from which on bytes are missing; absent where nothing is."""
CHUNK, PLACE, SIZE = "chunk", "place", "size"
"""Parts of the operator's request: bytes, where they belong, and how long their whole file is."""
NEED_BYTES = 16
CHUNK_BYTES = 4 << 20
"""Most bytes in one chunk: one piece of Flower's. A link that breaks costs one chunk again."""
_PLACE, _SIZE = struct.Struct(">QQ"), struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a backbone's files.

    file    which of the manifest's files, counted from 0 in order of their names
    offset  bytes of the file before it
    """

    file: int
    offset: int

    def dump(self) -> bytes:
        """Return 16 bytes, big-endian."""
        return _PLACE.pack(self.file, self.offset)

    @classmethod
    def parse(cls, raw: bytes, manifest: BackboneManifest) -> Self:
        """Read a place; raises CSL-130 for one in no file of the manifest."""
        if len(raw) != _PLACE.size:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, f"a place has {_PLACE.size} bytes")
        file, offset = _PLACE.unpack(raw)
        if file >= len(manifest.files):
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "a place in no file of the manifest")
        return cls(file, offset)


def file_digests(manifest: BackboneManifest) -> tuple[tuple[str, str], ...]:
    """Return each file's relative path and SHA-256, in the order that places count in."""
    return tuple(sorted(manifest.files.items()))


def dump_size(size: int) -> bytes:
    """Return a file's size as eight big-endian bytes."""
    return _SIZE.pack(size)


def parse_size(raw: bytes) -> int:
    """Read a file's size; raises CSL-130."""
    if len(raw) != _SIZE.size:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, f"a size has {_SIZE.size} bytes")
    (size,) = _SIZE.unpack(raw)
    return int(size)
