"""Who is where: one standing a site, since when. No reasons: the operator is told none (RULES 14)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from common.identity import SiteId


class Standing(StrEnum):
    """What the operator can tell of a site."""

    APPROVED = "approved"
    ONLINE = "online"
    FETCHING = "fetching"
    WORKING = "working"
    MASKED = "masked"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Stood:
    """A standing, and since when."""

    standing: Standing
    since: datetime


class Board:
    """The standing of every site of the study that runs. Safe from several threads."""

    def __init__(self, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._sites: dict[SiteId, Stood] = {}

    def begin(self, sites: Iterable[SiteId]) -> None:
        """Forget the study before: all sites of this one have approved it, and nothing else is known."""
        with self._lock:
            self._sites = {site: Stood(Standing.APPROVED, self._clock()) for site in sites}

    def set(self, site: SiteId, standing: Standing) -> None:
        """Note a standing; one that was so before keeps its time."""
        with self._lock:
            known = self._sites.get(site)
            if known is None or known.standing is not standing:
                self._sites[site] = Stood(standing, self._clock())

    def sites(self) -> Mapping[SiteId, Stood]:
        """Return every site's standing, in order of names."""
        with self._lock:
            return dict(sorted(self._sites.items()))
