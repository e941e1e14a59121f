"""Epsilon is PLD's, never below another sound accountant's truth, and calibration never overspends."""

from __future__ import annotations

import math

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.privacy.accounting import (
    accountant_version,
    calibrate_noise,
    epsilon_of,
    training_event,
    whole_event,
)

GRID = [
    (0.8, 0.01, 3000, 1e-5),
    (1.0, 0.1, 100, 1e-5),
    (2.0, 0.1, 400, 1e-5),
    (3.0, 0.3, 200, 1e-6),
    (1.5, 0.05, 1000, 1e-7),
    (6.0, 0.5, 100, 1e-5),
]


def training_epsilon(noise: float, rate: float, steps: int, delta: float) -> float:
    return epsilon_of(
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        delta=delta,
        evaluation_noise_multiplier=5.0,
        evaluation_releases=0,
    )


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), GRID)
def test_epsilon_agrees_with_prv_and_stays_below_rdp(noise: float, rate: float, steps: int, delta: float) -> None:
    from opacus.accountants import PRVAccountant

    prv = PRVAccountant()
    prv.history = [(noise, rate, steps)]
    theirs = prv.get_epsilon(delta=delta, eps_error=0.01)
    rdp = RdpAccountant()
    rdp.compose(training_event(noise, rate, steps))
    ours = training_epsilon(noise, rate, steps, delta)
    assert ours == pytest.approx(theirs, rel=0.015)
    assert ours <= rdp.get_epsilon(delta)


@pytest.mark.parametrize(("noise", "rate", "steps", "delta"), GRID)
def test_epsilon_is_never_below_a_ten_times_finer_pld(noise: float, rate: float, steps: int, delta: float) -> None:
    finer = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-4)
    finer.compose(training_event(noise, rate, steps))
    assert training_epsilon(noise, rate, steps, delta) >= finer.get_epsilon(delta) - 1e-9


def test_the_known_figure_holds() -> None:
    assert training_epsilon(0.8, 0.01, 3000, 1e-5) == pytest.approx(5.243, abs=2e-3)


def test_an_extreme_where_prv_is_infinite_stays_finite() -> None:
    assert 800 < training_epsilon(0.5, 0.5, 1000, 1e-5) < 900


def test_one_unsampled_release_is_the_analytic_gaussian() -> None:
    """Balle and Wang 2018, theorem 8: delta(eps) = Phi(1/2s - eps s) - e^eps Phi(-1/2s - eps s)."""

    def phi(x: float) -> float:
        return 0.5 * math.erfc(-x / math.sqrt(2.0))

    noise = 5.0
    epsilon = epsilon_of(
        noise_multiplier=1.0,
        sampling_rate=0.1,
        steps=0,
        delta=1e-5,
        evaluation_noise_multiplier=noise,
        evaluation_releases=1,
    )
    delta = phi(0.5 / noise - epsilon * noise) - math.exp(epsilon) * phi(-0.5 / noise - epsilon * noise)
    assert delta <= 1e-5
    assert delta == pytest.approx(1e-5, rel=0.05)


def test_evaluation_composes_with_training() -> None:
    event = whole_event(1.0, 0.1, 100, 5.0, 3)
    assert isinstance(event, dp_accounting.ComposedDpEvent)
    parts = [
        epsilon_of(
            noise_multiplier=1.0,
            sampling_rate=0.1,
            steps=steps,
            delta=1e-5,
            evaluation_noise_multiplier=5.0,
            evaluation_releases=releases,
        )
        for steps, releases in ((100, 3), (100, 0), (0, 3))
    ]
    whole, training, evaluation = parts
    assert max(training, evaluation) < whole < training + evaluation


@given(
    epsilon=st.floats(0.2, 12.0),
    rate=st.sampled_from([0.02, 0.1, 0.5, 1.0]),
    steps=st.sampled_from([1, 20, 100]),
    releases=st.sampled_from([0, 1]),
)
@settings(max_examples=8, deadline=None)
def test_calibrated_noise_never_overspends_and_is_the_least_on_its_grid(
    epsilon: float, rate: float, steps: int, releases: int
) -> None:
    common = {
        "delta": 1e-5,
        "sampling_rate": rate,
        "steps": steps,
        "evaluation_noise_multiplier": 40.0,
        "evaluation_releases": releases,
    }
    noise = calibrate_noise(epsilon=epsilon, **common)
    assert epsilon_of(noise_multiplier=noise, **common) <= epsilon
    assert noise == pytest.approx(round(noise, 4), abs=1e-12)
    assert epsilon_of(noise_multiplier=noise - 2e-4, **common) > epsilon


def test_an_evaluation_that_spends_everything_leaves_no_training() -> None:
    with pytest.raises(ConsiliumError, match="CSL-202"):
        calibrate_noise(
            epsilon=0.5,
            delta=1e-5,
            sampling_rate=0.1,
            steps=100,
            evaluation_noise_multiplier=1.0,
            evaluation_releases=1,
        )


@pytest.mark.parametrize(
    "change",
    [
        {"epsilon": 0.0},
        {"epsilon": -1.0},
        {"epsilon": math.nan},
        {"delta": 0.0},
        {"delta": 1.0},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.1},
        {"steps": 0},
        {"evaluation_noise_multiplier": 0.0},
        {"evaluation_releases": -1},
    ],
)
def test_a_parameter_out_of_range_is_a_coded_error(change: dict[str, float]) -> None:
    usual: dict[str, float] = {
        "epsilon": 8.0,
        "delta": 1e-5,
        "sampling_rate": 0.1,
        "steps": 100,
        "evaluation_noise_multiplier": 5.0,
        "evaluation_releases": 1,
    }
    with pytest.raises(ConsiliumError, match="CSL-201"):
        calibrate_noise(**(usual | change))


def test_the_accountant_names_itself_and_its_relation() -> None:
    assert "PLD" in accountant_version()
    assert "add/remove" in accountant_version()
