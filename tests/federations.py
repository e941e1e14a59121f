"""Whole studies without torch: the real coordinator, the real sites, and workloads that return known numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from client.ledger import MemoryLedger
from client.site import Site
from common.identity import SiteId
from common.link.inprocess import OPERATOR_NODE, RUN, InProcessGrid
from server.coordinator import Coordinator, Outcome
from server.witnesses import MemoryWitnesses, Witnesses
from tests.studies import NOW, Signed, signed_study

DIMENSION = 50


@dataclass
class KnownWorkload:
    """Returns the same update in every round and the same cells in every evaluation, and remembers its inputs."""

    update: NDArray[np.float32]
    cells: NDArray[np.int64]
    seen: list[NDArray[np.float32]] = field(default_factory=list)

    @property
    def dimension(self) -> int:
        return len(self.update)

    def train(self, start: NDArray[np.float32], round_index: int) -> NDArray[np.float32]:
        del round_index
        self.seen.append(start.copy())
        return self.update

    def evaluate(self, vector: NDArray[np.float32]) -> NDArray[np.int64]:
        del vector
        return self.cells


@dataclass
class Federation:
    """One study's parties."""

    signed: Signed
    workloads: dict[SiteId, KnownWorkload]
    sites: dict[SiteId, Site]
    ledgers: dict[SiteId, MemoryLedger]
    coordinator: Coordinator

    def node(self, site: SiteId) -> int:
        """Return the Flower node that a site sits on: in reverse, so that order tells nothing."""
        return OPERATOR_NODE + len(self.sites) - sorted(self.sites).index(site)

    def run(
        self,
        *,
        lost: Callable[[Message], bool] = lambda _: False,
        tap: Callable[[Message], None] = lambda _: None,
    ) -> Outcome:
        """Run the study to its end."""
        grid = InProcessGrid({self.node(name): site.app() for name, site in self.sites.items()}, lost=lost, tap=tap)
        context = Context(run_id=RUN, node_id=OPERATOR_NODE, node_config={}, state=RecordDict(), run_config={})
        self.coordinator.app()(grid, context)
        return self.coordinator.outcome

    def restart_operator(self, witnesses: Witnesses) -> None:
        """Replace the operator's process by a new one, which knows what its release says and what this store holds."""
        self.coordinator = Coordinator(
            self.signed.agreement, self.signed.operator, self.coordinator.outcome.vector, witnesses=witnesses
        )


def federation(
    sites: int = 4,
    dimension: int = DIMENSION,
    /,
    *,
    updates: Mapping[SiteId, NDArray[np.float32]] | None = None,
    cells: Mapping[SiteId, NDArray[np.int64]] | None = None,
    witnesses: Witnesses | None = None,
    ledgers: dict[SiteId, MemoryLedger] | None = None,
    account: str = "default",
    **changes: object,
) -> Federation:
    """Make a study of some sites whose updates and cells are known; ``ledgers`` are those of an earlier study."""
    signed = signed_study(sites, **changes)
    generator = np.random.default_rng(7)
    workloads = {
        site: KnownWorkload(
            updates[site] if updates else generator.uniform(-0.02, 0.02, dimension).astype(np.float32),
            cells[site] if cells else np.array([100 + index, 90 - index], dtype=np.int64),
        )
        for index, site in enumerate(sorted(signed.sites))
    }
    ledgers = ledgers or {site: MemoryLedger() for site in workloads}
    parties = {
        site: Site(
            signed.agreement,
            site,
            signed.sites[site],
            workload,
            ledgers[site],
            verified=frozenset(signed.sites),
            account=account,
            clock=lambda: NOW,
        )
        for site, workload in workloads.items()
    }
    width = next(iter(workloads.values())).dimension
    coordinator = Coordinator(
        signed.agreement, signed.operator, np.zeros(width, dtype=np.float32), witnesses=witnesses or MemoryWitnesses()
    )
    return Federation(signed, workloads, parties, ledgers, coordinator)


def mean_update(made: Federation, survivors: tuple[SiteId, ...]) -> NDArray[np.float64]:
    """Return the band-weighted mean of the survivors' updates."""
    bands = {member.site_id: member.band for member in made.signed.study.roster}
    total = sum(bands[site] for site in survivors)
    mean = np.zeros(next(iter(made.workloads.values())).dimension)
    for site in survivors:
        mean += bands[site] / total * made.workloads[site].update
    return mean
