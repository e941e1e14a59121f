"""A step with discrete noise is exact in integers: a unit moves the sum by at most the clip, to the last bit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.loop import train_privately
from client.training.step import clip_by_unit, privacy_units, round_by_unit, rounded_sum
from common.adapters import AdaptedModel
from common.errors import ConsiliumError
from common.privacy.plan import PrivacyPlan
from common.study import TrainingNoise, Unit
from common.tasks import Encoded
from common.transfer import Training
from simulations.noise import SeededNoise
from tests.client.training.test_every_method import without
from tests.client.training.test_step import PLAN, Chosen, gradient_of, matrices

Encode = Callable[..., Encoded]
DISCRETE = dataclasses.replace(PLAN, noise=TrainingNoise.DISCRETE)
UNITS = [0, 0, 1, 1, 1, 2, 3, 3, 4]


class Integers(Chosen):
    """Takes every unit and adds the given integer to each coordinate."""

    def __init__(self, added: int = 0, drawn: tuple[int, ...] | None = None) -> None:
        super().__init__(drawn)
        self._added = added
        self.asked: list[float] = []

    def gaussian(self, size: int) -> NDArray[np.float64]:
        raise AssertionError("discrete noise was asked for")

    def discrete_gaussian(self, sigma: float, size: int) -> NDArray[np.int64]:
        self.asked.append(sigma)
        return np.full(size, self._added, dtype=np.int64)


def norm_squared(integers: NDArray[np.int64]) -> int:
    """Return the exact square of an integer vector's norm."""
    return sum(int(value) ** 2 for value in integers)


def summed(model: AdaptedModel, encoded: Encoded, plan: PrivacyPlan) -> NDArray[np.int64]:
    features = Features(model, encoded, alone=True)
    with PerExampleGradients(model, model.trainable()) as gradients:
        return rounded_sum(
            model, features, np.arange(len(features)), privacy_units(features, plan), plan.grid, gradients
        )


@given(matrices, st.floats(1e-3, 1e3))
@settings(max_examples=150, deadline=None)
def test_a_units_integers_are_within_the_clip_in_exact_arithmetic(
    drawn: tuple[list[list[float]], list[int]], clip_norm: float
) -> None:
    rows, units = drawn
    grid = dataclasses.replace(DISCRETE, clip_norm=clip_norm).grid
    for unit in set(units):
        mine = torch.tensor([row for row, owner in zip(rows, units, strict=True) if owner == unit])
        integers = round_by_unit(mine, torch.zeros(len(mine), dtype=torch.int64), grid).numpy()
        assert norm_squared(integers) <= Fraction(grid.clip) ** 2


@pytest.mark.parametrize("clip_norm", [1e-3, 0.2, 50.0])
@pytest.mark.parametrize("unit", [Unit.RECORD, Unit.PATIENT])
def test_neighbouring_data_sets_differ_by_at_most_the_clip_to_the_last_bit(
    model: AdaptedModel, encode: Encode, unit: Unit, clip_norm: float
) -> None:
    """Without any tolerance: no rounding of a sum, of a batch's shape or of padding is left over (RULES 11)."""
    plan = dataclasses.replace(
        DISCRETE, unit=unit, max_records_per_unit=3 if unit is Unit.PATIENT else 1, clip_norm=clip_norm
    )
    whole = encode(9, UNITS)
    everyone = summed(model, whole, plan)
    owners = whole.units if unit is Unit.PATIENT else np.arange(9)
    longest = 0.0
    for removed in np.unique(owners):
        neighbour, _ = without(whole, int(removed), owners)
        moved = norm_squared(everyone - summed(model, neighbour, plan))
        assert moved <= Fraction(plan.grid.clip) ** 2
        longest = max(longest, math.sqrt(moved) / plan.grid.clip)
    assert longest > 1e-4
    if clip_norm < 0.1:
        assert longest > 0.999


def test_a_units_integers_do_not_depend_on_how_many_norms_a_kernel_computes_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No kernel promises as much; this one's last bits depend on the number of rows."""
    exact = torch.linalg.vector_norm
    monkeypatch.setattr(torch.linalg, "vector_norm", lambda rows, dim: exact(rows, dim=dim) * (1 + 1e-9 * len(rows)))
    rows, units = torch.randn(6, 5, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 0, 1, 2, 1, 3])
    grid = dataclasses.replace(DISCRETE, clip_norm=1e-3).grid
    whole = round_by_unit(rows, units, grid)
    parts = [round_by_unit(rows[units == unit], units[units == unit], grid) for unit in range(4)]
    assert torch.equal(whole, torch.stack(parts).sum(dim=0))


def test_it_is_the_clipped_sum_but_for_the_grid(model: AdaptedModel, encode: Encode) -> None:
    encoded = encode(9)
    exact = gradient_of(model, Features(model, encoded), PLAN, Chosen())
    discrete = gradient_of(model, Features(model, encoded, alone=True), DISCRETE, Integers())
    assert np.linalg.norm(discrete - exact) < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("records", [0, 5])
def test_what_is_released_lies_on_the_grid_and_an_empty_batch_is_noise(
    model: AdaptedModel, encode: Encode, records: int
) -> None:
    noise = Integers(added=12345, drawn=())
    found = gradient_of(model, Features(model, encode(records), alone=True), DISCRETE, noise)
    assert noise.asked == [DISCRETE.grid.deviation]
    assert (found == 12345 * DISCRETE.grid.step / DISCRETE.divisor).all()
    busy = gradient_of(model, Features(model, encode(5), alone=True), DISCRETE, Integers(added=7))
    steps = busy * DISCRETE.divisor / DISCRETE.grid.step
    assert np.abs(steps - np.rint(steps)).max() <= np.abs(steps).max() * 2.0**-50


def test_records_that_were_computed_together_are_refused(model: AdaptedModel, encode: Encode) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        gradient_of(model, Features(model, encode(5)), DISCRETE, Integers())


def test_noise_of_another_kind_is_refused(model: AdaptedModel, encode: Encode) -> None:
    class Floats(Integers):
        def discrete_gaussian(self, sigma: float, size: int) -> NDArray[np.int64]:
            return np.zeros(size, dtype=np.float64)

    with pytest.raises(ConsiliumError, match="CSL-206"):
        gradient_of(model, Features(model, encode(5), alone=True), DISCRETE, Floats())


def test_a_unit_that_is_not_finite_counts_as_zero() -> None:
    rows = torch.tensor([[3.0, 4.0], [float("nan"), 1.0], [float("inf"), 0.0]])
    grid = DISCRETE.grid
    found = round_by_unit(rows, torch.tensor([0, 1, 2]), grid)
    assert torch.equal(found, round_by_unit(rows[:1], torch.tensor([0]), grid))
    close = clip_by_unit(rows[:1], torch.tensor([0]), DISCRETE.clip_norm).numpy()
    assert np.allclose(found.numpy() * grid.step, close, rtol=1e-6)


def test_a_whole_round_trains_with_it(model: AdaptedModel, encode: Encode) -> None:
    """Noise alone has the deviation that the plan charges, coordinate by coordinate, after all that follows."""
    training = Training(rounds=1, steps_per_round=1, learning_rate=1.0, schedule="constant")
    features = Features(model, encode(12), alone=True)
    plan = dataclasses.replace(DISCRETE, clip_norm=1e-3, noise_multiplier=50.0)
    start = model.read_vector()
    updates = [
        train_privately(model, features, plan, training, _seeded(run), start=start, round_index=0) for run in range(8)
    ]
    values = np.concatenate(updates).astype(np.float64)
    expected = plan.noise_deviation / plan.divisor
    # 6 standard errors of a deviation; the signal is at most 12 clip norms over all coordinates.
    assert abs(values.std() / expected - 1.0) < 6.0 / math.sqrt(2 * len(values)) + 0.01


def _seeded(run: int) -> SeededNoise:

    return SeededNoise(run, "round")
