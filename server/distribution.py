"""The backbone's bytes for sites that reach no other source of them: chunk after chunk, from where each site says.

A site's reply says from where on it lacks bytes; nothing else is kept about it, and a chunk that was lost, or came
twice, changes nothing. Only bytes of the manifest's own files are ever read, after all of them were compared with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid

from common import backbone as backbones
from common.chunks import CHUNK, CHUNK_BYTES, NEED, PLACE, SIZE, Place, dump_size, file_digests
from common.errors import ConsiliumError
from common.identity import SiteId
from common.logs import log
from common.messages import Stage
from common.study import BackboneManifest
from server.correspondence import Correspondence

_log = log("consilium.distribution")
_AT_ONCE = 8
"""Sites that get chunks at the same time, whatever the roster: each has a few times a chunk in memory at most."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How long sites are given bytes in one turn, and what the requests are bound to.

    seconds  after which no chunk is begun
    timeout  of each chunk, seconds; who was silent for so long, or refused, is let alone for as long
    """

    instance: int
    attempt: int
    seconds: float
    timeout: float


class Distribution:
    """Who lacks what in one study.

    manifest  of the study: no other file is read
    source    returns the folder with the operator's bytes; asked when a site first lacks some
    """

    def __init__(self, manifest: BackboneManifest, letters: Correspondence, source: Callable[[], Path]) -> None:
        self._manifest, self._letters, self._source = manifest, letters, source
        self._needs: dict[SiteId, Place] = {}
        self._left_alone: dict[SiteId, float] = {}
        self._files: tuple[tuple[Path, int], ...] | None = None

    def learn(self, site: SiteId, need: bytes | None) -> None:
        """Note from where on a site lacks bytes, or that it lacks none; raises CSL-130 for what is no place."""
        place = None if need is None else Place.parse(need, self._manifest)
        # Whoever has waited longest stands first.
        self._needs.pop(site, None)
        if place is not None:
            self._needs[site] = place

    def lacks(self, site: SiteId) -> bool:
        """Return whether a site has said that it lacks bytes, and not since that it has them."""
        return site in self._needs

    def feed(self, grid: Grid, nodes: Mapping[SiteId, int], turn: Turn) -> bool:
        """Give those that are connected what they lack, each at its own pace; returns whether anything arrived.

        nodes  whoever is connected, and where

        Takes ``seconds`` and one ``timeout`` at most. Raises CSL-301 to CSL-303 where the operator's bytes are not the
        manifest's, before a byte of them is sent.
        """
        start = time.monotonic()
        due = [site for site in self._needs if site in nodes and self._left_alone.get(site, start) <= start]
        if not due or turn.seconds <= 0:
            return False
        if self._files is None:
            self._files = self._verified()
        end = start + turn.seconds
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return any(list(pool.map(lambda site: self._feed(grid, site, nodes[site], turn, end), due)))

    def _feed(self, grid: Grid, site: SiteId, node: int, turn: Turn, end: float) -> bool:
        arrived = False
        while (place := self._needs.get(site)) is not None and time.monotonic() < end:
            request = self._letters.envelope(Stage.BACKBONE, site, turn.instance, turn.attempt, self._parts(place))
            reply = self._letters.send(grid, {node: request}, turn.timeout).get(node)
            try:
                if reply is not None:
                    self.learn(site, reply.parts.get(NEED))
            except ConsiliumError:
                reply = None
            if reply is None:
                self._left_alone[site] = time.monotonic() + turn.timeout
                break
            arrived = arrived or self._needs.get(site) != place
        if not self.lacks(site):
            _log.info("backbone complete", site=site)
        return arrived

    def _parts(self, place: Place) -> Mapping[str, bytes]:
        """Return the chunk at a place; one without bytes at a file's end or after it, where the site is to compare."""
        assert self._files is not None
        path, size = self._files[place.file]
        with path.open("rb") as stream:
            stream.seek(min(place.offset, size))
            return {CHUNK: stream.read(CHUNK_BYTES), PLACE: place.dump(), SIZE: dump_size(size)}

    def _verified(self) -> tuple[tuple[Path, int], ...]:
        folder = self._source()
        backbones.verify(folder, self._manifest)
        paths = [folder / name for name, _ in file_digests(self._manifest)]
        return tuple((path, path.stat().st_size) for path in paths)
