from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulations import findings
from simulations.findings import difference, epsilon_text, guess_at_best, points, signed, wilson
from simulations.metrics import Metrics
from tests.simulations.runs import run, study


def judged(together: float, alone: float, open_: float, examples: int = 2000) -> Metrics:
    """Return a run with these accuracies: federated, mean local-only, federated without privacy."""
    metrics = run(study())
    assert metrics.baselines.local_only is not None
    assert metrics.baselines.federated_nonprivate is not None
    baselines = metrics.baselines.model_copy(
        update={
            "local_only": metrics.baselines.local_only.model_copy(update={"accuracy": alone}),
            "federated_nonprivate": metrics.baselines.federated_nonprivate.model_copy(update={"accuracy": open_}),
        }
    )
    pooled = metrics.pooled.model_copy(update={"accuracy": together, "examples": examples})
    return metrics.model_copy(update={"baselines": baselines, "pooled": pooled})


@pytest.mark.parametrize(
    ("together", "alone", "open_", "said"),
    [
        (0.87, 0.80, 0.92, "beat training alone by 7.0 points. Privacy cost 5.0 points."),
        (0.80, 0.87, 0.80, "lost 7.0 points against training alone. Privacy had no cost that this test could tell"),
        (0.85, 0.851, 0.78, "came out level with training alone. The noisy model was even better, by 7.0 points"),
    ],
)
def test_the_verdict_says_who_won_by_how_much(together: float, alone: float, open_: float, said: str) -> None:
    assert said in " ".join(findings.verdict(judged(together, alone, open_))).replace("\u00a0", " ")


def test_the_same_difference_on_few_records_is_called_level() -> None:
    many = " ".join(findings.verdict(judged(0.87, 0.80, 0.87, examples=2000)))
    few = " ".join(findings.verdict(judged(0.87, 0.80, 0.87, examples=50)))
    assert "beat" in many
    assert "came out level" in few


def test_without_baselines_the_verdict_claims_no_comparison() -> None:
    said = " ".join(findings.verdict(run(study(), baselines=False)) + findings.evidence(run(study(), baselines=False)))
    assert "87.3%" in said
    assert not {"beat", "lost", "level", "cost"} & set(said.replace(".", " ").split())


def test_arms_go_from_the_least_to_the_most_and_only_those_asked_for() -> None:
    full = [arm.kind for arm in findings.arms(run(study()))]
    assert full == ["majority", "local", "federated", "nonprivate", "centralised"]
    assert [arm.kind for arm in findings.arms(run(study(), baselines=False))] == ["federated"]


def test_a_mean_over_sites_gets_no_binomial_interval() -> None:
    intervals = {arm.kind: arm.interval for arm in findings.arms(run(study()))}
    assert intervals["local"] is None
    assert intervals["federated"] == wilson(0.8731, 1812)


def test_sites_stand_in_order_of_their_gain() -> None:
    gains = [findings.site_gain(site) or 0.0 for site in findings.sites_by_gain(run(study(12)))]
    assert gains == sorted(gains, reverse=True)
    assert gains[-1] < 0 < gains[0]


def test_the_evidence_names_the_site_that_loses_most() -> None:
    said = findings.evidence(run(study(4)))[-1]
    assert "3 of 4 sites and leaves 1 worse off" in said
    assert "site-003" in said


def test_a_subgroup_is_pooled_over_sites_by_records_not_by_sites() -> None:
    metrics = run(study())
    found = {group.value: group for group in findings.subgroups(metrics)["age"]}["under 18"]
    groups = [site.subgroups["age"]["under 18"] for site in metrics.sites]
    assert found.examples == sum(group.examples for group in groups)
    assert found.accuracy == pytest.approx(
        sum(group.accuracy * group.examples for group in groups) / sum(group.examples for group in groups)
    )
    assert found.worst_accuracy == min(group.accuracy for group in groups)


def test_small_subgroups_are_marked() -> None:
    few = {group.value: group.few for group in findings.subgroups(run(study()))["interpreter"]}
    assert few == {"yes": True, "no": False}


def test_wilson_matches_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, 857-872, table I, method 3: 81/263, 15/148, 0/20, 1/29.
    for right, of, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right / of, of) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1 / 29, 29) == pytest.approx((0.0061, 0.1718), abs=5e-5)


@given(count=st.integers(0, 10_000), share=st.floats(0, 1))
def test_an_interval_holds_its_value_and_stays_a_fraction(count: int, share: float) -> None:
    low, high = wilson(share, count)
    assert 0.0 <= low <= share <= high <= 1.0


@given(first=st.floats(0, 1), second=st.floats(0, 1), count=st.integers(1, 10_000))
def test_a_difference_is_as_clear_backwards(first: float, second: float, count: int) -> None:
    assert difference(first, second, count).clear == difference(second, first, count).clear


@given(value=st.floats(0, 1000))
def test_epsilon_is_never_printed_smaller_than_it_is(value: float) -> None:
    assert value - 1e-6 <= float(epsilon_text(value)) <= value + 0.01 + 1e-9


@pytest.mark.parametrize(("value", "text"), [(8.0, "8"), (7.9931, "8"), (7.981, "7.99"), (0.5, "0.5"), (10.0, "10")])
def test_epsilon_is_printed_short(value: float, text: str) -> None:
    assert epsilon_text(value) == text


def test_what_epsilon_allows_a_guess() -> None:
    assert guess_at_best(0.0, 0.0) == 0.5
    assert guess_at_best(1.0, 0.0) == pytest.approx(0.7311, abs=1e-4)
    assert guess_at_best(math.log(3), 0.2) == pytest.approx(0.8)
    assert guess_at_best(2000.0, 1e-5) <= 1.0


@pytest.mark.parametrize(("value", "text"), [(0.0123, "+1.2"), (-0.0123, "−1.2"), (-0.0001, "±0.0"), (0.0, "±0.0")])
def test_signs_are_printed_with_a_true_minus(value: float, text: str) -> None:
    assert signed(value) == text


def test_one_point_is_singular() -> None:
    assert points(0.01) == "1.0\u00a0point"
    assert points(0.02) == "2.0\u00a0points"
