"""One private step: per-example gradients, clipped by privacy unit, summed, noised, divided by a public constant.

With discrete noise each unit's clipped gradient is rounded to a grid by itself, and what follows is exact in integers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.features import Features, count_units, device_of
from client.training.gradients import PerExampleGradients, side_by_side
from client.training.noise import NoiseSource
from client.training.sampler import cap_records, poisson_sample
from common import errors
from common.adapters import AdaptedModel
from common.errors import ConsiliumError
from common.privacy.grid import NoiseGrid
from common.privacy.plan import PrivacyPlan
from common.study import TrainingNoise, Unit

_CACHED_COLUMNS = 1 << 11
"""Columns of gradients converted to float64 at a time: a megabyte for 64 records, which stays in a core's cache."""
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
    alg. 1]. A sample of no unit is noise like any other step. With discrete noise it is the discrete Gaussian mechanism
    on the integers of ``plan.grid``, to the last bit; scaling and dividing come after it.

    Raises CSL-201 where discrete noise is asked for and ``features`` were not computed each alone.
    """
    units = privacy_units(features, plan)
    rows = sampled(units, plan, noise)
    if plan.noise is TrainingNoise.DISCRETE:
        summed = rounded_sum(model, features, rows, units, plan.grid, gradients)
        integers = noise.discrete_gaussian(plan.grid.deviation, len(summed))
        if integers.shape != summed.shape or integers.dtype != np.int64:
            raise ConsiliumError(errors.NOISE_FAULT, "the source returned no usable noise")
        return (summed + integers).astype(np.float64) * plan.grid.step / plan.divisor
    total = clipped_sum(model, features, rows, units, plan.clip_norm, gradients, micro_batch=micro_batch)
    total += plan.noise_deviation * normals(noise, len(total))
    total /= plan.divisor
    return total


def sampled(units: NDArray[np.int64], plan: PrivacyPlan, noise: NoiseSource) -> NDArray[np.int64]:
    """Draw the units of one step and return their records, capped, in rising order.

    units  (records,) int64, as :func:`privacy_units` returns them
    """
    drawn = poisson_sample(count_units(units), plan.sampling_rate, noise)
    return cap_records(units, drawn, plan.max_records_per_unit, noise)


def normals(noise: NoiseSource, size: int) -> NDArray[np.float64]:
    """Return standard normals for one step, (size,) float64; raises CSL-206 where the source gives none that are."""
    drawn = noise.gaussian(size)
    if drawn.shape != (size,) or not np.isfinite(drawn).all():
        raise ConsiliumError(errors.NOISE_FAULT, "the source returned no usable noise")
    return drawn


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
    total = torch.zeros(model.active_dimension, dtype=torch.float64, device=device_of(model))
    for found, owners in _whole_units(model, features, rows, units, gradients, micro_batch):
        total += clip_by_unit(found, owners, clip_norm)
    summed: NDArray[np.float64] = total.cpu().numpy()
    return summed


def rounded_sum(
    model: AdaptedModel,
    features: Features,
    rows: NDArray[np.int64],
    units: NDArray[np.int64],
    grid: NoiseGrid,
    gradients: PerExampleGradients,
) -> NDArray[np.int64]:
    """Return the sum over units of their clipped and rounded gradients, (parameters,) int64, in steps of the grid.

    Guarantee: adding or removing one unit changes the result by an integer vector of L2 norm at most ``grid.clip``.
    Sums are of integers modulo 2**64: nothing is rounded after a unit's own numbers, see :meth:`NoiseGrid.check_sum`.

    Arguments as for :func:`clipped_sum`. Every record runs in a batch of its own. Raises CSL-201 unless what was kept
    of it was computed so too, since only then are a unit's numbers its own to the last bit.
    """
    if not features.is_each_alone:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "discrete noise needs records that are computed one by one")
    total = torch.zeros(model.active_dimension, dtype=torch.int64, device=device_of(model))
    for found, owners in _whole_units(model, features, rows, units, gradients, 1):
        total += round_by_unit(side_by_side(found), owners, grid)
    summed: NDArray[np.int64] = total.cpu().numpy()
    return summed


def clip_by_unit(gradients: Tensor | Sequence[Tensor], units: Tensor, clip_norm: float) -> Tensor:
    """Sum gradients after clipping each privacy unit's total to an L2 norm.

    Guarantee: adding or removing one unit changes the result by at most ``clip_norm`` in L2.

    gradients   (examples, parameters) float32, one row per example; or its columns in parts, (examples, *shape) each
    units       (examples,) int64, the unit (patient) that owns each row; all rows of a unit must be here
    clip_norm   > 0 and finite
    returns     (parameters,) float64; zeros where there is no example

    A unit whose gradient is not finite counts as zero, so it can neither leak nor poison (RULES 13). Norms and sums are
    in float64, so that rounding adds less than 1e-12 of the clip norm.
    """
    if not 0.0 < clip_norm < float("inf"):
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "clip_norm must be finite and above 0")
    parts = (gradients,) if isinstance(gradients, Tensor) else tuple(gradients)
    rows = [_as_it_lies(part) for part in parts]
    owners, place = torch.unique(units.to(rows[0].device), return_inverse=True)
    if len(owners) < len(units):
        rows = [_sum_by_unit(part, place, len(owners)) for part in rows]
    norms = torch.stack([torch.linalg.vector_norm(part, dim=1, dtype=torch.float64) for part in rows]).norm(dim=0)
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        rows, norms = [part[finite] for part in rows], norms[finite]
    factors = clip_norm / norms.clamp(min=clip_norm)
    return torch.cat([_in_order(_weighted_sum(own, factors), part) for own, part in zip(rows, parts, strict=True)])


def round_by_unit(gradients: Tensor, units: Tensor, grid: NoiseGrid) -> Tensor:
    """Sum gradients after clipping each privacy unit's total and rounding it to integers, in steps of the grid.

    Guarantee: adding or removing one unit changes the result by an integer vector of L2 norm at most ``grid.clip``, in
    exact arithmetic; see :meth:`NoiseGrid.rounded_clip`.

    Arguments as for :func:`clip_by_unit`; returns (parameters,) int64.
    """
    clip = grid.rounded_clip(gradients.shape[1])
    total = torch.zeros(gradients.shape[1], dtype=torch.int64, device=gradients.device)
    for unit in torch.unique(units):
        # One at a time: in which order a norm's squares are added may depend on how many norms are asked for.
        mine = units == unit
        rows, norms = _finite_totals(gradients[mine.to(gradients.device)].double() / grid.step, units[mine])
        total += torch.round(rows * (clip / norms.clamp(min=clip))[:, None]).long().sum(dim=0)
    return total


def _finite_totals(rows: Tensor, units: Tensor) -> tuple[Tensor, Tensor]:
    """Return each unit's sum of rows, (units, parameters), and its L2 norm; without units that are not finite."""
    owners, place = torch.unique(units, return_inverse=True)
    if len(owners) < len(units):
        rows = _sum_by_unit(rows, place.to(rows.device), len(owners))
    norms = torch.linalg.vector_norm(rows, dim=1)
    finite = torch.isfinite(norms)
    return (rows, norms) if bool(finite.all()) else (rows[finite], norms[finite])


def privacy_units(features: Features, plan: PrivacyPlan) -> NDArray[np.int64]:
    """Return the unit of each record under the plan: the record itself, or the patient that owns it."""
    return features.units if plan.unit is Unit.PATIENT else np.arange(len(features), dtype=np.int64)


def _sum_by_unit(rows: Tensor, place: Tensor, units: int) -> Tensor:
    """Return each unit's sum of rows, (units, columns) float64; ``place`` is the unit of each row."""
    summed = torch.zeros(units, rows.shape[1], dtype=torch.float64, device=rows.device)
    return summed.index_add_(0, place, rows.double())


def _weighted_sum(rows: Tensor, weights: Tensor) -> Tensor:
    """Return weights times rows, (columns,) float64, converting a few columns at a time where there is a cache."""
    width = _CACHED_COLUMNS if rows.device.type == "cpu" else max(1, rows.shape[1])
    sums = [torch.mv(some.double().T, weights) for some in torch.split(rows, width, dim=1)]
    return sums[0] if len(sums) == 1 else torch.cat(sums)


def _is_by_columns(part: Tensor) -> bool:
    """Whether each example's matrix is laid out by columns, as the rows of a tall weight are."""
    return part.dim() == 3 and not part.is_contiguous() and part.mT.is_contiguous()


def _as_it_lies(part: Tensor) -> Tensor:
    """Return (examples, columns) from (examples, *shape), in the order of memory, so that nothing is copied."""
    return (part.mT if _is_by_columns(part) else part).reshape(len(part), part.shape[1:].numel())


def _in_order(total: Tensor, part: Tensor) -> Tensor:
    """Return the columns of :func:`_as_it_lies` in the order of the parameter."""
    return total.view(part.mT.shape[1:]).T.flatten() if _is_by_columns(part) else total


def _whole_units(
    model: AdaptedModel,
    features: Features,
    rows: NDArray[np.int64],
    units: NDArray[np.int64],
    gradients: PerExampleGradients,
    micro_batch: int,
) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
    """Yield gradients, (n, *shape) of each parameter, and the unit that owns each row, (n,); never part of a unit."""
    device = device_of(model)
    for group in _groups(rows, units, model.active_dimension):
        parts = list(features.micro_batches(group, micro_batch))
        if len(np.unique(units[group])) == len(group):
            for part in parts:
                found = gradients.parts(features.losses(model, features.batch(part, device)))
                yield found, torch.from_numpy(units[part])
        else:
            several = [gradients.parts(features.losses(model, features.batch(part, device))) for part in parts]
            found = tuple(torch.cat(same) for same in zip(*several, strict=True))
            yield found, torch.from_numpy(units[np.concatenate(parts)])


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
