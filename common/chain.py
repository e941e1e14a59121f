"""The one hash-chained log: each entry's digest covers its number, its body and the digest before it.

Whoever knows the latest digest can tell whether any earlier entry was changed, removed or put in. Bodies are canonical
JSON (RFC 8785). Nothing here touches a disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from common.parts import Digest

_DOMAIN = b"consilium/v1/chain\x00"


@dataclass(frozen=True, slots=True)
class Link:
    """One entry: its number counted from 1, its body, and the digest of the chain up to and with it."""

    number: int
    body: bytes
    digest: Digest


START = Link(0, b"", Digest(hashlib.sha256(_DOMAIN).hexdigest()))
"""What an empty chain ends with."""


def extend(last: Link, body: bytes) -> Link:
    """Return the entry that follows ``last``."""
    content = _DOMAIN + bytes.fromhex(last.digest) + (last.number + 1).to_bytes(8, "big") + body
    return Link(last.number + 1, body, Digest(hashlib.sha256(content).hexdigest()))


def sound(links: Iterable[Link]) -> Iterator[Link]:
    """Return the longest prefix of a chain in which every number and digest is right."""
    last = START
    for link in links:
        if link != extend(last, link.body):
            return
        yield link
        last = link
