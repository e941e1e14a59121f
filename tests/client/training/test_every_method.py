"""For every adapter: gradients per example are true, and one unit moves a step by at most the clip norm."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.precision import Precision
from client.training.store import MemoryRows
from common.adapters import METHODS, AdaptedModel, attach
from common.backbone import Backbone
from common.study import Unit
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec
from tests.client.conftest import shaken
from tests.client.training.test_step import PLAN, Chosen, gradient_of

Encode = Callable[..., Encoded]
TARGETS = ("query", "value", "output.dense")
UNITS = [0, 0, 1, 1, 1, 2, 3, 3, 4]
BROKEN = 3
"""A record of the patient 1, who has two others."""


@pytest.fixture(params=METHODS)
def adapted(request: pytest.FixtureRequest, backbone: Backbone, task: Task) -> AdaptedModel:
    spec = AdapterSpec(method=request.param, rank=2, last_layers=2, targets=TARGETS)
    return shaken(attach(backbone, spec, task, "5a" * 32))


def rows_of(model: AdaptedModel, features: Features, chosen: NDArray[np.int64]) -> torch.Tensor:
    with PerExampleGradients(model, model.trainable()) as gradients:
        return gradients.rows(features.losses(model, features.batch(chosen)))


def one_by_one(model: AdaptedModel, features: Features, chosen: NDArray[np.int64]) -> torch.Tensor:
    parameters = [parameter for _, parameter in model.trainable()]
    rows = []
    for row in chosen:
        # Alone, without its neighbours' padding.
        found = torch.autograd.grad(features.losses(model, features.batch(np.array([row]))).sum(), parameters)
        rows.append(torch.cat([gradient.reshape(-1) for gradient in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("cache", [True, False])
def test_rows_equal_one_by_one_backward_passes(adapted: AdaptedModel, encode: Encode, cache: bool) -> None:
    features = Features(adapted, encode(6), cache=cache)
    rows = rows_of(adapted, features, np.arange(6))
    expected = one_by_one(adapted, features, np.arange(6))
    assert rows.shape == (6, adapted.dimension)
    assert float(expected.norm(dim=1).min()) > 1e-3
    assert float(((rows - expected).norm(dim=1) / expected.norm(dim=1)).max()) < 1e-4


def test_rows_in_reduced_precision_are_still_each_examples_own(adapted: AdaptedModel, encode: Encode) -> None:
    """Rounded to bfloat16 on the way, and unmoved by who else is in the batch."""
    exact = Features(adapted, encode(8))
    reduced = Features(adapted, encode(8), precision=Precision.REDUCED)
    rows = rows_of(adapted, reduced, np.array([0, 1, 2]))
    wanted = rows_of(adapted, exact, np.array([0, 1, 2]))
    assert rows.dtype == torch.float32
    assert float(((rows - wanted).norm(dim=1) / wanted.norm(dim=1)).max()) < 0.2
    again = rows_of(adapted, reduced, np.array([0, 1, 7]))
    assert float((again[:2] - rows[:2]).norm() / rows[:2].norm()) < 0.05


def without(encoded: Encoded, unit: int, owners: NDArray[np.int64]) -> tuple[Encoded, NDArray[np.int64]]:
    """Return the records of every other unit, and where they were."""
    kept = np.flatnonzero(owners != unit)
    units = np.unique(encoded.units[kept], return_inverse=True)[1].astype(np.int64)
    return Encoded(tuple(encoded.inputs[row] for row in kept), encoded.targets[kept], units), kept


@pytest.mark.parametrize("clip_norm", [1e-3, 0.2, 50.0])
@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.PATIENT])
def test_one_unit_moves_a_step_by_at_most_the_clip_norm(
    adapted: AdaptedModel, encode: Encode, unit: Unit, clip_norm: float
) -> None:
    """End to end, from records to the sum, without noise, over every pair of neighbouring data sets (RULES 11)."""
    most = 3 if unit is Unit.PATIENT else 1
    plan = dataclasses.replace(PLAN, unit=unit, max_records_per_unit=most, clip_norm=clip_norm)
    whole = encode(9, UNITS)
    everyone = gradient_of(adapted, Features(adapted, whole), plan, Chosen())
    owners = whole.units if unit is Unit.PATIENT else np.arange(9)
    moves = []
    for removed in np.unique(owners):
        neighbour, _ = without(whole, int(removed), owners)
        others = gradient_of(adapted, Features(adapted, neighbour), plan, Chosen(), micro_batch=3)
        moves.append(float(np.linalg.norm(everyone - others)) * plan.divisor / clip_norm)
    # Padding and batch shapes differ between the two: float32 rounding, far below the noise.
    assert max(moves) <= 1 + 1e-4
    assert min(moves) > 1e-4
    if clip_norm < 0.1:
        assert max(moves) > 0.99


@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.PATIENT])
def test_a_unit_with_a_broken_record_counts_as_absent(adapted: AdaptedModel, encode: Encode, unit: Unit) -> None:
    """RULES 13: what is not finite contributes zero, with the rest of its unit, and its neighbours are as they were."""
    plan = dataclasses.replace(PLAN, unit=unit, max_records_per_unit=3 if unit is Unit.PATIENT else 1)
    whole = encode(9, UNITS)
    owners = whole.units if unit is Unit.PATIENT else np.arange(9)
    features = Features(adapted, whole)
    broken = copy.copy(features)
    hidden = broken._hidden
    assert hidden is not None
    rows = hidden.read(np.arange(9))
    broken._hidden = MemoryRows([*rows[:BROKEN], rows[BROKEN] * float("nan"), *rows[BROKEN + 1 :]])
    found = gradient_of(adapted, broken, plan, Chosen())
    neighbour, _ = without(whole, int(owners[BROKEN]), owners)
    expected = gradient_of(adapted, Features(adapted, neighbour), plan, Chosen())
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) <= 1e-4 * plan.clip_norm / plan.divisor
    intact = gradient_of(adapted, features, plan, Chosen())
    assert np.linalg.norm(found - intact) > 1e-3 * plan.clip_norm / plan.divisor


def test_an_empty_text_is_a_record_like_another(adapted: AdaptedModel, encode: Encode, task: Task) -> None:
    whole = encode(4)
    empty = task.encode([""], ["ward"], np.array([4]))
    both = Encoded(
        (*whole.inputs, *empty.inputs),
        np.concatenate([whole.targets, empty.targets]),
        np.arange(5, dtype=np.int64),
    )
    found = gradient_of(adapted, Features(adapted, both), PLAN, Chosen())
    expected = gradient_of(adapted, Features(adapted, whole), PLAN, Chosen())
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) * PLAN.divisor <= PLAN.clip_norm * (1 + 1e-4)
