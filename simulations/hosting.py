"""Where the simulated sites live: in this process, one after the other or together; see :mod:`simulations.ray_engine`.

Every engine makes the same sites from the same parts. What differs is who calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.evaluation import Judged
from client.ledger import MemoryLedger
from client.site import Site, SiteLog, Terms
from client.training.features import Features
from client.training.noise import NoiseSource, SystemNoise
from client.workload import ModelWorkload
from common.adapters import AdaptedModel, Vector
from common.agreement import Agreement
from common.identity import Identity, SiteId
from common.link.inprocess import InProcessGrid
from common.privacy.plan import PrivacyPlan
from common.study import Study
from simulations.engines import EntropySource, node_of
from simulations.noise import SeededNoise
from simulations.options import Engine
from simulations.stacked import Charged, StackedTraining
from simulations.together import Meeting, TogetherGrid, chunk


@dataclass(frozen=True, slots=True)
class Part:
    """What one site brings into a study.

    number    its place among the study's sites, from 0
    training  features of its training records; testing those of its test records, each computed alone; pretraining
              those that the first rounds learn from without labels, where the study has such
    """

    site: SiteId
    number: int
    identity: Identity
    training: Features = field(repr=False)
    testing: Features = field(repr=False)
    pretraining: Features | None = field(default=None, repr=False)


class Hosted(Protocol):
    """A study's sites, wherever they are. Closing ends what was started for them."""

    @property
    def grid(self) -> InProcessGrid:
        """How the coordinator reaches them."""

    def logs(self) -> Mapping[SiteId, SiteLog]:
        """Return what each site keeps for itself."""

    def judge(self, vector: Vector) -> Mapping[SiteId, Judged]:
        """Return what a vector makes of each site's own test records."""

    def seconds(self, name: str) -> float:
        """Return the seconds that all sites together spent on one thing."""

    def close(self) -> None:
        """End the processes of the engine, if it has any."""


class StackedWorkload:
    """A site's workload whose training is computed together with that of others.

    alone    the site's workload, which evaluates
    meeting  where it trains
    The rest is what ``alone`` was made of.
    """

    def __init__(
        self,
        alone: ModelWorkload,
        meeting: Meeting[Charged, Vector],
        *,
        training: Features,
        plan: PrivacyPlan,
        noise: NoiseSource,
    ) -> None:
        self._alone, self._meeting = alone, meeting
        self._training, self._plan, self._noise = training, plan, noise

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self._alone.dimension

    def train(self, start: Vector, round_index: int) -> Vector:
        """Return the private update of one round, (dimension,) float32: end minus start."""
        return self._meeting.ask(Charged(self._training, self._plan, self._noise, start, round_index))

    def evaluate(self, vector: Vector) -> NDArray[np.int64]:
        """Return the noised cells of one evaluation, (2,) int64."""
        return self._alone.evaluate(vector)


class LocalSites:
    """Sites in this process.

    meeting  None trains one site after the other; else those who ask together

    Raises CSL-3xx or CSL-122 for a part that does not fit the study.
    """

    def __init__(
        self,
        agreement: Agreement,
        model: AdaptedModel,
        parts: tuple[Part, ...],
        entropy: EntropySource,
        *,
        meeting: Meeting[Charged, Vector] | None = None,
        lost: Callable[[Message], bool] = lambda _: False,
        tap: Callable[[Message], None] = lambda _: None,
    ) -> None:
        everyone = frozenset(member.site_id for member in agreement.study.roster)
        terms = Terms.of(agreement.study, model.dimension)
        self._meeting = meeting
        self._workloads: dict[SiteId, ModelWorkload] = {}
        self._sites: dict[SiteId, Site] = {}
        self.apps: dict[int, ClientApp] = {}
        """Each site's app by its node."""
        for part in parts:
            noise = noise_of(entropy, part.site)
            alone = ModelWorkload(
                agreement.study,
                part.site,
                model,
                training=part.training,
                testing=part.testing,
                noise=noise,
                pretraining=part.pretraining,
            )
            site = Site(
                agreement,
                part.site,
                part.identity,
                alone if meeting is None else _stacked(agreement.study, part, alone, noise, meeting),
                MemoryLedger(),
                verified=everyone,
                entropy=entropy.of(f"{part.site}/protocol"),
                clock=lambda: datetime.now(UTC),
                terms=terms,
            )
            self._workloads[part.site], self._sites[part.site] = alone, site
            self.apps[node_of(part.number)] = site.app()
        self.grid = (
            InProcessGrid(self.apps, lost=lost, tap=tap)
            if meeting is None
            else TogetherGrid(self.apps, meeting.hold, lost=lost, tap=tap)
        )

    def logs(self) -> Mapping[SiteId, SiteLog]:
        """Return what each site keeps for itself."""
        return {name: site.log for name, site in self._sites.items()}

    def judge(self, vector: Vector) -> Mapping[SiteId, Judged]:
        """Return what a vector makes of each site's own test records."""
        return {name: workload.judge(vector) for name, workload in self._workloads.items()}

    def seconds(self, name: str) -> float:
        """Return the seconds that all sites together spent on one thing; training together is counted once."""
        if name == "training" and self._meeting is not None:
            return self._meeting.seconds
        return sum(log.watch.seconds(name) for log in self.logs().values())

    def close(self) -> None:
        """Nothing was started."""


def host(
    engine: Engine,
    agreement: Agreement,
    model: AdaptedModel,
    parts: tuple[Part, ...],
    entropy: EntropySource,
    *,
    lost: Callable[[Message], bool] = lambda _: False,
    tap: Callable[[Message], None] = lambda _: None,
) -> Hosted:
    """Make a study's sites where an engine runs them; raises CSL-520 for a study that it cannot run, CSL-521, CSL-522.

    lost, tap   for tests, as in :class:`common.link.inprocess.InProcessGrid`
    """
    if engine is Engine.RAY:
        from simulations.ray_engine import RaySites

        return RaySites(agreement, model, parts, entropy, lost=lost, tap=tap)
    meeting = None
    if engine is Engine.STACKED:
        study = agreement.study
        meeting = Meeting(StackedTraining(model, study.training, study.privacy.noise), chunk(model.dimension))
    return LocalSites(agreement, model, parts, entropy, meeting=meeting, lost=lost, tap=tap)


def noise_of(entropy: EntropySource, party: str) -> NoiseSource:
    """Return a party's source of sampling and noise: the system's, or a seeded one where the run must repeat."""
    return SystemNoise() if entropy.seed is None else SeededNoise(entropy.seed, party)


def _stacked(
    study: Study, part: Part, alone: ModelWorkload, noise: NoiseSource, meeting: Meeting[Charged, Vector]
) -> StackedWorkload:
    plan = PrivacyPlan.for_site(study, part.site)
    return StackedWorkload(alone, meeting, training=part.training, plan=plan, noise=noise)
