"""Sites with invented notes whose labels follow from their words, on a tiny encoder."""

from __future__ import annotations

import numpy as np

from client.personal import Own
from client.training.features import Features
from client.training.plain import Fit, fit_plainly
from common.adapters import AdaptedModel, Vector
from common.tasks import Task
from simulations.noise import SeededNoise

LABELS = ("home", "ward", "theatre")
TELLING = (("mild", "cough", "no"), ("fever", "since", "yesterday"), ("severe", "chest", "fall"))
ROTATED = ("ward", "theatre", "home")
"""What another site writes where these write LABELS."""
MICRO_BATCH = 32


def notes(
    task: Task, model: AdaptedModel, units: int, seed: int, names: tuple[str, ...] = LABELS, records: int = 1
) -> Features:
    """Return the features of so many units' notes, whose three words tell their label."""
    dice = np.random.default_rng(seed)
    texts, labels, owners = [], [], []
    for unit in range(units):
        label = int(dice.integers(len(LABELS)))
        for _ in range(records):
            words = [*dice.choice(TELLING[label], size=3), *dice.choice(("pain", "with", "and"), size=2)]
            texts.append(" ".join(dice.permutation(words)))
            labels.append(names[label])
            owners.append(unit)
    return Features(model, task.encode(texts, labels, np.array(owners, dtype=np.int64)))


def own(model: AdaptedModel, training: Features, start: Vector) -> Own:
    return Own(model, training, start, SeededNoise(3, "own"), MICRO_BATCH)


def learned(model: AdaptedModel, features: Features, start: Vector, steps: int = 60) -> Vector:
    """Return a vector that was fitted to some notes: what a study would release on them."""
    noise = SeededNoise(4, "shared")
    return fit_plainly(model, features, Fit(steps, 4.0), noise, start=start, micro_batch=MICRO_BATCH)
