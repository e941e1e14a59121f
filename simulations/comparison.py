"""What the study is compared with, and how every arm's learning rate was chosen: fairly, and said.

All arms share split, adapter, start, rounds, steps, sampling rate, server optimiser and the same grid of learning
rates, tried on validation records that no arm trains on. Choosing on exact figures is not private, and is marked so
(RULES 10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.training.features import Features
from client.training.noise import NoiseSource
from common.adapters import AdaptedModel, Vector, attach_at, ranks, shapes_of
from common.identity import SiteId
from common.privacy.bounds import band
from common.privacy.plan import PrivacyPlan
from common.study import Privacy
from common.transfer import Training
from simulations.arms import Learner, Quality, judge, judge_all, train_arm
from simulations.metrics import Trial, Tuning
from simulations.preparation import Prepared
from simulations.progress import Progress
from simulations.scenario import Baseline, Scenario, with_rate

FEDERATED = "federated"


@dataclass(frozen=True, slots=True)
class Compared:
    """What one arm came to.

    pooled   exact quality on the pooled test records, one for each vector that the arm trained
    own      exact quality of each site's model on that site's own test records
    """

    pooled: Mapping[SiteId, Quality]
    own: Mapping[SiteId, Quality]


class Comparison:
    """Trains arms on prepared sites.

    privacy   the study's privacy part, for the private arm's trials
    noise     sampling for the arms, and the trials' noise
    """

    def __init__(
        self, scenario: Scenario, prepared: Prepared, privacy: Privacy, progress: Progress, noise: NoiseSource
    ) -> None:
        self._scenario, self._prepared, self._privacy = scenario, prepared, privacy
        self._progress, self._noise = progress, noise
        self._truncated: dict[SiteId, tuple[AdaptedModel, NDArray[np.int64]]] = {}

    def tune(self, arms: Sequence[str]) -> tuple[dict[str, Training], Tuning | None]:
        """Return each arm's training settings and how they were chosen; the scenario's own where nothing is tuned."""
        training, tuning = self._scenario.training, self._scenario.tuning
        if tuning is None:
            return dict.fromkeys(arms, training), None
        rounds = tuning.rounds or training.rounds
        chosen, trials = {}, []
        self._progress.phase("tuning on validation records", len(arms) * len(tuning.learning_rates))
        for arm in arms:
            scores = {}
            for rate in tuning.learning_rates:
                short = with_rate(training, rate).model_copy(update={"rounds": rounds})
                scores[rate] = self.validation_accuracy(arm, short)
                self._progress.advance()
            best = max(scores, key=lambda rate: scores[rate])
            chosen[arm] = with_rate(training, best)
            trials += [
                Trial(
                    arm=arm,
                    settings={"learning_rate": rate, "rounds": rounds},
                    accuracy=accuracy,
                    chosen=rate == best,
                )
                for rate, accuracy in scores.items()
            ]
        return chosen, Tuning(trials=tuple(trials))

    def validation_accuracy(self, arm: str, training: Training) -> float:
        """Train one arm and return its exact accuracy on validation records: choosing by it is not private."""
        vectors = self._vectors(arm, training, lambda: None)
        validation = self._prepared.validation
        if arm == Baseline.LOCAL_ONLY:
            # A site alone has its own validation records and nobody else's.
            return float(np.mean([self._pooled(vector, {s: validation[s]}).accuracy for s, vector in vectors.items()]))
        return self._pooled(next(iter(vectors.values())), validation).accuracy

    def run(self, arm: str, training: Training) -> Compared:
        """Train one baseline in full and judge it on the test records."""
        vectors = self._vectors(arm, training, self._progress.advance)
        pooled = {site: self._pooled(vector, self._prepared.testing) for site, vector in self._distinct(vectors)}
        if len(pooled) == 1:
            pooled = dict.fromkeys(vectors, next(iter(pooled.values())))
        own = {
            site: judge(self._prepared.model, vector, self._prepared.testing[site]) for site, vector in vectors.items()
        }
        return Compared(pooled, own)

    def rounds_of(self, arm: str) -> int:
        """Return how often :meth:`run` will report progress."""
        return self._scenario.training.rounds * (len(self._prepared.sites) if arm == Baseline.LOCAL_ONLY else 1)

    def majority(self) -> Quality | None:
        """Return the exact quality of always saying the commonest training label, on the pooled test records.

        None for a task that chooses no label.
        """
        classes = self._prepared.task.classes
        if not classes:
            return None
        counts = sum(
            (np.bincount(features.targets, minlength=classes) for features in self._prepared.training.values()),
            start=np.zeros(classes, dtype=np.int64),
        )
        confusion = np.zeros((classes, classes), dtype=np.int64)
        for features in self._prepared.testing.values():
            confusion[:, int(np.argmax(counts))] += np.bincount(features.targets, minlength=classes)
        return Quality(int(confusion.sum()), float(np.trace(confusion)), confusion)

    def _vectors(self, arm: str, training: Training, advance: Callable[[], None]) -> dict[SiteId, Vector]:
        """Train an arm; returns the vector that each site ends with."""
        features, units, before = self._prepared.training, self._prepared.units, self._prepared.pretraining
        if arm == Baseline.LOCAL_ONLY:
            return {
                site: self._train([Learner(own, 1.0, pretraining=before.get(site))], training, advance)
                for site, own in features.items()
            }
        if arm == Baseline.CENTRALISED_NONPRIVATE:
            joined = Features.joined(tuple(before.values())) if before else None
            learners = [Learner(Features.joined(tuple(features.values())), 1.0, pretraining=joined)]
        else:
            learners = [
                Learner(
                    own,
                    band(units[site]),
                    self._plan(training, site) if arm == FEDERATED else None,
                    before.get(site),
                    self._own(site),
                )
                for site, own in features.items()
            ]
        return dict.fromkeys(features, self._train(learners, training, advance))

    def _own(self, site: SiteId) -> tuple[AdaptedModel, NDArray[np.int64]] | None:
        """Return the model of a site whose rank is smaller than the study's, and where its numbers lie."""
        model = self._prepared.model
        if model.spec.rank_at(site) == model.spec.rank:
            return None
        if site not in self._truncated:
            places = ranks.places(model.spec, shapes_of(model), model.spec.rank_at(site))
            self._truncated[site] = attach_at(model, site, self._prepared.stream), places
        return self._truncated[site]

    def _train(self, learners: Sequence[Learner], training: Training, advance: Callable[[], None]) -> Vector:
        return train_arm(
            self._prepared.model,
            learners,
            training,
            self._prepared.start,
            sampling_rate=self._privacy.sampling_rate,
            noise=self._noise,
            on_round=lambda _: advance(),
        )

    def _plan(self, training: Training, site: SiteId) -> PrivacyPlan:
        return PrivacyPlan.of(
            self._privacy, training, self._scenario.evaluation, population=band(self._prepared.units[site])
        )

    def _pooled(self, vector: Vector, split: Mapping[SiteId, Features]) -> Quality:
        return judge_all(self._prepared.model, vector, split.values())

    @staticmethod
    def _distinct(vectors: Mapping[SiteId, Vector]) -> list[tuple[SiteId, Vector]]:
        """Return one site for each vector that differs, since the shared ones are one object."""
        seen: dict[int, tuple[SiteId, Vector]] = {}
        for site, vector in vectors.items():
            seen.setdefault(id(vector), (site, vector))
        return list(seen.values())
