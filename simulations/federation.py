"""The study itself, in simulation: sites and coordinator from one signed agreement, run by an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
from flwr.app import Message
from numpy.typing import NDArray

from client.ledger import MemoryLedger
from client.site import Site
from client.training.noise import NoiseSource, SystemNoise
from client.workload import TextWorkload
from common.adapters import Vector
from common.identity import SiteId
from common.study import Training
from server.coordinator import Coordinator, RoundRecord
from server.witnesses import MemoryWitnesses
from simulations.arms import Quality, judge
from simulations.authoring import Authored, Consortium
from simulations.engines import EntropySource, run_inline
from simulations.metrics import CurvePoint
from simulations.noise import SeededNoise
from simulations.preparation import Prepared
from simulations.progress import Progress

_CURVE_POINTS = 10


@dataclass(frozen=True, slots=True)
class Federation:
    """A study that has run, with what each side kept.

    predictions  what the released vector predicts for each site's own test records, as each site would see it
    curve        exact quality on the pooled validation records as the rounds passed
    """

    authored: Authored
    coordinator: Coordinator
    sites: Mapping[SiteId, Site]
    predictions: Mapping[SiteId, NDArray[np.int64]]
    curve: tuple[CurvePoint, ...]
    seconds_transport: float

    @property
    def vector(self) -> Vector:
        """The vector that the study released."""
        return self.coordinator.outcome.vector

    def seconds(self, name: str) -> float:
        """Return the seconds that all sites together spent on one thing."""
        return sum(site.log.watch.seconds(name) for site in self.sites.values())


def federate(
    prepared: Prepared,
    authored: Authored,
    consortium: Consortium,
    entropy: EntropySource,
    progress: Progress,
    *,
    lost: Callable[[Message], bool] = lambda _: False,
    tap: Callable[[Message], None] = lambda _: None,
) -> Federation:
    """Run a signed study over the prepared sites; raises CSL-602 when too few sites are left.

    entropy     the source of keys; with a seed the noise is seeded too, and the run is NOT PRIVATE
    lost, tap   for tests, as in :class:`common.link.inprocess.InProcessGrid`
    """
    agreement, study = authored.agreement, authored.study
    everyone = frozenset(member.site_id for member in study.roster)
    workloads = {
        site.site: TextWorkload(
            study,
            site.site,
            prepared.model,
            training=prepared.training[site.site],
            testing=prepared.testing[site.site],
            noise=noise_of(entropy, site.site),
        )
        for site in prepared.sites
    }
    sites = {
        name: Site(
            agreement,
            name,
            consortium.sites[name],
            workload,
            MemoryLedger(),
            verified=everyone,
            entropy=entropy.of(f"{name}/protocol"),
            clock=lambda: datetime.now(UTC),
        )
        for name, workload in workloads.items()
    }
    rounds = study.training.rounds
    shown = {round_index for round_index in range(rounds) if is_shown(round_index, rounds)}
    curve = [CurvePoint(round=0, accuracy=pooled_validation(prepared, prepared.start).accuracy)]

    def after(record: RoundRecord, vector: Vector) -> None:
        progress.advance()
        if record.round_index in shown:
            curve.append(
                CurvePoint(
                    round=record.round_index + 1,
                    accuracy=pooled_validation(prepared, vector).accuracy,
                    learning_rate=rate_at(study.training, record.round_index),
                    update_norm=record.update_norm,
                )
            )

    coordinator = Coordinator(
        agreement,
        consortium.operator,
        prepared.start,
        witnesses=MemoryWitnesses(),
        entropy=entropy.of("operator/protocol"),
        on_round=after,
    )
    progress.phase("federated rounds", rounds)
    finished = run_inline(coordinator, list(sites.values()), lost=lost, tap=tap)
    predictions = {name: workload.predict(finished.outcome.vector) for name, workload in workloads.items()}
    return Federation(authored, coordinator, sites, predictions, tuple(curve), finished.seconds_transport)


def noise_of(entropy: EntropySource, party: str) -> NoiseSource:
    """Return a party's source of sampling and noise: the system's, or a seeded one where the run must repeat."""
    return SystemNoise() if entropy.seed is None else SeededNoise(entropy.seed, party)


def pooled_validation(prepared: Prepared, vector: Vector) -> Quality:
    """Return the exact quality of a vector on all sites' validation records."""
    qualities = [
        judge(prepared.model, vector, features, prepared.task.classes) for features in prepared.validation.values()
    ]
    return sum(qualities[1:], qualities[0])


def is_shown(round_index: int, rounds: int) -> bool:
    """Return whether a round is one of about ten that the curve shows; the last always is."""
    return (round_index + 1) % max(1, rounds // _CURVE_POINTS) == 0 or round_index + 1 == rounds


def rate_at(training: Training, round_index: int) -> float:
    """Return the learning rate in force in a round: the server's with FedAdam, else the sites' own."""
    progress = round_index / training.rounds
    return training.server_rate(progress) if training.server_optimizer == "fedadam" else training.site_rate(progress)
