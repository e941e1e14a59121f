"""No study makes the accountant take more than it may: what would not fit is refused before anything is composed.

What is foreseen is measured against what the accountant's package really stores, in points and in bytes: never less.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import pytest
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.privacy.accounting import MOST_POINTS, epsilon_of, grid_of
from common.privacy.concerns import concerns
from common.privacy.groups import epsilon_for_group
from common.privacy.plan import PrivacyPlan
from common.privacy.support import gaussian_points, mixture_points
from tests.ledgers import PLAN
from tests.studies import signed_study

BYTES_A_POINT = 200
"""The stated budget is this many bytes for each of MOST_POINTS: 400 MiB."""
LITTLE_MEMORY = 8 << 20
AFFORDABLE = 200_000
"""Points for which a test composes in earnest."""

noises = st.floats(math.log(0.05), math.log(1e5)).map(math.exp)
rates = st.floats(math.log(1e-6), 0.0).map(math.exp)
counts = st.floats(0.0, math.log(1e7)).map(math.exp).map(int)
grids = st.sampled_from([1e-3, 1e-2])


def size(loss: PrivacyLossDistribution) -> int:
    return int(max(loss._pmf_remove.size, loss._pmf_add.size))


def peak(act: Callable[[], object]) -> int:
    """Return the most bytes that a call held at once."""
    tracemalloc.start()
    try:
        act()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def spent(
    noise: float, rate: float, steps: int, evaluation_noise: float = 5.0, releases: int = 0, delta: float = 1e-5
) -> float:
    return epsilon_of(
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        delta=delta,
        evaluation_noise_multiplier=evaluation_noise,
        evaluation_releases=releases,
    )


@given(noise=noises, rate=rates, steps=counts, grid=grids)
@example(noise=0.05, rate=1.0, steps=1, grid=1e-2)
@example(noise=1e5, rate=1e-6, steps=10_000_000, grid=1e-3)
@example(noise=0.5, rate=0.5, steps=100, grid=1e-3)
@example(noise=1.0, rate=math.exp(-6.0), steps=22_026, grid=1e-3)
@example(noise=0.581, rate=0.001472, steps=45_325, grid=1e-3)
@settings(max_examples=40, deadline=None)
def test_no_composition_of_steps_takes_more_points_than_were_foreseen(
    noise: float, rate: float, steps: int, grid: float
) -> None:
    foreseen = mixture_points(noise, (0.0, 1.0), (1.0 - rate, rate), steps, grid)
    assume(foreseen < AFFORDABLE)
    step = privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=grid
    )
    assert max(size(step), size(step.self_compose(steps))) <= foreseen


@given(noise=noises, records=st.integers(2, 8), rate=st.floats(1e-4, 0.9), steps=counts)
@settings(max_examples=10, deadline=None)
def test_nor_does_one_of_several_records_together(noise: float, records: int, rate: float, steps: int) -> None:
    grid, distances = 5e-3 * records, [float(count) for count in range(records + 1)]
    chances = [math.comb(records, k) * rate**k * (1.0 - rate) ** (records - k) for k in range(records + 1)]
    foreseen = mixture_points(noise, distances, chances, steps, grid)
    assume(foreseen < AFFORDABLE / 20)
    step = privacy_loss_distribution.from_mixture_gaussian_mechanism(
        noise, distances, chances, value_discretization_interval=grid
    )
    assert max(size(step), size(step.self_compose(steps))) <= foreseen


@given(noise=noises, releases=st.integers(1, 1000), grid=grids)
@settings(max_examples=20, deadline=None)
def test_nor_does_one_of_evaluation_releases(noise: float, releases: int, grid: float) -> None:
    foreseen = gaussian_points(noise, releases, grid)
    assume(foreseen < AFFORDABLE)
    made = privacy_loss_distribution.from_gaussian_mechanism(
        noise / math.sqrt(releases), value_discretization_interval=grid
    )
    assert size(made) <= foreseen


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "evaluation_noise", "releases"),
    [(0.5, 0.5, 200, 5.0, 0), (1.0, 0.1, 100, 0.4, 30), (0.5, 0.5, 100, 0.1, 30)],
)
def test_a_point_costs_no_more_bytes_than_the_budget_is_reckoned_with(
    noise: float, rate: float, steps: int, evaluation_noise: float, releases: int
) -> None:
    grid = grid_of(noise, rate, steps, evaluation_noise, releases)
    assert grid is not None
    points = mixture_points(noise, (0.0, 1.0), (1.0 - rate, rate), steps, grid)
    points += gaussian_points(evaluation_noise, releases, grid) if releases else 0.0
    assert points > 50_000
    spent(noise, rate, 1)
    assert peak(lambda: spent(noise, rate, steps, evaluation_noise, releases, 2e-5)) < BYTES_A_POINT * points


HEAVY = [
    (0.05, 1.0, 10_000_000, 5.0, 0),
    (0.4, 0.5, 10_000_000, 5.0, 1),
    (1.5, 0.25, 8, 0.05, 1000),
    (0.05, 1e-6, 10_000_000, 0.05, 1000),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "evaluation_noise", "releases"), HEAVY)
def test_what_would_not_fit_is_refused_before_anything_is_composed(
    noise: float, rate: float, steps: int, evaluation_noise: float, releases: int
) -> None:
    def ask() -> None:
        with pytest.raises(ConsiliumError, match="CSL-201"):
            spent(noise, rate, steps, evaluation_noise, releases)

    assert peak(ask) < LITTLE_MEMORY


@given(noise=noises, rate=rates, steps=counts, evaluation_noise=noises, releases=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_whatever_a_study_says_the_grid_is_found_in_little_memory_and_fits(
    noise: float, rate: float, steps: int, evaluation_noise: float, releases: int
) -> None:
    found: list[float | None] = []
    assert peak(lambda: found.append(grid_of(noise, rate, steps, evaluation_noise, releases))) < LITTLE_MEMORY
    if found[0] is not None:
        points = mixture_points(noise, (0.0, 1.0), (1.0 - rate, rate), steps, found[0])
        points += gaussian_points(evaluation_noise, releases, found[0]) if releases else 0.0
        assert points <= MOST_POINTS


def test_the_grid_follows_both_noises_and_only_those_that_are_drawn() -> None:
    assert grid_of(1.0, 0.1, 100, 5.0, 1) == 1e-3
    assert grid_of(0.3, 0.1, 100, 5.0, 1) == 1e-2
    assert grid_of(1.0, 0.1, 100, 0.3, 1) == 1e-2
    assert grid_of(1.0, 0.1, 100, 0.3, 0) == 1e-3
    assert grid_of(0.3, 0.1, 0, 5.0, 1) == 1e-3
    assert grid_of(0.5, 0.5, 50_000, 5.0, 1) == 1e-2


def test_epsilon_does_not_fall_where_the_grid_grows_coarser() -> None:
    at = [spent(0.5, 0.5, steps) for steps in (2000, 8000)]
    assert [grid_of(0.5, 0.5, steps, 5.0, 0) for steps in (2000, 8000)] == [1e-3, 1e-2]
    assert at[0] < at[1]


def test_a_person_whose_records_cannot_be_accounted_is_not_protected() -> None:
    plan = replace(PLAN, noise_multiplier=0.2, max_charges=2, evaluation_releases=0)
    plan.epsilon()
    found: list[float] = []
    assert peak(lambda: found.append(epsilon_for_group(plan, 10))) < LITTLE_MEMORY
    assert found == [math.inf]


@pytest.mark.parametrize(
    "changes",
    [
        {
            "privacy": {"epsilon": 1e30, "noise_multiplier": 0.05, "max_charges": 100},
            "training": {"steps_per_round": 10**5},
        },
        {"privacy": {"epsilon": 1e30}, "evaluation": {"releases": 1000, "noise_multiplier": 0.05}},
    ],
)
def test_a_signed_study_of_too_little_noise_has_no_plan(changes: dict[str, object]) -> None:
    study = signed_study(4, **changes).study
    with pytest.raises(ConsiliumError, match="CSL-201"):
        PrivacyPlan.for_site(study, study.roster[0].site_id)
    with pytest.raises(ConsiliumError, match="CSL-201"):
        concerns(study)
