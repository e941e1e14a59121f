"""What a site fits for itself from the shared vector, after the last shared round; nothing of it leaves (RULES 11).

Not private, and outside the shared forward pass: a contract of the import linter keeps this module, and what it gives,
away from whatever answers the operator. Choices are made on training units alone, so that the verdict's held-out
units stay unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from client.evaluation import scores
from client.training.features import Features
from client.training.noise import NoiseSource
from client.training.plain import Fit, fit_plainly
from client.verdict import unit_means
from common.adapters import AdaptedModel, Vector
from common.transfer import Personal

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the local weights among which an interpolation chooses."""
RATES = (0.0, 1.0, 4.0, 16.0)
"""Multiples of the study's personal learning rate among which a local fit chooses; the first fits nothing."""
_FOLDS = 4


@dataclass(frozen=True, slots=True)
class Own:
    """A site's own records and how it fits to them.

    model        over the study's backbone; each call writes the vectors that it needs
    training     the records to fit to
    start        the vector that every site started from: an adapter that changes nothing, and the head's start
    noise        draws which records a step sees
    micro_batch  records computed together
    """

    model: AdaptedModel
    training: Features
    start: Vector
    noise: NoiseSource
    micro_batch: int

    def fitted(self, fit: Fit, start: Vector, training: Features | None = None) -> Vector:
        """Return what a fit makes of a vector, on all training records or on some."""
        features = self.training if training is None else training
        return fit_plainly(self.model, features, fit, self.noise, start=start, micro_batch=self.micro_batch)

    def score(self, vector: Vector, held_out: Features) -> float:
        """Return the mean over the units of what a vector scores."""
        self.model.write_vector(vector)
        return float(unit_means(scores(self.model, held_out), held_out.units).mean())


def personalised(own: Own, personal: Personal, shared: Vector) -> Vector | None:
    """Return the site's own vector, as the study's ``personal`` says; None where the shared one is used as it is."""
    return _METHODS[personal.method](own, personal, shared)


def local(own: Own, personal: Personal, *, head_alone: bool) -> Vector:
    """Return a vector that owes nothing to the other sites: fitted from the study's start on own records alone.

    head_alone  leaves the backbone as it was

    The learning rate is the best of ``RATES`` times the study's on a quarter of the training units, so that what the
    shared model is measured against is no straw man.
    """
    rates = [rate * personal.learning_rate for rate in RATES]
    inner = next(_folds(own.training), None)
    best = rates[1]
    if inner is not None:
        train, held_out = inner
        tried = {
            rate: own.score(own.fitted(Fit(personal.steps, rate, head_alone=head_alone), own.start, train), held_out)
            for rate in rates
        }
        best = max(rates, key=lambda rate: tried[rate])
    return own.fitted(Fit(personal.steps, best, head_alone=head_alone), own.start)


def mixed(shared: Vector, fitted: Vector, share: float) -> Vector:
    """Return the mean of two vectors with a share of the second, bit for bit theirs at 0 and at 1."""
    if share in (0.0, 1.0):
        return (fitted if share else shared).copy()
    return ((1.0 - share) * shared.astype(np.float64) + share * fitted.astype(np.float64)).astype(np.float32)


def choose_share(own: Own, shared: Vector, fit: Callable[[Features | None], Vector], shares: Sequence[float]) -> float:
    """Return the share of a local vector that scores best on units it was not fitted to; of equals, the smallest.

    fit  returns the local vector for some training records; None for all

    Cross-fitting: each unit is scored once, under weights that were fitted on the other folds.
    """
    totals = np.zeros(len(shares))
    for train, held_out in _folds(own.training):
        fitted = fit(train)
        totals += [own.score(mixed(shared, fitted, share), held_out) for share in shares]
    return shares[int(np.argmax(totals))]


def _none(own: Own, personal: Personal, shared: Vector) -> None:
    del own, personal, shared


def _head(own: Own, personal: Personal, shared: Vector) -> Vector:
    return own.fitted(Fit(personal.steps, personal.learning_rate, head_alone=True), shared)


def _adapter(own: Own, personal: Personal, shared: Vector) -> Vector:
    return own.fitted(Fit(personal.steps, personal.learning_rate, strength=personal.strength), shared)


def _interpolation(own: Own, personal: Personal, shared: Vector) -> Vector:
    def fit(training: Features | None) -> Vector:
        return own.fitted(Fit(personal.steps, personal.learning_rate), own.start, training)

    share = choose_share(own, shared, fit, SHARES)
    return mixed(shared, fit(None), share)


_METHODS: Mapping[str, Callable[[Own, Personal, Vector], Vector | None]] = {
    "none": _none,
    "head": _head,
    "adapter": _adapter,
    "interpolation": _interpolation,
}


def _folds(features: Features) -> Iterator[tuple[Features, Features]]:
    """Yield (to fit to, held out) for each fold; a unit is held out once. None where there are too few units.

    Units are numbered in the order of their names, or of their texts: every fourth is as good as any choice.
    """
    units = np.unique(features.units)
    if len(units) < _FOLDS:
        return
    fold = np.searchsorted(units, features.units) % _FOLDS
    for one in range(_FOLDS):
        yield _part(features, fold != one), _part(features, fold == one)


def _part(features: Features, chosen: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]) -> Features:
    rows = np.flatnonzero(chosen)
    _, units = np.unique(features.units[rows], return_inverse=True)
    return features.subset(rows, units.astype(np.int64))
