"""What a site computes for a study: one round of private training, and the noised counts of an evaluation.

Exact predictions are the site's own affair (:meth:`TextWorkload.predict`); only noised counts are returned for release.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.evaluation import noised_cells, predict
from client.training.features import Features
from client.training.loop import train_privately
from client.training.noise import NoiseSource
from common import errors
from common.adapters import AdaptedModel, Vector
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.plan import PrivacyPlan, cell_bound
from common.study import Study


class TextWorkload:
    """A site's training and test records under one study.

    model     the study's model; several simulated sites may share one, since each call writes the vector first
    training  features of the records to train on
    testing   features of the records to evaluate on, each computed alone
    noise     the source of sampling and noise

    Raises CSL-330 for test records whose prefix was computed in batches: see :mod:`client.evaluation`.
    """

    def __init__(
        self,
        study: Study,
        site: SiteId,
        model: AdaptedModel,
        *,
        training: Features,
        testing: Features,
        noise: NoiseSource,
    ) -> None:
        if not testing.is_each_alone:
            raise ConsiliumError(errors.PREFLIGHT_REFUSED, "the prefix of the test records was computed in batches")
        self._study, self._model, self._noise = study, model, noise
        self._training, self._testing = training, testing
        self._plan = PrivacyPlan.for_site(study, site)
        self._bound = cell_bound(study)

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self._model.dimension

    def train(self, start: Vector, round_index: int) -> Vector:
        """Return the private update of one round, (dimension,) float32: end minus start."""
        return train_privately(
            self._model,
            self._training,
            self._plan,
            self._study.training,
            self._noise,
            start=start,
            round_index=round_index,
        )

    def evaluate(self, vector: Vector) -> NDArray[np.int64]:
        """Return the noised cells (weight, correct weight), (2,) int64, clamped to their public bound."""
        self._model.write_vector(vector)
        predicted = predict(self._model, self._testing, alone=True)
        cells = noised_cells(predicted, self._testing, self._plan, self._noise)
        return np.clip(cells, -self._bound, self._bound)

    def predict(self, vector: Vector) -> NDArray[np.int64]:
        """Return the labels that a vector predicts for the site's own test records, (examples,) int64; never sent."""
        self._model.write_vector(vector)
        return predict(self._model, self._testing)
