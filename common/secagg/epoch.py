"""All that a server holds of one epoch: what sites sent it, the running sum, and the result.

Plain data, nothing secret to the server. :mod:`common.secagg.snapshot` stores and restores it between any two messages.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common.identity import SiteId
from common.secagg.commitments import Tree, leaves_of
from common.secagg.encoding import Encoding
from common.secagg.graph import Graph
from common.secagg.masks import Lanes
from common.secagg.transitions import Phase
from common.secagg.wire import Hello, Prepare


@dataclass(frozen=True, slots=True)
class Sum:
    """A decoded sum.

    values     (dimension,) float64, the weighted mean over the survivors; or int64, sums of counts
    survivors  the sites in it, sorted
    instance   its number
    """

    values: NDArray[np.float64] | NDArray[np.int64]
    survivors: tuple[SiteId, ...]
    instance: int


@dataclass(frozen=True, slots=True)
class Shared:
    """One site's prepare with the Merkle tree over its holders."""

    prepare: Prepare
    tree: Tree

    @classmethod
    def of(cls, prepare: Prepare, holders: tuple[int, ...]) -> Shared:
        """Return a prepare with its tree."""
        return cls(prepare, Tree(leaves_of(prepare, holders)))


@dataclass(slots=True, repr=False)
class Epoch:
    """One epoch as the server sees it; dictionaries are by site index.

    nonce             the server's part of the epoch's name
    members           the epoch's sites, rising
    session           32 bytes, the epoch's name; empty before every hello is in
    instance          number of the sum that is open or comes next
    prepares          for this instance
    following         for the next, as they come with the inputs
    acknowledgements  for the instance that comes next
    answered          who answered in this phase
    total             masked inputs, added up
    context           32 bytes, the open sum's
    survivors         whose inputs are in the total
    revealed          by who revealed them: shares by their owner
    """

    phase: Phase = Phase.CLOSED
    nonce: bytes = b""
    members: tuple[int, ...] = ()
    session: bytes = b""
    graph: Graph | None = None
    instance: int = 0
    hellos: dict[int, Hello] = field(default_factory=dict)
    prepares: dict[int, Shared] = field(default_factory=dict)
    following: dict[int, Shared] = field(default_factory=dict)
    acknowledgements: dict[int, bytes] = field(default_factory=dict)
    answered: set[int] = field(default_factory=set)
    encoding: Encoding | None = None
    total: Lanes | None = None
    context: bytes = b""
    survivors: tuple[int, ...] = ()
    views: dict[int, bytes] = field(default_factory=dict)
    revealed: dict[int, dict[int, bytes]] = field(default_factory=dict)
    result: Sum | None = None
