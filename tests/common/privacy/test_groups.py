"""What a record-level plan promises to a patient with k records is never more than what is true."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from common.errors import ConsiliumError
from common.privacy.accounting import epsilon_of
from common.privacy.groups import epsilon_for_group, epsilon_for_person
from common.privacy.plan import PrivacyPlan
from common.study import Unit

PLANS = [(1.5, 0.25, 8, 1), (2.0, 0.1, 100, 1), (1.0, 0.05, 50, 0)]


def plan(noise: float, rate: float, steps: int, releases: int, delta: float = 1e-5) -> PrivacyPlan:
    return PrivacyPlan(Unit.RECORD, 1, rate, noise, 1.0, steps, 1, 20.0, releases, delta, 100)


def spent(made: PrivacyPlan, delta: float) -> float:
    return epsilon_of(
        noise_multiplier=made.noise_multiplier,
        sampling_rate=made.sampling_rate,
        steps=made.steps,
        delta=delta,
        evaluation_noise_multiplier=made.evaluation_noise_multiplier,
        evaluation_releases=made.evaluation_releases,
    )


def hockey_sticks(noise: float, rate: float, records: int, epsilon: float) -> float:
    """Return delta at epsilon of one step by quadrature: the worse of adding and removing."""
    x = np.linspace(-14 * noise, records + 14 * noise, 400_001)
    without = stats.norm.pdf(x, 0.0, noise)
    chances = stats.binom.pmf(range(records + 1), records, rate)
    parts = [chance * stats.norm.pdf(x, count, noise) for count, chance in enumerate(chances)]
    present: NDArray[np.float64] = np.sum(parts, axis=0)

    def delta(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
        return float(np.trapezoid(np.maximum(one - math.exp(epsilon) * other, 0.0), x))

    return max(delta(present, without), delta(without, present))


@pytest.mark.parametrize("shape", PLANS)
def test_one_record_has_the_plans_own_epsilon_and_more_records_have_more(shape: tuple[float, float, int, int]) -> None:
    made = plan(*shape)
    found = [epsilon_for_group(made, records) for records in (1, 2, 3, 5, 10)]
    assert found[0] == made.epsilon()
    assert all(less < more for less, more in pairwise(found))


@pytest.mark.parametrize(("noise", "rate", "records"), [(1.0, 0.1, 2), (2.0, 0.3, 5), (3.0, 0.05, 10), (4.0, 1.0, 3)])
def test_of_one_step_it_is_never_below_the_integral_and_close_to_it(noise: float, rate: float, records: int) -> None:
    found = epsilon_for_group(plan(noise, rate, 1, 0), records)
    assert hockey_sticks(noise, rate, records, found) <= 1e-5 * (1 + 1e-6)
    assert hockey_sticks(noise, rate, records, found - 0.05) > 1e-5


@pytest.mark.parametrize("shape", PLANS)
@pytest.mark.parametrize("records", [2, 3])
def test_it_is_no_worse_than_the_general_bound_for_groups(shape: tuple[float, float, int, int], records: int) -> None:
    """(e, d) for one is (k e, d (e^(ke) - 1)/(e^e - 1)) for k [Vadhan 2017, lemma 2.2]; d is found by bisection."""
    made = plan(*shape)
    low, high = math.log(made.delta) - 18.0, math.log(made.delta)
    for _ in range(20):
        middle = (low + high) / 2.0
        each = spent(made, math.exp(middle))
        fits = middle + math.log(math.expm1(records * each) / math.expm1(each)) <= math.log(made.delta)
        low, high = (middle, high) if fits else (low, middle)
    assert epsilon_for_group(made, records) <= records * spent(made, math.exp(low)) + 0.05


def test_unsampled_steps_and_releases_are_one_gaussian_of_the_joint_distance() -> None:
    """Balle and Wang 2018, theorem 8, at distance k sqrt(steps / sigma^2 + releases / evaluation^2)."""
    made, records = plan(8.0, 1.0, 4, 1), 3
    distance = records * math.sqrt(4 / 8.0**2 + 1 / 20.0**2)
    epsilon = epsilon_for_group(made, records)

    def delta(at: float) -> float:
        first = float(stats.norm.cdf(distance / 2 - at / distance))
        return first - math.exp(at) * float(stats.norm.cdf(-distance / 2 - at / distance))

    assert delta(epsilon) <= made.delta < delta(epsilon - 0.05)


@pytest.mark.parametrize("records", [0, -1, 1001])
def test_a_number_of_records_out_of_range_is_refused(records: int) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        epsilon_for_group(plan(*PLANS[0]), records)


def least_epsilon(made: PrivacyPlan, records: int, interval: float = 2e-3) -> float:
    """Return a lower bound of epsilon for ``records`` units together, by composing losses that are rounded down.

    Independent of dp-accounting: the loss of one step, of the mixture against nobody, at the quantiles of a fine grid,
    convolved by FFT with itself and with the evaluation's; only removing is looked at, so the truth may be larger.
    """
    noise, rate = made.noise_multiplier, made.sampling_rate
    chances = stats.binom.pmf(range(records + 1), records, rate)

    def masses(edges: NDArray[np.float64]) -> NDArray[np.float64]:
        parts = [chance * np.diff(stats.norm.cdf(edges, count, noise)) for count, chance in enumerate(chances)]
        return np.asarray(np.sum(parts, axis=0), dtype=np.float64)

    edges = np.linspace(-12 * noise, records + 12 * noise, 200_001)
    # The loss rises with x, so that of an interval's left end is the least in it.
    left = edges[:-1]
    terms = [chance * np.exp((2 * count * left - count**2) / (2 * noise**2)) for count, chance in enumerate(chances)]
    step = place(np.log(np.sum(terms, axis=0)), masses(edges), interval)
    spread = records / made.evaluation_noise_multiplier
    centres = np.linspace(-12.0, 12.0, 200_001)
    released = place(spread * centres[:-1] + spread**2 / 2, np.diff(stats.norm.cdf(centres)), interval)
    size = 1 << 18
    spectrum = np.fft.rfft(spun(step, size)) ** made.steps
    if made.evaluation_releases:
        spectrum = spectrum * np.fft.rfft(spun(released, size)) ** made.evaluation_releases
    composed = np.fft.irfft(spectrum, size)
    losses = interval * np.where(np.arange(size) < size // 2, np.arange(size), np.arange(size) - size)
    order = np.argsort(losses)
    losses, composed = losses[order], np.maximum(composed[order], 0.0)

    def delta(epsilon: float) -> float:
        above = losses > epsilon
        return float(np.sum(composed[above] * -np.expm1(epsilon - losses[above])))

    low, high = 0.0, float(losses[-1])
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if delta(middle) > made.delta else (low, middle)
    return low


def place(losses: NDArray[np.float64], masses: NDArray[np.float64], interval: float) -> dict[int, float]:
    """Return masses on a grid of losses, rounded down."""
    cells = np.floor(losses / interval).astype(np.int64)
    kept = masses > 0
    base = int(cells[kept].min())
    summed = np.bincount(cells[kept] - base, weights=masses[kept])
    return {base + at: float(mass) for at, mass in enumerate(summed) if mass > 0}


def spun(masses: dict[int, float], size: int) -> NDArray[np.float64]:
    """Return masses on a circle of ``size`` cells, negative losses at its end."""
    circle = np.zeros(size)
    for cell, mass in masses.items():
        circle[cell % size] += mass
    return circle


@pytest.mark.parametrize("shape", PLANS)
@pytest.mark.parametrize("records", [1, 2, 6])
def test_whole_studies_are_never_below_an_independent_composition_and_close_to_it(
    shape: tuple[float, float, int, int], records: int
) -> None:
    made = plan(*shape)
    found, least = epsilon_for_person(made, records), least_epsilon(made, records)
    assert found >= least
    assert found <= 1.04 * least + 0.05


@pytest.mark.parametrize("shape", PLANS)
def test_a_patient_level_promise_does_not_depend_on_how_many_records_a_patient_has(
    shape: tuple[float, float, int, int],
) -> None:
    by_record = plan(*shape)
    by_patient = replace(by_record, unit=Unit.PATIENT, max_records_per_unit=6)
    assert {epsilon_for_person(by_patient, records) for records in (1, 2, 6, 1000)} == {by_patient.epsilon()}
    assert epsilon_for_person(by_record, 6) > 3 * epsilon_for_person(by_patient, 6)


@pytest.mark.parametrize("unit", list(Unit))
def test_a_person_without_records_has_no_promise(unit: Unit) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        epsilon_for_person(replace(plan(*PLANS[0]), unit=unit), 0)
