"""Commitments of one prepare: a Merkle root over the peers' leaves, which the site signs.

A leaf holds the peer's ciphertext and a hash of each of its two shares. The peer checks its own leaf; the server
checks a revealed share against the leaf, so that a bad share is caught and the pair it passed between is named.
Shares are 32 bytes of high entropy: a plain hash hides them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from common.secagg.wire import Prepare, packed_indices


def commit(share: bytes, kind: bytes, owner: int, holder: int) -> bytes:
    """Return the commitment to one share of ``owner``'s, held by ``holder``; the kind is ``seed`` or ``mask``."""
    return hashlib.sha256(b"consilium/v1/secagg/share/" + kind + packed_indices((owner, holder)) + share).digest()


def leaf(holder: int, sealed: bytes, commitments: tuple[bytes, bytes]) -> bytes:
    """Return one peer's leaf."""
    return hashlib.sha256(b"\x00" + packed_indices((holder,)) + sealed + b"".join(commitments)).digest()


class Tree:
    """A Merkle tree over leaves in their order.

    root  32 bytes
    """

    __slots__ = ("_levels", "root")

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = [list(leaves)]
        while len(level := self._levels[-1]) > 1:
            self._levels.append([_node(*level[i : i + 2]) for i in range(0, len(level), 2)])
        self.root = self._levels[-1][0]

    def path(self, place: int) -> tuple[bytes, ...]:
        """Return the siblings from a leaf up to the root; an absent sibling is 32 zero bytes."""
        path = []
        for level in self._levels[:-1]:
            sibling = place ^ 1
            path.append(level[sibling] if sibling < len(level) else bytes(32))
            place //= 2
        return tuple(path)


def climb(start: bytes, place: int, path: Sequence[bytes]) -> bytes:
    """Return the root that a leaf at a place and a path lead to."""
    node = start
    for sibling in path:
        node = _node(sibling, node) if place & 1 else _node(node, sibling) if any(sibling) else _node(node)
        place //= 2
    return node


def leaves_of(prepare: Prepare, holders: Sequence[int]) -> list[bytes]:
    """Return a prepare's leaves for its holders, in their order."""
    return [
        leaf(holder, sealed, commitments)
        for holder, sealed, commitments in zip(holders, prepare.sealed, prepare.commitments, strict=True)
    ]


def signed_prepare(session: bytes, instance: int, index: int, key: bytes, root: bytes) -> bytes:
    """Return what a prepare's signature covers."""
    return session + instance.to_bytes(8, "big") + packed_indices((index,)) + key + root


def _node(left: bytes, right: bytes = b"") -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
