"""Membership inference on the released adapter: whether a patient's loss tells that they were trained on.

What an outsider can do who holds the adapter and a patient's records. The score of a patient is by how much training
lowered the mean loss of their records, which takes out how hard the records are [Carlini et al. 2022, "Membership
inference attacks from first principles", and its simplest calibration, Watson et al. 2022]. A threshold chosen on one
half of the patients is judged on the other. The bound that follows takes patients of one run as independent trials: it
is evidence, not a proof, and no verdict rests on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features, device_of
from common.adapters import AdaptedModel, Vector
from simulations.audit.bounds import share_interval

_THRESHOLDS = 25
FALSE_RATES = (0.01, 0.05)
"""False positive rates at which the true positive rate is told."""


@dataclass(frozen=True, slots=True)
class Attack:
    """How well a score tells members from others.

    auc         chance that a member's score is above another's; ``low`` and ``high`` bound it with 95 % confidence
    true_rates  share of members above the score that 1 % and 5 % of the others exceed
    epsilon     lower bound at 95 % confidence, if patients were independent trials
    """

    members: int
    others: int
    auc: float
    low: float
    high: float
    true_rates: tuple[float, ...]
    epsilon: float


def gains(model: AdaptedModel, features: Features, start: Vector, end: Vector) -> NDArray[np.float64]:
    """Return by how much training lowered each patient's mean loss, (units,)."""
    lowered = losses(model, features, start) - losses(model, features, end)
    return np.bincount(features.units, weights=lowered) / np.maximum(np.bincount(features.units), 1)


@torch.no_grad()
def losses(model: AdaptedModel, features: Features, vector: Vector) -> NDArray[np.float64]:
    """Return each record's loss under a vector, (records,); in full precision, whatever was trained in."""
    model.write_vector(vector)
    found = np.zeros(len(features))
    for rows in features.micro_batches(np.arange(len(features)), 64):
        batch = features.batch(rows, device_of(model))
        found[rows] = model.task.loss(features.outputs(model, batch), batch.targets).double().cpu().numpy()
    return found


def attack(
    members: NDArray[np.float64], others: NDArray[np.float64], delta: float, dice: np.random.Generator
) -> Attack:
    """Judge scores, high for members, of those who were trained on and of those who were not.

    dice  draws the half on which the threshold is chosen
    """
    auc, deviation = area(members, others)
    margin = NormalDist().inv_cdf(0.975) * deviation
    return Attack(
        members=len(members),
        others=len(others),
        auc=auc,
        low=max(auc - margin, 0.0),
        high=min(auc + margin, 1.0),
        true_rates=tuple(true_rate(members, others, rate) for rate in FALSE_RATES),
        epsilon=halved_bound(members, others, delta, dice),
    )


def area(members: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[float, float]:
    """Return the area under the ROC curve, ties counted half, and its standard deviation [DeLong et al. 1988].

    Where the sample separates the groups fully the deviation would be zero; half a pair is then taken as wrong.
    """
    above = (members[:, None] > others[None, :]) + 0.5 * (members[:, None] == others[None, :])
    auc = float(above.mean())
    if auc in (0.0, 1.0):
        return auc, math.sqrt(0.5 / min(above.shape))
    by_member, by_other = above.mean(axis=1), above.mean(axis=0)
    return auc, math.sqrt(float(by_member.var(ddof=1)) / len(members) + float(by_other.var(ddof=1)) / len(others))


def true_rate(members: NDArray[np.float64], others: NDArray[np.float64], false_rate: float) -> float:
    """Return the share of members above a threshold that at most this share of the others exceeds."""
    allowed = math.floor(false_rate * len(others))
    threshold = np.sort(others)[::-1][allowed]
    return float((members > threshold).mean())


def halved_bound(
    members: NDArray[np.float64], others: NDArray[np.float64], delta: float, dice: np.random.Generator
) -> float:
    """Return the bound on epsilon of the threshold that did best on one half, judged on the other (95 %).

    Both ways of guessing are tried on the first half: 'above, so a member' and 'below, so none'.
    """
    chosen_in, judged_in = _halves(members, dice)
    chosen_out, judged_out = _halves(others, dice)
    if min(len(chosen_in), len(chosen_out), len(judged_in), len(judged_out)) < 2:
        return 0.0
    candidates = [
        (_epsilon(chosen_in, chosen_out, threshold, delta, above=above), float(threshold), above)
        for threshold in np.unique(np.quantile(np.r_[chosen_in, chosen_out], np.linspace(0.02, 0.98, _THRESHOLDS)))
        for above in (True, False)
    ]
    _, threshold, above = max(candidates)
    return _epsilon(judged_in, judged_out, threshold, delta, above=above)


def _epsilon(
    members: NDArray[np.float64], others: NDArray[np.float64], threshold: float, delta: float, *, above: bool
) -> float:
    """Return ln((true rate - delta) / false rate) at the worst ends of both intervals, at least 0."""
    if above:
        hits, trials = int((members > threshold).sum()), len(members)
        alarms, tries = int((others > threshold).sum()), len(others)
    else:
        hits, trials = int((others <= threshold).sum()), len(others)
        alarms, tries = int((members <= threshold).sum()), len(members)
    low, high = share_interval(hits, trials, 0.05)[0], share_interval(alarms, tries, 0.05)[1]
    return max(0.0, math.log(max(low - delta, 1e-12) / high))


def _halves(values: NDArray[np.float64], dice: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    mixed = dice.permutation(values)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]
