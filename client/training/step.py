"""One private step: per-example gradients, clipped by privacy unit, summed, noised, divided by a public constant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.features import Features, device_of
from client.training.gradients import PerExampleGradients
from client.training.noise import NoiseSource
from client.training.sampler import cap_records, poisson_sample
from common import errors
from common.adapters import AdaptedModel
from common.errors import ConsiliumError
from common.privacy.plan import PrivacyPlan
from common.study import Unit

_GROUP_VALUES = 1 << 25
"""Gradient values held while the records of several patients are brought together: 128 MB."""


def private_gradient(
    model: AdaptedModel,
    features: Features,
    plan: PrivacyPlan,
    gradients: PerExampleGradients,
    noise: NoiseSource,
    *,
    micro_batch: int,
) -> NDArray[np.float64]:
    """Return one step's noised mean gradient, (parameters,) float64.

    Guarantee: the Gaussian mechanism on a Poisson sample of the units, with L2 sensitivity ``plan.clip_norm`` and noise
    ``plan.noise_deviation``, divided by ``plan.divisor``, which knows nothing of the sample [Abadi et al. 2016,
    alg. 1]. A sample of no unit is noise like any other step.
    """
    units = privacy_units(features, plan)
    drawn = poisson_sample(int(units.max()) + 1 if len(units) else 0, plan.sampling_rate, noise)
    rows = cap_records(units, drawn, plan.max_records_per_unit, noise)
    total = clipped_sum(model, features, rows, units, plan.clip_norm, gradients, micro_batch=micro_batch)
    shock = noise.gaussian(len(total))
    if shock.shape != total.shape or not np.isfinite(shock).all():
        raise ConsiliumError(errors.NOISE_FAULT, "the source returned no usable noise")
    noised: NDArray[np.float64] = (total + plan.noise_deviation * shock) / plan.divisor
    return noised


def clipped_sum(
    model: AdaptedModel,
    features: Features,
    rows: NDArray[np.int64],
    units: NDArray[np.int64],
    clip_norm: float,
    gradients: PerExampleGradients,
    *,
    micro_batch: int,
) -> NDArray[np.float64]:
    """Return the sum over units of their clipped gradients, (parameters,) float64; zeros where there is no row.

    rows   records that take part
    units  (records,) int64, the unit that owns each record of ``features``
    """
    device = device_of(model)
    total = torch.zeros(model.dimension, dtype=torch.float64, device=device)
    for group in _groups(rows, units, model.dimension):
        parts = list(features.micro_batches(group, micro_batch))
        if len(np.unique(units[group])) == len(group):
            for part in parts:
                found = gradients.rows(features.losses(model, features.batch(part, device)))
                total += clip_by_unit(found, torch.from_numpy(units[part]), clip_norm)
        else:
            found = torch.cat([gradients.rows(features.losses(model, features.batch(part, device))) for part in parts])
            total += clip_by_unit(found, torch.from_numpy(units[np.concatenate(parts)]), clip_norm)
    summed: NDArray[np.float64] = total.cpu().numpy()
    return summed


def clip_by_unit(gradients: Tensor, units: Tensor, clip_norm: float) -> Tensor:
    """Sum gradients after clipping each privacy unit's total to an L2 norm.

    Guarantee: adding or removing one unit changes the result by at most ``clip_norm`` in L2.

    gradients   (examples, parameters) float32, one row per example
    units       (examples,) int64, the unit (patient) that owns each row; all rows of a unit must be here
    clip_norm   > 0 and finite
    returns     (parameters,) float64; zeros where there is no example

    A unit whose gradient is not finite counts as zero, so it can neither leak nor poison (RULES 13). Norms and sums are
    in float64, so that rounding adds less than 1e-12 of the clip norm.
    """
    if not 0.0 < clip_norm < float("inf"):
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "clip_norm must be finite and above 0")
    owners, place = torch.unique(units, return_inverse=True)
    rows = gradients.double()
    if len(owners) < len(units):
        summed = torch.zeros(len(owners), rows.shape[1], dtype=torch.float64, device=rows.device)
        rows = summed.index_add_(0, place.to(rows.device), rows)
    norms = torch.linalg.vector_norm(rows, dim=1)
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        rows, norms = rows[finite], norms[finite]
    return torch.mv(rows.T, clip_norm / norms.clamp(min=clip_norm))


def privacy_units(features: Features, plan: PrivacyPlan) -> NDArray[np.int64]:
    """Return the unit of each record under the plan: the record itself, or the patient that owns it."""
    return features.units if plan.unit is Unit.PATIENT else np.arange(len(features), dtype=np.int64)


def _groups(rows: NDArray[np.int64], units: NDArray[np.int64], dimension: int) -> Iterator[NDArray[np.int64]]:
    """Divide rows into groups that hold whole units; where each row is a unit of its own, one group holds all."""
    if len(np.unique(units[rows])) == len(rows):
        yield rows
        return
    ordered = rows[np.argsort(units[rows], kind="stable")]
    firsts = np.flatnonzero(np.r_[True, np.diff(units[ordered]) != 0])
    ends = np.r_[firsts[1:], len(ordered)]
    most = max(1, _GROUP_VALUES // max(1, dimension))
    start = 0
    for first, end in zip(firsts, ends, strict=True):
        if end - start > most and first > start:
            yield ordered[start:first]
            start = int(first)
    yield ordered[start:]
