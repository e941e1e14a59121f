"""A mechanism broken on purpose, so that an audit can be seen to notice (RULES 17). NOT PRIVATE, simulator only.

Nothing in a client can select any of this: a sabotaged trainer is made here and handed to the audited site by the
audit, in place of the honest one.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features, count_units, device_of
from client.training.gradients import PerExampleGradients
from client.training.loop import take_steps
from client.training.noise import NoiseSource
from client.training.sampler import poisson_sample
from client.training.step import clipped_sum, privacy_units, sampled
from client.workload import ModelWorkload
from common import errors
from common.adapters import AdaptedModel, Vector
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.plan import PrivacyPlan
from common.study import Study, Unit
from simulations.audit.findings import Sabotage

Trainer = Callable[[Features, Vector, int], Vector]
"""From a site's training records, the global vector and the round to the outgoing delta."""


class FaintNoise:
    """A noise source whose training noise is multiplied by a factor below one.

    source  where sampling and noise come from
    factor  0 for none at all
    """

    def __init__(self, source: NoiseSource, factor: float) -> None:
        self._source, self._factor = source, factor

    def gaussian(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` normals that are too small."""
        return self._factor * self._source.gaussian(size)

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return ``size`` uniforms, as they should be."""
        return self._source.uniform(size)

    def discrete_gaussian(self, sigma: float, size: int) -> NDArray[np.int64]:
        """Return ``size`` integers that are too small."""
        drawn = self._source.discrete_gaussian(sigma, size)
        return np.asarray(np.rint(self._factor * drawn), dtype=np.int64)


def trainer_for(
    study: Study,
    site: SiteId,
    model: AdaptedModel,
    testing: Features,
    noise: NoiseSource,
    sabotage: Sabotage | None = None,
) -> Trainer:
    """Return how the audited site trains: the real workload, or one of the broken ones.

    Raises CSL-511 for an ignored cap where the study has none: with record-level privacy every record is a unit.
    """
    plan = PrivacyPlan.for_site(study, site)
    if sabotage is Sabotage.IGNORED_CAP:
        if plan.unit is not Unit.PATIENT:
            raise ConsiliumError(errors.SCENARIO_INVALID, f"{sabotage}: a study with unit = 'record' has no cap")
        return _broken(study, plan, model, noise, _every_record_clipped_alone)
    if sabotage is Sabotage.MICROBATCH_CLIPPING:
        return _broken(study, plan, model, noise, _clipped_by_micro_batch)
    if sabotage is not None:
        noise = FaintNoise(noise, 0.25 if sabotage is Sabotage.NOISE_QUARTER else 0.0)
    source = noise

    def train(features: Features, start: Vector, round_index: int) -> Vector:
        workload = ModelWorkload(study, site, model, training=features, testing=testing, noise=source)
        return workload.train(start, round_index)

    return train


BrokenSum = Callable[[AdaptedModel, Features, PrivacyPlan, PerExampleGradients, NoiseSource, int], NDArray[np.float64]]
"""A step's sum before noise: model, features, plan, gradients, noise, size of a micro-batch."""


def _broken(study: Study, plan: PrivacyPlan, model: AdaptedModel, noise: NoiseSource, wrong: BrokenSum) -> Trainer:
    """Return a trainer that differs from the real one in how a step's sum comes about; its noise is as claimed."""
    training = study.training

    def train(features: Features, start: Vector, round_index: int) -> Vector:
        with PerExampleGradients(model, model.trainable()) as gradients:

            def gradient() -> NDArray[np.float64]:
                total = wrong(model, features, plan, gradients, noise, training.micro_batch)
                noised: NDArray[np.float64] = total + plan.noise_deviation * noise.gaussian(len(total))
                return noised / plan.divisor

            return take_steps(model, training, gradient, start=start, round_index=round_index)

    return train


def _every_record_clipped_alone(
    model: AdaptedModel,
    features: Features,
    plan: PrivacyPlan,
    gradients: PerExampleGradients,
    noise: NoiseSource,
    micro_batch: int,
) -> NDArray[np.float64]:
    """Take all records of a drawn patient and clip each by itself: a patient with k of them weighs k clip norms."""
    units = privacy_units(features, plan)
    rows = np.flatnonzero(np.isin(units, poisson_sample(count_units(units), plan.sampling_rate, noise)))
    alone = np.arange(len(features), dtype=np.int64)
    return clipped_sum(model, features, rows, alone, plan.clip_norm, gradients, micro_batch=micro_batch)


def _clipped_by_micro_batch(
    model: AdaptedModel,
    features: Features,
    plan: PrivacyPlan,
    gradients: PerExampleGradients,
    noise: NoiseSource,
    micro_batch: int,
) -> NDArray[np.float64]:
    """Clip the mean gradient of a micro-batch and multiply by its size: nobody in it is clipped."""
    rows = sampled(privacy_units(features, plan), plan, noise)
    device = device_of(model)
    total = torch.zeros(model.dimension, dtype=torch.float64, device=device)
    for part in features.micro_batches(rows, micro_batch):
        mean = gradients.rows(features.losses(model, features.batch(part, device))).double().mean(dim=0)
        total += len(part) * mean * (plan.clip_norm / mean.norm().clamp(min=plan.clip_norm))
    summed: NDArray[np.float64] = total.cpu().numpy()
    return summed
