"""Each evaluated unit weighs one, the cells' sensitivity is as planned, and the interval covers the truth."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from client.evaluation import cells, judged, noised_cells
from client.training.features import Features
from common.adapters import AdaptedModel
from common.privacy.accounting import EVALUATION_SCALE, EVALUATION_SENSITIVITY
from common.privacy.released import released_accuracy, share_with_interval
from common.study import Study, Unit
from common.tasks import Encoded
from simulations.noise import SeededNoise
from tests.client.training.test_step import PLAN
from tests.studies import fields

Encode = Callable[..., Encoded]

answers = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=12)


@given(answers)
@settings(deadline=None)
def test_one_unit_moves_the_cells_by_at_most_the_sensitivity(drawn: list[tuple[float, int]]) -> None:
    scores = np.array([score for score, _ in drawn])
    units = np.array([unit for _, unit in drawn])
    whole = cells(scores, units)
    for unit in np.unique(units):
        moved = whole - cells(scores[units != unit], units[units != unit])
        assert moved[0] == EVALUATION_SCALE
        assert 0 <= moved[1] <= EVALUATION_SCALE
        assert np.linalg.norm(moved) <= EVALUATION_SENSITIVITY


def test_a_patient_with_many_records_weighs_one() -> None:
    scores = np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    assert cells(scores, np.array([0, 0, 0, 0, 1])).tolist() == [2 * EVALUATION_SCALE, 3 * EVALUATION_SCALE // 4]


def test_a_site_without_test_records_has_empty_cells() -> None:
    assert cells(np.zeros(0), np.zeros(0, dtype=np.int64)).tolist() == [0, 0]


def test_predictions_are_in_the_order_of_the_records(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(9))
    with torch.no_grad():
        # Tiny features are alike: around their middle the labels differ.
        model.get_parameter("head.bias").sub_(features.outputs(model, features.batch(np.arange(9))).mean(dim=0))
    together = judged(model, features)
    with torch.no_grad():
        alone = [int(features.outputs(model, features.batch(np.array([row]))).argmax(dim=1).item()) for row in range(9)]
    assert together.predicted is not None
    assert together.predicted.tolist() == alone
    assert together.scores.tolist() == [float(one == right) for one, right in zip(alone, features.targets, strict=True)]
    assert len(set(alone)) > 1


def test_noise_of_the_plans_deviation_is_added_to_both_cells(model: AdaptedModel, encode: Encode) -> None:
    """Standard error of a variance over n draws: sqrt(2 / n); five of them is 6e-7."""
    features = Features(model, encode(6))
    scores = judged(model, features).scores
    exact = cells(scores, np.arange(6))
    noise, draws = SeededNoise(1, "cells"), 3000
    shocks = np.array([noised_cells(scores, features, PLAN, noise) - exact for _ in range(draws)], dtype=float)
    assert shocks.var(axis=0) == pytest.approx([PLAN.evaluation_deviation**2] * 2, rel=5 * math.sqrt(2 / draws))
    assert abs(np.corrcoef(shocks[:, 0], shocks[:, 1])[0, 1]) < 5 / math.sqrt(draws)


def test_the_plan_says_who_a_unit_is(model: AdaptedModel, encode: Encode) -> None:
    class Silent(SeededNoise):
        def discrete_gaussian(self, sigma: float, size: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
            return np.zeros(size, dtype=np.int64)

    features = Features(model, encode(4, [0, 0, 0, 1]))
    scores = judged(model, features).scores
    by_patient = dataclasses.replace(PLAN, unit=Unit.PATIENT)
    assert noised_cells(scores, features, PLAN, Silent(0, ""))[0] == 4 * EVALUATION_SCALE
    assert noised_cells(scores, features, by_patient, Silent(0, ""))[0] == 2 * EVALUATION_SCALE


def test_without_noise_the_interval_is_wilsons() -> None:
    share, low, high = share_with_interval(100.0, 80.0, 0.0)
    assert share == 0.8
    assert (low, high) == pytest.approx((0.7112, 0.8666), abs=1e-4)


@pytest.mark.parametrize(("weight", "correct"), [(0.0, 0.0), (-50.0, 10.0), (5.0, 80.0), (5.0, -80.0)])
def test_a_drowned_figure_excludes_nothing(weight: float, correct: float) -> None:
    share, low, high = share_with_interval(weight, correct, 400.0)
    assert 0.0 <= share <= 1.0
    assert (low, high) == (0.0, 1.0)


@given(st.floats(-1e4, 1e6), st.floats(-1e4, 1e6), st.floats(0, 1e5))
@settings(deadline=None)
def test_the_interval_holds_its_figure_and_stays_between_nought_and_one(
    weight: float, correct: float, variance: float
) -> None:
    share, low, high = share_with_interval(weight, correct, variance)
    assert 0.0 <= low <= share <= high <= 1.0


@pytest.mark.parametrize(("tested", "multiplier"), [(400, 5.0), (120, 8.0), (2000, 20.0)])
def test_the_released_interval_covers_the_truth_as_often_as_it_says(tested: int, multiplier: float) -> None:
    """2000 released figures over four sites; 95 % with a standard error of 0.5 %: below 92.5 % is a 5 sigma alarm."""
    study = Study.from_fields(fields(evaluation={"noise_multiplier": multiplier}, privacy={"epsilon": 50.0})[0])
    noise, dice, truth = SeededNoise(4, f"cover {tested}"), np.random.default_rng(6), 0.83
    deviation = 2.0 * multiplier * EVALUATION_SENSITIVITY
    covered = 0
    for _ in range(2000):
        right = int(dice.binomial(tested, truth))
        exact = EVALUATION_SCALE * np.array([tested, right])
        _, low, high = released_accuracy(exact + noise.discrete_gaussian(deviation, 2), 4, study)
        covered += low <= truth <= high
    assert covered / 2000 > 0.925


def test_four_sites_add_four_times_the_variance() -> None:
    study = Study.from_fields(fields()[0])
    counts = EVALUATION_SCALE * np.array([1000, 700])
    _, low_one, high_one = released_accuracy(counts, 1, study)
    _, low_many, high_many = released_accuracy(counts, 16, study)
    assert high_many - low_many > high_one - low_one
