"""A step is clipped by unit, summed, noised and divided by public numbers only."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.training import step as step_module
from client.training.features import Features, device_of
from client.training.gradients import PerExampleGradients
from client.training.sampler import cap_records
from client.training.step import clip_by_unit, clipped_sum, private_gradient
from common.adapters import AdaptedModel, attach
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.privacy.plan import PrivacyPlan
from common.study import Unit
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec
from simulations.noise import SeededNoise
from tests.client.conftest import DEVICES, shaken

Encode = Callable[..., Encoded]
PLAN = PrivacyPlan(
    unit=Unit.RECORD,
    max_records_per_unit=1,
    sampling_rate=0.5,
    noise_multiplier=1.25,
    clip_norm=0.2,
    steps_per_charge=1,
    max_charges=4,
    evaluation_noise_multiplier=5.0,
    evaluation_releases=1,
    delta=1e-5,
    population=10,
)


class Chosen(SeededNoise):
    """Takes the given units, or all, and adds the given noise, or none."""

    def __init__(self, drawn: tuple[int, ...] | None = None, shock: float = 0.0) -> None:
        super().__init__(0, "chosen")
        self._drawn, self._shock = drawn, shock

    def uniform(self, size: int) -> NDArray[np.float64]:
        coins = np.zeros(size) if self._drawn is None else np.full(size, 0.999)
        coins[[unit for unit in self._drawn or () if unit < size]] = 0.0
        return coins

    def gaussian(self, size: int) -> NDArray[np.float64]:
        return np.full(size, self._shock)


def gradient_of(
    model: AdaptedModel, features: Features, plan: PrivacyPlan, noise: SeededNoise, micro_batch: int = 4
) -> NDArray[np.float64]:
    with PerExampleGradients(model, model.trainable()) as gradients:
        return private_gradient(model, features, plan, gradients, noise, micro_batch=micro_batch)


matrices = st.integers(1, 6).flatmap(
    lambda n: st.tuples(
        st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=n, max_size=n),
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
    )
)


@given(matrices, st.floats(1e-3, 1e3))
@settings(max_examples=150, deadline=None)
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(
    drawn: tuple[list[list[float]], list[int]], clip_norm: float
) -> None:
    gradients, units = torch.tensor(drawn[0]), torch.tensor(drawn[1])
    whole = clip_by_unit(gradients, units, clip_norm)
    for unit in set(drawn[1]):
        rest = clip_by_unit(gradients[units != unit], units[units != unit], clip_norm)
        assert float((whole - rest).norm()) <= clip_norm * (1 + 1e-9)


def test_small_gradients_are_kept_and_large_ones_shortened() -> None:
    gradients = torch.tensor([[0.3, 0.4], [30.0, 40.0]])
    assert torch.allclose(clip_by_unit(gradients, torch.tensor([0, 1]), 1.0), torch.tensor([0.9, 1.2]).double())


def test_the_records_of_a_patient_are_summed_before_the_clip() -> None:
    gradients = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.1, 0.0]])
    total = clip_by_unit(gradients, torch.tensor([7, 7, 2]), 1.0)
    assert torch.allclose(total, torch.tensor([0.7, 0.8]).double())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_unit_that_is_not_finite_counts_as_zero(bad: float) -> None:
    gradients = torch.tensor([[0.1, 0.0], [bad, 1.0], [0.2, 0.0]])
    assert torch.allclose(clip_by_unit(gradients, torch.tensor([0, 1, 1]), 1.0), torch.tensor([0.1, 0.0]).double())


@pytest.mark.parametrize("clip_norm", [0.0, -1.0, float("inf"), float("nan")])
def test_no_clip_is_no_guarantee(clip_norm: float) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        clip_by_unit(torch.ones(1, 2), torch.tensor([0]), clip_norm)


def test_no_example_is_a_zero_sum() -> None:
    assert clip_by_unit(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 1.0).tolist() == [0, 0, 0]


def test_an_empty_batch_is_a_noise_step(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(5))
    found = gradient_of(model, features, PLAN, Chosen(drawn=(), shock=1.0))
    assert np.allclose(found, PLAN.noise_deviation / PLAN.divisor)
    assert found.shape == (model.dimension,)


def test_the_sum_is_divided_by_the_public_constant_whatever_was_drawn(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(5))
    one = gradient_of(model, features, PLAN, Chosen(drawn=(3,)))
    two = gradient_of(model, features, PLAN, Chosen(drawn=(1,)))
    both = gradient_of(model, features, PLAN, Chosen(drawn=(1, 3)))
    assert np.allclose(one + two, both, atol=1e-7)
    doubled = dataclasses.replace(PLAN, population=20)
    assert np.allclose(gradient_of(model, features, doubled, Chosen(drawn=(3,))), one / 2)


@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.PATIENT])
def test_end_to_end_sensitivity_on_neighbouring_data_sets(model: AdaptedModel, encode: Encode, unit: Unit) -> None:
    """Without noise, the same data with and without one unit differ by at most the clip norm, and by something."""
    plan = dataclasses.replace(PLAN, unit=unit, max_records_per_unit=3 if unit is Unit.PATIENT else 1)
    whole = encode(9, [0, 0, 1, 1, 1, 2, 3, 3, 4])
    everyone = gradient_of(model, Features(model, whole), plan, Chosen())
    owners = whole.units if unit is Unit.PATIENT else np.arange(9)
    for removed in np.unique(owners):
        kept = np.flatnonzero(owners != removed)
        neighbour = Encoded(
            tuple(whole.inputs[row] for row in kept),
            whole.targets[kept],
            np.unique(whole.units[kept], return_inverse=True)[1].astype(np.int64),
        )
        others = gradient_of(model, Features(model, neighbour), plan, Chosen(), micro_batch=3)
        moved = np.linalg.norm(everyone - others) * plan.divisor
        # Padding and batch shapes differ between the two: float32 rounding, far below the noise.
        assert 0.01 * plan.clip_norm < moved <= plan.clip_norm * (1 + 1e-4)


def test_micro_batches_change_nothing(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(11))
    sums = [gradient_of(model, features, PLAN, Chosen(), micro_batch=size) for size in (1, 4, 11)]
    assert np.allclose(sums[0], sums[1], rtol=1e-4, atol=1e-7)
    assert np.allclose(sums[0], sums[2], rtol=1e-4, atol=1e-7)


def test_patients_divided_into_groups_are_never_cut_in_two(
    model: AdaptedModel, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = Features(model, encode(10, [0, 0, 0, 1, 1, 2, 3, 3, 3, 3]))
    plan = dataclasses.replace(PLAN, unit=Unit.PATIENT, max_records_per_unit=9)
    whole = gradient_of(model, features, plan, Chosen())
    monkeypatch.setattr(step_module, "_GROUP_VALUES", 3 * model.dimension)
    groups = list(step_module._groups(np.arange(10), features.units, model.dimension))
    assert len(groups) > 1
    assert all(set(features.units[a]).isdisjoint(features.units[b]) for a in groups for b in groups if a is not b)
    assert np.allclose(gradient_of(model, features, plan, Chosen()), whole, rtol=1e-4, atol=1e-7)


def test_a_record_level_plan_ignores_patients(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(4, [0, 0, 0, 0]))
    with PerExampleGradients(model, model.trainable()) as gradients:
        expected = clipped_sum(model, features, np.arange(4), np.arange(4), 0.2, gradients, micro_batch=4)
    assert np.allclose(gradient_of(model, features, PLAN, Chosen()) * PLAN.divisor, expected, atol=1e-7)


def test_a_patient_brings_no_more_records_than_the_study_allows() -> None:
    units = np.array([0, 1, 1, 1, 1, 1, 2, 2])
    rows = cap_records(units, np.array([0, 1]), 2, SeededNoise(3, "cap"))
    assert rows[0] == 0
    assert len(rows) == 3
    assert set(units[rows[1:]]) == {1}
    chosen = {tuple(cap_records(units, np.array([1]), 2, SeededNoise(s, "cap"))) for s in range(40)}
    assert len(chosen) > 5


def test_a_step_honours_the_cap(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(3, [0, 0, 0]))
    plan = dataclasses.replace(PLAN, unit=Unit.PATIENT, clip_norm=1e6, max_records_per_unit=1)
    with PerExampleGradients(model, model.trainable()) as gradients:
        rows = gradients.rows(features.losses(model, features.batch(np.arange(3)))).double().numpy()
    capped = gradient_of(model, features, plan, Chosen()) * plan.divisor
    assert any(np.allclose(capped, row, rtol=1e-3, atol=1e-4) for row in rows)
    whole = gradient_of(model, features, dataclasses.replace(plan, max_records_per_unit=3), Chosen()) * plan.divisor
    assert np.allclose(whole, rows.sum(axis=0), rtol=1e-3, atol=1e-4)


def test_the_cap_holds_also_where_unit_numbers_have_gaps() -> None:
    units = np.array([0, 2, 2])
    assert len(cap_records(units, np.array([0, 1, 2]), 1, SeededNoise(3, "gap"))) == 2


def test_noise_is_added_once_to_the_sum_at_the_plans_deviation(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(5))
    quiet = gradient_of(model, features, PLAN, Chosen())
    loud = gradient_of(model, features, PLAN, Chosen(shock=2.0))
    assert np.allclose((loud - quiet) * PLAN.divisor, 2.0 * 1.25 * 0.2)


@pytest.mark.parametrize("shock", [float("nan"), float("inf")])
def test_noise_that_is_not_finite_stops_the_step(model: AdaptedModel, encode: Encode, shock: float) -> None:
    with pytest.raises(ConsiliumError, match="CSL-206"):
        gradient_of(model, Features(model, encode(2)), PLAN, Chosen(shock=shock))


def test_replacing_a_unit_may_move_the_sum_twice_as_far() -> None:
    """So epsilon, which is for adding or removing one unit, is no epsilon for replacing one by another."""
    rest, one, other = torch.tensor([0.3, 0.4]), torch.tensor([50.0, 0.0]), torch.tensor([-50.0, 0.0])
    before, after = (clip_by_unit(torch.stack([rest, mine]), torch.tensor([0, 1]), 1.0) for mine in (one, other))
    absent = clip_by_unit(rest[None], torch.tensor([0]), 1.0)
    assert float((before - after).norm()) == pytest.approx(2.0)
    assert float((before - absent).norm()) == float((after - absent).norm()) == pytest.approx(1.0)


def one_by_one(model: AdaptedModel, features: Features, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (records, parameters): gradients from backward passes through one record each, without any hook."""
    parameters = [parameter for _, parameter in model.trainable()]
    found = []
    for row in rows:
        batch = features.batch(np.array([row]), device_of(model))
        own = torch.autograd.grad(features.losses(model, batch).sum(), parameters)
        found.append(torch.cat([part.reshape(-1) for part in own]).double().cpu().numpy())
    return np.stack(found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", ["ffa-lora", "lora", "layer-norm"])
@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.PATIENT])
def test_a_step_is_the_textbooks_step_under_the_same_noise(
    backbone: Backbone, task: Task, encode: Encode, unit: Unit, method: str, device: str
) -> None:
    """Algorithm 1 of Abadi et al. in plain numpy, drawing from a twin of the source that the step draws from."""
    targets = ("query", "value", "output.dense")
    spec = AdapterSpec.model_validate({"method": method, "rank": 2, "targets": targets, "last_layers": 2})
    model = copy.deepcopy(shaken(attach(backbone, spec, task, "5a" * 32))).to(device)
    features = Features(model, encode(12, [0, 0, 1, 1, 1, 2, 3, 3, 4, 5, 6, 6]))
    plan = dataclasses.replace(PLAN, unit=unit, max_records_per_unit=2 if unit is Unit.PATIENT else 1)
    found = gradient_of(model, features, plan, SeededNoise(4, "step"))

    twin = SeededNoise(4, "step")
    units = features.units if unit is Unit.PATIENT else np.arange(12)
    drawn = np.flatnonzero(twin.uniform(int(units.max()) + 1) < plan.sampling_rate)
    rows = cap_records(units, drawn, plan.max_records_per_unit, twin)
    assert 1 < len(rows) < 12
    gradients, total = one_by_one(model, features, rows), np.zeros(model.dimension)
    for owner in np.unique(units[rows]):
        own = gradients[units[rows] == owner].sum(axis=0)
        total += own * min(1.0, plan.clip_norm / float(np.linalg.norm(own)))
    expected = (total + plan.noise_multiplier * plan.clip_norm * twin.gaussian(model.dimension)) / plan.divisor
    assert np.linalg.norm(found - expected) * plan.divisor < 1e-5 * plan.clip_norm * len(rows)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [False, True])
@pytest.mark.parametrize("units", [[0, 1, 2, 3, 4], [3, 0, 3, 0, 1]])
def test_parts_are_clipped_like_rows_side_by_side_however_they_lie_in_memory(
    units: list[int], bad: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = torch.Generator().manual_seed(2)
    tall, wide, flat = (torch.randn(5, *shape, generator=dice).to(device) for shape in ((2, 9), (3, 4), (6,)))
    parts = (tall.mT, wide, flat, wide.mT, flat[:, :1])
    if bad:
        wide[1, 2, 3] = float("nan")
    side = torch.cat([part.reshape(5, -1) for part in parts], dim=1)
    owners = torch.tensor(units)
    expected = np.zeros(side.shape[1])
    for owner in set(units):
        own = side[owners == owner].double().sum(dim=0).cpu().numpy()
        if np.isfinite(own).all():
            expected += own * min(1.0, 1.5 / float(np.linalg.norm(own)))
    assert np.linalg.norm(expected) > 0.5
    for cached in (1 << 11, 2):
        monkeypatch.setattr(step_module, "_CACHED_COLUMNS", cached)
        for gradients in (parts, side):
            assert np.linalg.norm(clip_by_unit(gradients, owners, 1.5).cpu().numpy() - expected) < 1e-12


def test_no_example_is_a_zero_sum_also_in_parts() -> None:
    parts = (torch.zeros(0, 2, 3).mT, torch.zeros(0, 4))
    assert clip_by_unit(parts, torch.zeros(0, dtype=torch.int64), 1.0).tolist() == [0.0] * 10
