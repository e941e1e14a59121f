"""Arms: ways of training that a study is compared with, or that are tried on the validation split before it.

An arm is a set of members that train as the sites of a study do and whose mean moves one vector. Every arm shares the
model, the start, the rounds, the steps and the server's optimiser, so that only what its name says differs. Arms
exist in the simulator only; nothing they compute is a release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.evaluation import predict
from client.training.features import Features
from client.training.loop import train_privately
from client.training.noise import NoiseSource
from client.training.plain import train_plainly
from common.adapters import AdaptedModel, Vector
from common.privacy.plan import PrivacyPlan
from common.transfer import Training
from server.aggregation import server_optimizer


@dataclass(frozen=True, slots=True)
class Learner:
    """One member of an arm.

    features  its training records
    weight    its weight in the mean
    plan      how it trains privately; None trains without clipping and noise
    """

    features: Features
    weight: float
    plan: PrivacyPlan | None = None


@dataclass(frozen=True, slots=True)
class Quality:
    """Exact quality on one set of records, from its confusion counts.

    confusion  (classes, classes) int64, rows are true labels
    """

    confusion: NDArray[np.int64]

    @classmethod
    def of(cls, targets: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> Quality:
        """Count predictions, (n,) int64 each, against the true labels."""
        confusion = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(confusion, (targets, predicted), 1)
        return cls(confusion)

    @property
    def examples(self) -> int:
        """Number of records."""
        return int(self.confusion.sum())

    @property
    def accuracy(self) -> float:
        """Share of records with the right label; 0 where there are none."""
        return float(np.trace(self.confusion)) / max(self.examples, 1)

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the labels that occur among the true or the predicted ones."""
        hits = np.diag(self.confusion).astype(np.float64)
        total = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        present = total > 0
        return float(np.mean(2.0 * hits[present] / total[present])) if present.any() else 0.0

    @classmethod
    def pooled(cls, parts: Iterable[Quality]) -> Quality:
        """Return the quality on all the records of some sets together, at least one."""
        first, *others = parts
        return sum(others, first)

    def __add__(self, other: Quality) -> Quality:
        return Quality(self.confusion + other.confusion)


def judge(model: AdaptedModel, vector: Vector, features: Features, classes: int) -> Quality:
    """Return the exact quality of a vector on records; the model keeps the vector."""
    model.write_vector(vector)
    return Quality.of(features.targets, predict(model, features), classes)


def judge_all(model: AdaptedModel, vector: Vector, split: Iterable[Features], classes: int) -> Quality:
    """Return the exact quality of a vector on the records of all sites together."""
    return Quality.pooled(judge(model, vector, features, classes) for features in split)


def train_arm(
    model: AdaptedModel,
    learners: Sequence[Learner],
    training: Training,
    start: Vector,
    *,
    sampling_rate: float,
    noise: NoiseSource,
    on_round: Callable[[int], None] = lambda _: None,
) -> Vector:
    """Train one arm and return its vector.

    sampling_rate  probability of each unit in a step of a learner without a plan, the same as in the study
    """
    optimizer = server_optimizer(training)
    vector = start.copy()
    for round_index in range(training.rounds):
        mean = mean_update(model, learners, training, vector, round_index, sampling_rate=sampling_rate, noise=noise)
        vector = optimizer.step(vector, mean, round_index)
        on_round(round_index)
    return vector


def mean_update(
    model: AdaptedModel,
    learners: Sequence[Learner],
    training: Training,
    vector: Vector,
    round_index: int,
    *,
    sampling_rate: float,
    noise: NoiseSource,
) -> NDArray[np.float64]:
    """Train every member of an arm for one round and return the weighted mean of their updates, (dimension,).

    Arguments as for :func:`train_arm`
    """
    total = sum(learner.weight for learner in learners)
    mean = np.zeros(len(vector), dtype=np.float64)
    for learner in learners:
        if learner.plan is None:
            update = train_plainly(
                model,
                learner.features,
                training,
                noise,
                start=vector,
                round_index=round_index,
                sampling_rate=sampling_rate,
            )
        else:
            update = train_privately(
                model, learner.features, learner.plan, training, noise, start=vector, round_index=round_index
            )
        mean += learner.weight / total * update.astype(np.float64)
    return mean
