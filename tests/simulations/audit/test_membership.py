"""Membership inference finds what is there, and nothing where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from simulations.audit.membership import area, attack, halved_bound, true_rate


def scores(shift: float, seed: int, size: int = 200) -> tuple[np.ndarray, np.ndarray]:
    dice = np.random.default_rng(seed)
    return dice.normal(shift, 1.0, size), dice.normal(0.0, 1.0, size)


def test_the_area_is_the_chance_that_a_member_scores_higher() -> None:
    auc, _ = area(np.array([3.0, 2.0]), np.array([1.0, 2.0]))
    assert auc == pytest.approx((1 + 1 + 1 + 0.5) / 4)


def test_its_interval_covers_the_truth_as_often_as_stated() -> None:
    """AUC of normals a deviation apart is 0.760; 500 trials at 95 %: at least 450 cover (p < 1e-6)."""
    covered = 0
    for seed in range(500):
        auc, deviation = area(*scores(1.0, seed))
        covered += abs(auc - 0.7602) <= 1.96 * deviation
    assert covered >= 450


def test_no_signal_gives_no_bound_more_often_than_stated() -> None:
    """Two intervals at 5 % each: at most 10 % of 100; 28 or more has a chance below 1e-6."""
    positive = [halved_bound(*scores(0.0, seed), 0.0, np.random.default_rng(seed)) > 0.0 for seed in range(100)]
    assert sum(positive) < 28


def test_an_attack_says_all_of_it() -> None:
    found = attack(*scores(2.0, 3), 1e-5, np.random.default_rng(3))
    assert found.low < found.auc < found.high
    assert found.true_rates[0] <= found.true_rates[1]
    assert found.epsilon > 0.5


def test_a_strong_signal_gives_a_bound() -> None:
    assert halved_bound(*scores(4.0, 1), 1e-5, np.random.default_rng(1)) > 1.5


def test_a_threshold_lets_no_more_false_alarms_through_than_allowed() -> None:
    members, others = np.arange(50, 150.0), np.arange(100.0)
    assert true_rate(members, others, 0.05) == pytest.approx((members > 94).mean())
    assert float((others > 94).mean()) == 0.05
