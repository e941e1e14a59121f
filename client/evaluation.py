"""What a site says about quality: two counts, noised so that they are private by themselves (RULES 9).

Each evaluated unit has a total weight of one, however many records it owns, so that one unit changes the cells
(weight, correct weight) by at most (1, 1). Cells are integers at a public fixed-point scale, and each site adds
discrete Gaussian noise of its own before they enter the secure sum.

A prediction is a step function. The low bits of a batched product depend on the batch's shape, so a server that sends a
vector with all labels nearly tied could let one record more or less turn the predictions of many. What is released is
therefore computed record by record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features, device_of
from client.training.noise import NoiseSource
from client.training.step import privacy_units
from common.adapters import AdaptedModel
from common.privacy.accounting import EVALUATION_CELLS, EVALUATION_SCALE, EVALUATION_SENSITIVITY
from common.privacy.plan import PrivacyPlan
from common.study import Study

_BATCH = 64
_TWO_SIDED_95 = 1.959963984540054


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


def released_accuracy(
    counts: Sequence[int] | NDArray[np.int64], survivors: int, study: Study
) -> tuple[float, float, float]:
    """Return (accuracy, low, high) from the sum of the survivors' noised cells: post-processing of what was released.

    counts     (weight, correct weight) at the fixed-point scale
    survivors  number of sites in the sum, each of which added noise of its own

    The 95 % interval covers both the noise and the chance of which units were tested. It is the set of r for which
    (correct - r weight)² <= z² (v (1 + r²) + weight r (1 - r)), with v the variance of the noise of one cell: Fieller's
    interval for a ratio where noise dominates, Wilson's for a share where v is 0. Where the noise drowns the weight no
    ratio is excluded, and the interval is (0, 1).
    """
    weight, correct = (float(count) / EVALUATION_SCALE for count in counts)
    deviation = study.evaluation.noise_multiplier * EVALUATION_SENSITIVITY / EVALUATION_SCALE
    return share_with_interval(weight, correct, survivors * deviation**2)


def share_with_interval(weight: float, correct: float, variance: float) -> tuple[float, float, float]:
    """Return (share, low, high) for a noised weight and correct weight, each of noise ``variance``; see above."""
    share = min(1.0, max(0.0, correct / weight)) if weight > 0.0 else 0.5
    z2 = _TWO_SIDED_95**2
    square = weight**2 - z2 * variance + z2 * weight
    if weight <= 0.0 or weight**2 <= z2 * variance:
        return share, 0.0, 1.0
    half = correct * weight + 0.5 * z2 * weight
    constant = correct**2 - z2 * variance
    root = math.sqrt(max(0.0, half**2 - square * constant))
    low, high = (half - root) / square, (half + root) / square
    return share, max(0.0, min(low, share)), min(1.0, max(high, share))
