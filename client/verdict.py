"""A site's own verdict: did this transfer help here? Statistics on held-out units; nothing of it ever leaves the site.

Every candidate was scored on the same units, a patient's records averaged into one score between 0 and 1, so that
candidates are compared in pairs. What is said is what a test says at a stated false-alarm rate; what it could not have
noticed is said as well. Loads without torch and reads nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.parts import Part

FALSE_ALARMS = 0.05
"""Chance, at most, that any difference is claimed in a study where there is none: over all comparisons together."""
POWER = 0.8
"""Chance with which the smallest noticeable difference is noticed."""
_Z = NormalDist().inv_cdf(0.975)
_FINEST, _COARSEST = 1000, 8
_PLACES = 20_000
"""Levels to which differences are rounded for the test, and the size of its table that decides between these two."""

Scores = NDArray[np.float64]
"""(units,) float64 in [0, 1]: each unit's mean score under one candidate. Sensitive."""


class Candidate(StrEnum):
    """What a site could use.

    SHARED     what the study released
    BACKBONE   the backbone as it was, under a head of the site's own
    LOCAL      adapter and head fitted on the site's records alone
    PERSONAL   what the study says that a site makes of the shared one for itself
    """

    SHARED = "shared"
    BACKBONE = "backbone only"
    LOCAL = "local only"
    PERSONAL = "personalised"


ALONE = (Candidate.BACKBONE, Candidate.LOCAL)
"""What the site would have had without the study."""


class Outcome(StrEnum):
    """Whether the transfer helped, where ``HARMED`` is negative transfer."""

    HELPED = "helped"
    HARMED = "harmed"
    UNDECIDED = "undecided"


class Standing(Part):
    """A candidate's mean score over the held-out units, with its 95 % interval."""

    candidate: Candidate
    mean: float
    low: float
    high: float


class Comparison(Part):
    """The shared model against another candidate, on the same units.

    difference  mean of the shared one's score less the other's, with its 95 % interval
    p           of the two-sided test, corrected for how many comparisons there are
    is_better   True where the shared one is, False where the other is; None where the test tells neither
    noticeable  the smallest difference that would have been noticed; None where there are too few units for any
    """

    other: Candidate
    difference: float
    low: float
    high: float
    p: float
    is_better: bool | None
    noticeable: float | None


class Decision(Part):
    """What follows from the scores: the verdict, and what the site keeps for its own use."""

    outcome: Outcome
    keep: Candidate
    said: str
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]


def decide(scores: Mapping[Candidate, Scores]) -> Decision:
    """Compare the shared model with every other candidate; raises CSL-504 without units or without another candidate.

    Harmed: significantly worse than the backbone only, or than local only. Helped: significantly better than each of
    them. Kept is the shared model, unless others are significantly better; then the best of those.
    """
    shared = scores[Candidate.SHARED]
    others = [candidate for candidate in scores if candidate is not Candidate.SHARED]
    if not len(shared) or not others:
        raise ConsiliumError(errors.DATA_EMPTY, "no held-out records to judge by")
    differences = {other: shared - scores[other] for other in others}
    corrected = holm([flip_test(difference) for difference in differences.values()])
    comparisons = tuple(
        _compared(other, difference, p, len(others))
        for (other, difference), p in zip(differences.items(), corrected, strict=True)
    )
    verdicts = {found.other: found.is_better for found in comparisons}
    alone = [verdicts[other] for other in ALONE if other in verdicts]
    outcome = Outcome.UNDECIDED
    if False in alone:
        outcome = Outcome.HARMED
    elif alone and all(alone):
        outcome = Outcome.HELPED
    better = [other for other in others if verdicts[other] is False]
    keep = max(better, key=lambda other: float(scores[other].mean())) if better else Candidate.SHARED
    standings = tuple(_standing(candidate, values) for candidate, values in scores.items())
    return Decision(
        outcome=outcome, keep=keep, said=_said(outcome, keep, comparisons), standings=standings, comparisons=comparisons
    )


def unit_means(scores: NDArray[np.float64], units: NDArray[np.int64]) -> Scores:
    """Return each unit's mean over its records, (units,), in order of the units' numbers: a unit counts once."""
    owners, place = np.unique(units, return_inverse=True)
    records = np.bincount(place, minlength=len(owners))
    means: Scores = np.bincount(place, weights=scores, minlength=len(owners)) / records
    return means


def flip_test(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p value of paired differences under "either candidate is as likely to be ahead by as much".

    differences  (units,) within [-1, 1]

    Exact, by all sign flips of a sum of differences [Fisher 1935, The Design of Experiments, section 21]: chance plays
    no part, however many units there are. Differences are first rounded to a grid, which keeps the test exact and lets
    the sums be counted in a table. Where every score is 0 or 1 it is McNemar's exact test.
    """
    sizes = np.abs(differences)
    total = float(sizes.sum())
    if total == 0.0:
        return 1.0
    whole = np.array_equal(differences, np.rint(differences))
    levels = 1 if whole else min(_FINEST, max(_COARSEST, _PLACES // math.ceil(total)))
    steps = np.rint(sizes * levels).astype(np.int64)
    steps, observed = steps[steps > 0], abs(int((np.sign(differences) * steps).sum()))
    # chances[s + reach] is the chance of the sum s; each unit moves it up or down by its own size.
    reach = int(steps.sum())
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    low = high = reach
    for step in np.sort(steps):
        before = chances[low : high + 1] / 2.0
        chances[low : high + 1] = 0.0
        chances[low - step : high - step + 1] += before
        chances[low + step : high + step + 1] += before
        low, high = low - step, high + step
    return min(1.0, float(chances[: reach - observed + 1].sum() + chances[reach + observed :].sum()))


def holm(values: list[float]) -> list[float]:
    """Return p values corrected for their number, in their order [Holm 1979, Scandinavian Journal of Statistics 6]."""
    order = np.argsort(values, kind="stable")
    corrected, least = [0.0] * len(values), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, (len(values) - rank) * values[place]))
        corrected[place] = least
    return corrected


def mean_interval(scores: Scores) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a mean score.

    It is meant for scores of 0 and 1; no others between them with the same mean vary more, so for these it is wide.
    """
    n, mean = len(scores), float(scores.mean())
    centre = (mean + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z / (1 + _Z**2 / n) * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n**2))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def difference_interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return a 95 % interval of a mean paired difference, (low, high).

    Wald's, after one invented unit was added for each side, which keeps it from being too narrow with few units
    [Bonett and Price 2012, Journal of Educational and Behavioral Statistics 37, for scores of 0 and 1].
    """
    added, half = float(differences.sum()) / (len(differences) + 2), _Z * _standard_error(differences)
    mean = float(differences.mean())
    return max(-1.0, min(mean, added - half)), min(1.0, max(mean, added + half))


def noticeable(differences: NDArray[np.float64], comparisons: int) -> float | None:
    """Return the smallest mean difference that would have been noticed with a chance of ``POWER``, in (0, 1].

    At the strictest level of the correction and with the spread that was found; None where not even units that all
    agree could have been significant.
    """
    level = FALSE_ALARMS / comparisons
    if 2.0 * 0.5 ** len(differences) > level:
        return None
    quantile = NormalDist().inv_cdf(1 - level / 2) + NormalDist().inv_cdf(POWER)
    return min(1.0, quantile * _standard_error(differences))


def _standard_error(differences: NDArray[np.float64]) -> float:
    """Return the standard error of a mean difference, with one invented unit for each side."""
    n = len(differences) + 2
    mean = float(differences.sum()) / n
    return math.sqrt((float((differences**2).sum()) + 2.0) / n - mean**2) / math.sqrt(n)


def _standing(candidate: Candidate, scores: Scores) -> Standing:
    low, high = mean_interval(scores)
    return Standing(candidate=candidate, mean=float(scores.mean()), low=low, high=high)


def _compared(other: Candidate, differences: NDArray[np.float64], p: float, comparisons: int) -> Comparison:
    low, high = difference_interval(differences)
    mean = float(differences.mean())
    return Comparison(
        other=other,
        difference=mean,
        low=low,
        high=high,
        p=p,
        is_better=mean > 0 if p <= FALSE_ALARMS and mean != 0 else None,
        noticeable=noticeable(differences, comparisons),
    )


def _said(outcome: Outcome, keep: Candidate, comparisons: tuple[Comparison, ...]) -> str:
    """Return the verdict in one sentence."""
    alone = [found for found in comparisons if found.other in ALONE]
    named = {True: "better than", False: "worse than", None: "not told apart from"}
    against = "; ".join(f"{named[found.is_better]} {found.other.value}" for found in alone)
    head = {
        Outcome.HELPED: "The transfer helped this site",
        Outcome.HARMED: "The transfer HARMS this site (negative transfer)",
        Outcome.UNDECIDED: "Whether the transfer helped this site is undecided",
    }[outcome]
    return f"{head}: the shared model is {against}. Kept for this site's own use: {keep.value}."
