"""The study itself, in simulation: sites and coordinator from one signed agreement, run by an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Message

from client.evaluation import Judged
from client.site import SiteLog
from common.adapters import Vector
from common.identity import SiteId
from common.study import Privacy
from common.transfer import Training
from server.conduct import Conduct
from server.coordinator import Coordinator
from server.progress import RoundRecord
from server.witnesses import MemoryWitnesses
from simulations.arms import Quality, judge_all
from simulations.authoring import Authored, Consortium, author
from simulations.engines import EntropySource, run_study
from simulations.hosting import Part, host
from simulations.metrics import CurvePoint
from simulations.options import Engine
from simulations.preparation import Prepared
from simulations.progress import Progress
from simulations.scenario import Scenario

_CURVE_POINTS = 10


@dataclass(frozen=True, slots=True)
class Federation:
    """A study that has run, with what each side kept.

    judged       what the released vector makes of each site's own test records, as each site would see it
    seconds      that all sites together spent on training, evaluation and secure sums; and on transport
    curve        exact quality on the pooled validation records as the rounds passed
    """

    authored: Authored
    coordinator: Coordinator
    logs: Mapping[SiteId, SiteLog]
    judged: Mapping[SiteId, Judged]
    curve: tuple[CurvePoint, ...]
    seconds: Mapping[str, float]

    @property
    def vector(self) -> Vector:
        """The vector that the study released."""
        return self.coordinator.outcome.vector


def agree(scenario: Scenario, prepared: Prepared, privacy: Privacy, consortium: Consortium) -> Authored:
    """Write, sign and approve the study of a prepared scenario; raises what :func:`simulations.authoring.author` does.

    privacy  the study's part, as :func:`simulations.authoring.privacy_of` the scenario
    """
    return author(
        scenario,
        manifest=prepared.backbone.manifest,
        units=prepared.units,
        dimension=prepared.model.dimension,
        blocks=prepared.blocks,
        privacy=privacy,
        consortium=consortium,
        stream=prepared.stream,
    )


def federate(
    prepared: Prepared,
    authored: Authored,
    consortium: Consortium,
    entropy: EntropySource,
    progress: Progress,
    *,
    engine: Engine = Engine.INLINE,
    lost: Callable[[Message], bool] = lambda _: False,
    tap: Callable[[Message], None] = lambda _: None,
) -> Federation:
    """Run a signed study over the prepared sites.

    Raises CSL-602 when too few sites are left, CSL-520 to CSL-522 where the engine cannot run it.

    entropy     the source of keys; with a seed the noise is seeded too, and the run is NOT PRIVATE
    lost, tap   for tests, as in :class:`common.link.inprocess.InProcessGrid`
    """
    agreement, study = authored.agreement, authored.study
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
        conduct=Conduct(moves=prepared.model.moves),
    )
    parts = tuple(
        Part(
            site.site,
            number,
            consortium.sites[site.site],
            prepared.training[site.site],
            prepared.testing[site.site],
            prepared.pretraining.get(site.site),
        )
        for number, site in enumerate(prepared.sites)
    )
    progress.phase("federated rounds", rounds)
    hosted = host(engine, agreement, prepared.model, parts, entropy, lost=lost, tap=tap)
    try:
        finished = run_study(
            coordinator, hosted.grid, lambda: (line for log in hosted.logs().values() for line in log.incidents)
        )
        judged, logs = hosted.judge(finished.outcome.vector), hosted.logs()
        seconds = {name: hosted.seconds(name) for name in ("training", "evaluation", "secagg")}
    finally:
        hosted.close()
    return Federation(
        authored, coordinator, logs, judged, tuple(curve), seconds | {"transport": finished.seconds_transport}
    )


def pooled_validation(prepared: Prepared, vector: Vector) -> Quality:
    """Return the exact quality of a vector on all sites' validation records."""
    return judge_all(prepared.model, vector, prepared.validation.values())


def is_shown(round_index: int, rounds: int) -> bool:
    """Return whether a round is one of about ten that the curve shows; the last always is."""
    return (round_index + 1) % max(1, rounds // _CURVE_POINTS) == 0 or round_index + 1 == rounds


def rate_at(training: Training, round_index: int) -> float:
    """Return the learning rate in force in a round: an adaptive server's, else the sites' own."""
    progress = round_index / training.rounds
    return training.server_rate(progress) if training.is_adaptive else training.site_rate(progress)
