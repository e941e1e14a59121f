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

from client.evaluation import Judged, judged
from client.training.features import Features
from client.training.loop import train_privately
from client.training.noise import NoiseSource
from client.training.plain import train_plainly
from common.adapters import AdaptedModel, Vector
from common.privacy.plan import PrivacyPlan
from common.transfer import Training
from server.aggregation import moved, server_optimizer


@dataclass(frozen=True, slots=True)
class Learner:
    """One member of an arm.

    features     its training records
    weight       its weight in the mean
    plan         how it trains privately; None trains without clipping and noise
    pretraining  what it learns from without labels in the first rounds, where the study has such
    own          where its rank is smaller: the model that it trains, and where its vector's numbers lie in the shared
    """

    features: Features
    weight: float
    plan: PrivacyPlan | None = None
    pretraining: Features | None = None
    own: tuple[AdaptedModel, NDArray[np.int64]] | None = None

    def features_in(self, model: AdaptedModel, round_index: int) -> Features:
        """Return the records of a round."""
        unlabelled = self.pretraining if model.is_pretraining(round_index) else None
        return self.features if unlabelled is None else unlabelled


@dataclass(frozen=True, slots=True)
class Quality:
    """Exact quality on one set of records.

    examples   number of records
    total      sum of their scores, each in [0, 1]
    confusion  (classes, classes) int64, rows are true labels; None for a task that chooses none
    """

    examples: int
    total: float
    confusion: NDArray[np.int64] | None = None

    @classmethod
    def of(cls, judged: Judged, features: Features, classes: int) -> Quality:
        """Sum up what a model made of some records."""
        if judged.predicted is None:
            return cls(len(features), float(judged.scores.sum()))
        confusion = np.zeros((classes, classes), dtype=np.int64)
        np.add.at(confusion, (features.targets.astype(np.int64), judged.predicted), 1)
        return cls(len(features), float(judged.scores.sum()), confusion)

    @property
    def accuracy(self) -> float:
        """Mean score: share of records with the right label, or what else the task scores; 0 where there are none."""
        return self.total / max(self.examples, 1)

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 over the labels that occur among the true or the predicted ones; None where none are chosen."""
        if self.confusion is None:
            return None
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
        counted = self.confusion is not None and other.confusion is not None
        return Quality(
            self.examples + other.examples,
            self.total + other.total,
            self.confusion + other.confusion if counted else None,  # type: ignore[operator]  # checked a line above
        )


def judge(model: AdaptedModel, vector: Vector, features: Features) -> Quality:
    """Return the exact quality of a vector on records; the model keeps the vector."""
    model.write_vector(vector)
    return Quality.of(judged(model, features), features, model.task.classes)


def judge_all(model: AdaptedModel, vector: Vector, split: Iterable[Features]) -> Quality:
    """Return the exact quality of a vector on the records of all sites together."""
    return Quality.pooled(judge(model, vector, features) for features in split)


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
        vector = moved(optimizer, vector, mean, round_index, model.moves(round_index))
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

    Of a number that only some members train it is the mean over these.

    Arguments as for :func:`train_arm`
    """
    total, weights = np.zeros(len(vector), dtype=np.float64), np.zeros(len(vector), dtype=np.float64)
    for learner in learners:
        own, places = learner.own or (model, np.arange(len(vector)))
        if learner.plan is None:
            update = train_plainly(
                own,
                learner.features_in(model, round_index),
                training,
                noise,
                start=vector[places],
                round_index=round_index,
                sampling_rate=sampling_rate,
            )
        else:
            update = train_privately(
                own,
                learner.features_in(model, round_index),
                learner.plan,
                training,
                noise,
                start=vector[places],
                round_index=round_index,
            )
        total[places] += learner.weight * update.astype(np.float64)
        weights[places] += learner.weight
    return np.asarray(total / weights)
