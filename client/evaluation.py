"""What a site says about quality: two counts, noised so that they are private by themselves (RULES 9).

Each evaluated unit has a total weight of one, however many records it owns, and each record a score between 0 and 1 by
the task, so that one unit changes the cells (weight, score) by at most (1, 1). Cells are integers at a public
fixed-point scale, and each site adds discrete Gaussian noise of its own before they enter the secure sum.

A prediction is a step function. The low bits of a batched product depend on the batch's shape, so a server that sends a
vector with all labels nearly tied could let one record more or less turn the predictions of many. What is released is
therefore computed record by record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features, device_of
from client.training.noise import NoiseSource
from client.training.step import privacy_units
from common.adapters import AdaptedModel
from common.privacy.accounting import EVALUATION_CELLS, EVALUATION_SCALE
from common.privacy.plan import PrivacyPlan

_BATCH = 64


@dataclass(frozen=True, slots=True)
class Judged:
    """What a model makes of some records. Sensitive.

    scores     (n,) float64 in [0, 1], how right each is by the task; 0 for what is not finite
    predicted  (n,) int64, the label chosen for each; None where the task chooses none
    """

    scores: NDArray[np.float64] = field(repr=False)
    predicted: NDArray[np.int64] | None = field(default=None, repr=False)


@torch.no_grad()
def judged(model: AdaptedModel, features: Features, *, alone: bool = False) -> Judged:
    """Return what a model makes of each record, in the order of ``features``.

    alone  compute each record by itself, for whatever is released; its prefix too, if ``features`` were made so
    """
    scores, predicted = np.zeros(len(features)), np.zeros(len(features), dtype=np.int64)
    device, chooses = device_of(model), model.task.classes > 0
    for rows in features.micro_batches(np.arange(len(features)), 1 if alone else _BATCH):
        found, labels = features.judged(model, features.batch(rows, device))
        scores[rows] = torch.nan_to_num(found.double(), nan=0.0).clamp(0.0, 1.0).cpu().numpy()
        if labels is not None:
            predicted[rows] = labels.cpu().numpy()
    return Judged(scores, predicted if chooses else None)


def scores(model: AdaptedModel, features: Features) -> NDArray[np.float64]:
    """Return each record's own score in [0, 1], (n,) float64, by the task. Sensitive: it stays here."""
    return judged(model, features).scores


def cells(scores: NDArray[np.float64], units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the exact cells (weight, score) at the fixed-point scale, (2,) int64. Sensitive.

    scores  (n,) of each record, in [0, 1]
    units   (n,) the unit that owns each record

    Sensitivity: one unit more or less changes the cells by (EVALUATION_SCALE, c) with 0 <= c <= EVALUATION_SCALE, at
    most EVALUATION_SENSITIVITY in L2: a unit's mean score is rounded to the scale by itself.
    """
    owners, place = np.unique(units, return_inverse=True)
    records = np.bincount(place, minlength=len(owners))
    totals = np.bincount(place, weights=scores, minlength=len(owners))
    shares = np.rint(EVALUATION_SCALE * totals / np.maximum(records, 1)).astype(np.int64)
    return np.array([EVALUATION_SCALE * len(owners), shares.sum()], dtype=np.int64)


def noised_cells(
    scores: NDArray[np.float64], features: Features, plan: PrivacyPlan, noise: NoiseSource
) -> NDArray[np.int64]:
    """Return the cells of one evaluation release, noised, (2,) int64; may be negative.

    Guarantee: the discrete Gaussian mechanism with ``plan.evaluation_noise_multiplier`` times the L2 sensitivity, for
    each unit, without subsampling [Canonne, Kamath, Steinke 2020, section 2].
    """
    exact = cells(scores, privacy_units(features, plan))
    return exact + noise.discrete_gaussian(plan.evaluation_deviation, EVALUATION_CELLS)
