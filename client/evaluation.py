"""What a site says about quality: two counts, noised so that they are private by themselves (RULES 9).

Each evaluated unit has a total weight of one, however many records it owns, so that one unit changes the cells
(weight, correct weight) by at most (1, 1). Cells are integers at a public fixed-point scale, and each site adds
discrete Gaussian noise of its own before they enter the secure sum.

A prediction is a step function. The low bits of a batched product depend on the batch's shape, so a server that sends a
vector with all labels nearly tied could let one record more or less turn the predictions of many. What is released is
therefore computed record by record.
"""

from __future__ import annotations

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


@torch.no_grad()
def predict(model: AdaptedModel, features: Features, *, alone: bool = False) -> NDArray[np.int64]:
    """Return the predicted class of each record, (n,) int64, in the order of ``features``.

    alone  compute each record by itself, for whatever is released; its prefix too, if ``features`` were made so
    """
    predicted = np.zeros(len(features), dtype=np.int64)
    device = device_of(model)
    for rows in features.micro_batches(np.arange(len(features)), 1 if alone else _BATCH):
        logits = features.logits(model, features.batch(rows, device))
        predicted[rows] = logits.argmax(dim=1).cpu().numpy()
    return predicted


def scores(model: AdaptedModel, features: Features) -> NDArray[np.float64]:
    """Return each record's own score in [0, 1], (n,) float64: 1 where the label is right. Sensitive: it stays here."""
    right: NDArray[np.float64] = (predict(model, features) == features.targets).astype(np.float64)
    return right


def cells(correct: NDArray[np.bool_], units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the exact cells (weight, correct weight) at the fixed-point scale, (2,) int64. Sensitive.

    correct  (n,) whether each record was predicted rightly
    units    (n,) the unit that owns each record

    Sensitivity: one unit more or less changes the cells by (EVALUATION_SCALE, c) with 0 <= c <= EVALUATION_SCALE, at
    most EVALUATION_SENSITIVITY in L2: a unit's correct share is rounded to the scale by itself.
    """
    owners, place = np.unique(units, return_inverse=True)
    records = np.bincount(place, minlength=len(owners))
    right = np.bincount(place, weights=correct.astype(np.float64), minlength=len(owners))
    shares = np.rint(EVALUATION_SCALE * right / np.maximum(records, 1)).astype(np.int64)
    return np.array([EVALUATION_SCALE * len(owners), shares.sum()], dtype=np.int64)


def noised_cells(
    predicted: NDArray[np.int64], features: Features, plan: PrivacyPlan, noise: NoiseSource
) -> NDArray[np.int64]:
    """Return the cells of one evaluation release, noised, (2,) int64; may be negative.

    Guarantee: the discrete Gaussian mechanism with ``plan.evaluation_noise_multiplier`` times the L2 sensitivity, for
    each unit, without subsampling [Canonne, Kamath, Steinke 2020, section 2].
    """
    exact = cells(predicted == features.targets, privacy_units(features, plan))
    return exact + noise.discrete_gaussian(plan.evaluation_deviation, EVALUATION_CELLS)
