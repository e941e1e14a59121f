"""Lower bounds from guesses: exact where they can be computed by hand, never above the truth more often than stated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from simulations.audit.bounds import (
    best_bound,
    epsilon_at_least,
    fewest_right,
    guess_counts,
    p_value,
    share_interval,
)


@given(st.integers(1, 200), st.data(), st.floats(0.0, 5.0))
def test_without_delta_the_p_value_is_a_binomial_tail(guesses: int, data: st.DataObject, epsilon: float) -> None:
    right = data.draw(st.integers(0, guesses))
    wanted = stats.binom.sf(right - 1, guesses, 1.0 / (1.0 + math.exp(-epsilon)))
    assert p_value(guesses + 10, guesses, right, epsilon, 0.0) == pytest.approx(float(wanted), rel=1e-6, abs=1e-12)


def test_delta_adds_what_the_theorem_says() -> None:
    """Three guesses on four coins, two right, worked out by hand: 2 m delta max(P[W = 1], P[W in 0, 1] / 2)."""
    share = 1.0 / (1.0 + math.exp(-1.0))
    mass = [float(stats.binom.pmf(hits, 3, share)) for hits in range(4)]
    wanted = mass[2] + mass[3] + 2 * 4 * 0.01 * max(mass[1], (mass[0] + mass[1]) / 2)
    assert p_value(4, 3, 2, 1.0, 0.01) == pytest.approx(wanted)


@given(st.integers(1, 120), st.data(), st.sampled_from([0.0, 1e-5, 1e-3]))
def test_more_right_guesses_prove_more_and_a_larger_epsilon_excuses_more(
    guesses: int, data: st.DataObject, delta: float
) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    assert p_value(150, guesses, right + 1, 1.0, 0.0) <= p_value(150, guesses, right, 1.0, 0.0) + 1e-12
    assert p_value(150, guesses, right, 2.0, 0.0) >= p_value(150, guesses, right, 1.0, 0.0) - 1e-12
    low, high = (epsilon_at_least(150, guesses, hits, delta, 0.05) for hits in (right, right + 1))
    assert low <= high + 1e-5


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 2.0])
def test_the_fewest_right_guesses_are_just_enough(epsilon: float) -> None:
    needed = fewest_right(100, 80, epsilon, 1e-5, 0.05)
    assert p_value(100, 80, needed, epsilon, 1e-5) <= 0.05 < p_value(100, 80, needed - 1, epsilon, 1e-5)
    assert epsilon_at_least(100, 80, needed, 1e-5, 0.05) >= epsilon - 1e-6
    assert epsilon_at_least(100, 80, needed - 1, 1e-5, 0.05) <= epsilon + 1e-6


def test_with_r_guesses_all_right_no_more_than_about_the_logarithm_of_a_third_of_them_is_proven() -> None:
    assert epsilon_at_least(100, 100, 100, 0.0, 0.05) == pytest.approx(-math.log(0.05 ** (-1 / 100) - 1.0), abs=1e-4)
    assert epsilon_at_least(100, 100, 100, 0.0, 0.05) < math.log(100 / 2.9)


@pytest.mark.parametrize("epsilon", [0.2, 1.0, 3.0])
def test_the_bound_is_above_the_truth_no_more_often_than_stated(epsilon: float) -> None:
    """Randomised response is the worst (epsilon, 0)-private mechanism. 1,000 audits at 5 %: at most 91 (p < 1e-8)."""
    dice, bits = np.random.default_rng(int(10 * epsilon)), 256
    wrong = 0
    for _ in range(1000):
        coins = dice.random(bits) < 0.5
        told = np.where(dice.random(bits) < 1.0 / (1.0 + math.exp(-epsilon)), coins, ~coins)
        odds = np.where(told, 1.0, -1.0) * (1.0 + dice.random(bits))
        wrong += best_bound(odds, coins, 0.0, 0.05).epsilon > epsilon
    assert wrong <= 91


def test_the_bound_of_a_mechanism_that_tells_everything_grows_with_the_coins() -> None:
    dice = np.random.default_rng(0)
    found = []
    for bits in (32, 512):
        coins = dice.random(bits) < 0.5
        found.append(best_bound(np.where(coins, 9.0, -9.0), coins, 1e-6, 0.05).epsilon)
    assert 1.0 < found[0] < found[1]


def test_numbers_of_guesses_are_settled_before_anything_is_seen() -> None:
    assert guess_counts(1600) == (50, 200, 800)
    assert guess_counts(10) == (10,)


@pytest.mark.parametrize(("hits", "trials"), [(0, 20), (3, 20), (20, 20), (400, 1000)])
def test_intervals_are_clopper_and_pearsons(hits: int, trials: int) -> None:
    low, high = share_interval(hits, trials, 0.05)
    wanted = stats.binomtest(hits, trials).proportion_ci(0.95, "exact")
    assert (low, high) == pytest.approx((wanted.low, wanted.high), abs=1e-6)
