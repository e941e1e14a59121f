"""What a verdict says is what exact tests say, at the rate of false alarms that is stated."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from client.verdict import (
    FALSE_ALARMS,
    POWER,
    Candidate,
    Outcome,
    Scores,
    decide,
    difference_interval,
    flip_test,
    holm,
    mean_interval,
    noticeable,
    unit_means,
)
from common.errors import ConsiliumError

SHARED, BACKBONE, LOCAL, PERSONAL = Candidate.SHARED, Candidate.BACKBONE, Candidate.LOCAL, Candidate.PERSONAL
STUDIES = 400


def alarms_allowed(studies: int) -> int:
    """Return how many false alarms a rate of FALSE_ALARMS exceeds with a chance below 1e-6."""
    return int(binom.isf(1e-6, studies, FALSE_ALARMS))


def coins(dice: np.random.Generator, units: int, chance: float) -> Scores:
    return (dice.random(units) < chance).astype(np.float64)


@given(st.lists(st.tuples(st.integers(0, 4), st.floats(0, 1)), min_size=1, max_size=20), st.data())
@settings(deadline=None)
def test_a_unit_counts_once_however_many_records_it_has(records: list[tuple[int, float]], data: st.DataObject) -> None:
    units, scores = (np.array(column) for column in zip(*records, strict=True))
    again = data.draw(st.integers(1, 5))
    means = unit_means(scores, units)
    assert len(means) == len(set(units.tolist()))
    assert unit_means(np.tile(scores, again), np.tile(units, again)) == pytest.approx(means)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=60))
@settings(deadline=None)
def test_of_right_and_wrong_the_test_is_mcnemars(differences: list[float]) -> None:
    ahead, behind = differences.count(1.0), differences.count(-1.0)
    known = binomtest(min(ahead, behind), ahead + behind).pvalue if ahead + behind else 1.0
    assert flip_test(np.array(differences)) == pytest.approx(known)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=9))
@settings(deadline=None, max_examples=50)
def test_of_other_scores_the_test_is_every_flip_counted(thousandths: list[int]) -> None:
    values = np.array(thousandths)
    flips = np.array(list(itertools.product([-1, 1], repeat=len(values))))
    known = (np.abs(flips @ values) >= abs(values.sum())).mean()
    assert flip_test(values / 1000) == pytest.approx(known)


@pytest.mark.parametrize("units", [300, 1000, 5000])
def test_many_units_are_tested_too(units: int) -> None:
    """Near the normal approximation of the same test, but for what the grid rounds."""
    dice = np.random.default_rng(units)
    differences = np.clip(dice.normal(0.0, 0.3, units), -1, 1)
    z = abs(differences.sum()) / math.sqrt((differences**2).sum())
    assert flip_test(differences) == pytest.approx(math.erfc(z / math.sqrt(2)), abs=0.04)


def test_holm_rejects_step_by_step() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize("fractional", [False, True])
def test_where_nothing_differs_a_difference_is_claimed_no_more_often_than_stated(fractional: bool) -> None:
    """Three comparisons in each of 400 studies; the test itself fails falsely with a chance below one in a million."""
    dice = np.random.default_rng(11)
    claimed = 0
    for _ in range(STUDIES):
        hard = dice.random(60)
        scores = {
            candidate: dice.beta(2, 2, 60) if fractional else (dice.random(60) < hard).astype(np.float64)
            for candidate in Candidate
        }
        claimed += any(found.is_better is not None for found in decide(scores).comparisons)
    assert claimed <= alarms_allowed(STUDIES)


def test_a_difference_that_is_said_to_be_noticeable_is_noticed_as_often_as_said() -> None:
    """Of 400 studies with the very difference: at least POWER less five standard errors, of normal approximations."""
    dice = np.random.default_rng(5)
    units, spread = 200, 0.4
    size = noticeable(np.clip(dice.normal(0, spread, 20_000), -1, 1)[:units], 1)
    assert size is not None
    noticed = 0
    for _ in range(STUDIES):
        noticed += flip_test(np.clip(dice.normal(size, spread, units), -1, 1)) <= FALSE_ALARMS
    assert noticed / STUDIES > POWER - 5 * math.sqrt(POWER * (1 - POWER) / STUDIES) - 0.03


def test_five_units_can_tell_nothing_and_six_can() -> None:
    assert noticeable(np.ones(5), 1) is None
    assert noticeable(np.ones(6), 1) is not None
    assert noticeable(np.ones(6), 3) is None


def test_what_harms_against_either_baseline_is_negative_transfer() -> None:
    dice = np.random.default_rng(2)
    scores = {SHARED: coins(dice, 200, 0.6), BACKBONE: coins(dice, 200, 0.3), LOCAL: coins(dice, 200, 0.9)}
    found = decide(scores)
    assert found.outcome is Outcome.HARMED
    assert found.keep is LOCAL
    assert "HARMS" in found.said
    assert {one.other: one.is_better for one in found.comparisons} == {BACKBONE: True, LOCAL: False}


def test_what_is_better_than_both_baselines_helped() -> None:
    dice = np.random.default_rng(3)
    found = decide({SHARED: coins(dice, 200, 0.9), BACKBONE: coins(dice, 200, 0.5), LOCAL: coins(dice, 200, 0.6)})
    assert (found.outcome, found.keep) == (Outcome.HELPED, SHARED)


def test_a_personal_model_that_is_better_is_kept_and_harms_nobody() -> None:
    dice = np.random.default_rng(4)
    found = decide({SHARED: coins(dice, 200, 0.7), LOCAL: coins(dice, 200, 0.4), PERSONAL: coins(dice, 200, 0.95)})
    assert (found.outcome, found.keep) == (Outcome.HELPED, PERSONAL)


def test_one_that_is_better_by_chance_is_not_kept() -> None:
    shared = np.array([1.0] * 50 + [0.0] * 50)
    other = shared.copy()
    other[60:63] = 1.0
    found = decide({SHARED: shared, LOCAL: other})
    assert (found.outcome, found.keep) == (Outcome.UNDECIDED, SHARED)


def test_without_units_there_is_no_verdict() -> None:
    with pytest.raises(ConsiliumError, match="CSL-504"):
        decide({SHARED: np.zeros(0), LOCAL: np.zeros(0)})
    with pytest.raises(ConsiliumError, match="CSL-504"):
        decide({SHARED: np.ones(3)})


@pytest.mark.parametrize(("units", "chance"), [(30, 0.9), (200, 0.6), (12, 0.5)])
def test_intervals_hold_the_truth_as_often_as_they_say(units: int, chance: float) -> None:
    """2,000 draws: 95 % with a standard error of 0.5 %, less five of them and a percent of the approximation's own."""
    dice, draws = np.random.default_rng(units), 2000
    means = differences = 0
    for _ in range(draws):
        one, other = coins(dice, units, chance), coins(dice, units, chance - 0.1)
        low, high = mean_interval(one)
        means += low <= chance <= high
        low, high = difference_interval(one - other)
        differences += low <= 0.1 <= high
    assert min(means, differences) / draws > 0.915


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(deadline=None)
def test_intervals_hold_their_figure_and_stay_within_their_range(values: list[float]) -> None:
    scores = np.array(values)
    low, high = mean_interval(scores)
    assert 0.0 <= low <= scores.mean() <= high <= 1.0
    low, high = difference_interval(scores - 0.5)
    assert -1.0 <= low <= scores.mean() - 0.5 <= high <= 1.0
