"""What a site computes for a study: one round of private training, and the noised counts of an evaluation.

What exactly becomes of its records is the site's own affair (:meth:`ModelWorkload.judge`); only noised counts are
returned for release.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.evaluation import Judged, judged, noised_cells
from client.training.features import Features
from client.training.loop import train_privately
from client.training.noise import NoiseSource
from common import errors
from common.adapters import AdaptedModel, Vector, attach_at, ranks, shapes_of
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.plan import PrivacyPlan, cell_bound
from common.study import Study


class ModelWorkload:
    """A site's training and test records under one study.

    model        the study's model; several simulated sites may share one, since each call writes the vector first
    training     features of the records to train on
    pretraining  features of the records that the first rounds learn from without labels, where the study has any
    testing      features of the records to evaluate on, each computed alone
    noise        the source of sampling and noise

    Where the study gives this site a rank of its own, it trains a truncated model and sends zeros elsewhere.

    Raises CSL-330 for test records whose prefix was computed in batches, see :mod:`client.evaluation`, and CSL-310 for
    a study whose blocks are not those of its ranks, or whose pretraining has no records.
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
        pretraining: Features | None = None,
    ) -> None:
        if not testing.is_each_alone:
            raise ConsiliumError(errors.PREFLIGHT_REFUSED, "the prefix of the test records was computed in batches")
        if (model.objective is None) != (pretraining is None):
            raise ConsiliumError(errors.ADAPTER_INVALID, "pretraining needs records, and records for it a pretraining")
        self._study, self._model, self._noise = study, model, noise
        self._training, self._pretraining, self._testing = training, pretraining, testing
        self._plan = PrivacyPlan.for_site(study, site)
        self._bound = cell_bound(study)
        shapes = shapes_of(model)
        ranks.check_blocks(study, shapes)
        self._own = attach_at(model, site, study.stream)
        self._places = None if self._own is model else ranks.places(study.adapter, shapes, study.adapter.rank_at(site))

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self._model.dimension

    def train(self, start: Vector, round_index: int) -> Vector:
        """Return the private update of one round, (dimension,) float32: end minus start."""
        unlabelled = self._pretraining if self._model.is_pretraining(round_index) else None
        update = train_privately(
            self._own,
            self._training if unlabelled is None else unlabelled,
            self._plan,
            self._study.training,
            self._noise,
            start=start if self._places is None else start[self._places],
            round_index=round_index,
        )
        if self._places is None:
            return update
        whole = np.zeros_like(start)
        whole[self._places] = update
        return whole

    def evaluate(self, vector: Vector) -> NDArray[np.int64]:
        """Return the noised cells (weight, score) of one evaluation, (2,) int64, clamped to their public bound."""
        self._model.write_vector(vector)
        found = judged(self._model, self._testing, alone=True)
        cells = noised_cells(found.scores, self._testing, self._plan, self._noise)
        return np.clip(cells, -self._bound, self._bound)

    def judge(self, vector: Vector) -> Judged:
        """Return what a vector makes of the site's own test records; never sent."""
        self._model.write_vector(vector)
        return judged(self._model, self._testing)
