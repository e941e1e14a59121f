"""Who shares with whom in one epoch: everybody with everybody, or, in a simulation of many sites, with neighbours.

Either way a site's circle holds the shares of its secrets, and the site holds shares of everybody's in its circle. On
the complete graph the circle is the whole cohort, the site itself included. In a neighbourhood it is the neighbours
alone, drawn under the epoch's name, in which every site's nonce is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from common.secagg.neighbours import circles
from common.secagg.terms import Terms


@dataclass(frozen=True, slots=True)
class Graph:
    """One epoch's graph.

    members    indices of the epoch's sites, rising
    threshold  shares that open a secret
    complete   whether every member shares with every other
    """

    members: tuple[int, ...]
    threshold: int
    complete: bool
    _circles: Mapping[int, tuple[int, ...]]

    @classmethod
    def of(cls, terms: Terms, session: bytes, members: Sequence[int]) -> Graph:
        """Return the graph of an epoch; raises CSL-404 where no neighbourhood is safe enough."""
        degree, threshold = terms.degree(len(members)), terms.threshold(len(members))
        if degree is None:
            return cls(tuple(members), threshold, True, {})
        return cls(tuple(members), threshold, False, _neighbours(tuple(members), degree, session))

    def circle(self, index: int) -> tuple[int, ...]:
        """Return who holds this site's shares, rising; these are also the sites whose shares it holds."""
        return self.members if self.complete else self._circles[index]

    def peers(self, index: int) -> tuple[int, ...]:
        """Return the circle without the site itself: with whom it has channels and pairwise masks."""
        return tuple(other for other in self.circle(index) if other != index)

    def opens(self, answered: Collection[int], owners: Collection[int]) -> bool:
        """Say whether enough of every owner's circle have answered."""
        found = set(answered)
        if self.complete:
            return len(found.intersection(self.members)) >= self.threshold
        return all(len(found.intersection(self._circles[owner])) >= self.threshold for owner in owners)


@lru_cache(maxsize=4)
def _neighbours(members: tuple[int, ...], degree: int, session: bytes) -> Mapping[int, tuple[int, ...]]:
    found = circles(len(members), degree, session)
    return {member: tuple(members[place] for place in found[at]) for at, member in enumerate(members)}
