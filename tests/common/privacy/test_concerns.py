"""What people hear before signing: said where it is so, by the right numbers, and not where it is not."""

from __future__ import annotations

import pytest

from common.privacy.accounting import calibrate_noise
from common.privacy.concerns import Concern, concerns
from common.privacy.groups import epsilon_for_group
from common.privacy.plan import PrivacyPlan, expected_half_width, units_to_test
from common.study import Study
from tests.studies import fields

SOUND = {
    "privacy": {"unit": "patient", "max_records_per_unit": 3, "epsilon": 3.0, "delta": 1e-5, "max_charges": 4},
    "evaluation": {"noise_multiplier": 8.0},
}
"""Changes that leave nothing to say, if four tenths of bands of 1,000 are tested."""


def study(**changes: object) -> Study:
    raw, _, _ = fields(4, **SOUND, roster=roster(1000))
    for name, change in changes.items():
        old = raw[name]
        raw[name] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return Study.from_fields(raw)


def roster(*bands: int) -> list[dict[str, object]]:
    raw, _, _ = fields(4)
    members = raw["roster"]
    assert isinstance(members, list)
    return [{**member, "band": bands[at % len(bands)]} for at, member in enumerate(members)]


def said(agreed: Study, topic: str, tested_share: float = 0.4) -> Concern:
    (found,) = [concern for concern in concerns(agreed, tested_share=tested_share) if concern.topic == topic]
    return found


def plan(agreed: Study) -> PrivacyPlan:
    return PrivacyPlan.for_site(agreed, agreed.roster[0].site_id)


def test_of_a_sound_study_there_is_nothing_to_say() -> None:
    assert concerns(study(), tested_share=0.4) == ()


@pytest.mark.parametrize(
    ("topic", "changes"),
    [
        ("epsilon", {"privacy": {"noise_multiplier": 0.5, "epsilon": 60.0, "sampling_rate": 0.9}}),
        ("delta", {"privacy": {"delta": 1e-3, "epsilon": 2.0}}),
        ("unit", {"privacy": {"unit": "record", "max_records_per_unit": 1}}),
        ("sampling", {"privacy": {"sampling_rate": 1.0, "noise_multiplier": 6.0}}),
        ("charges", {"privacy": {"max_charges": 7, "epsilon": 4.0}}),
        ("charges", {"kind": "deployment", "training": {"rounds": 4}}),
        ("budget", {"privacy": {"epsilon": 8.0}}),
        ("proximal", {"training": {"proximal": 0.1, "steps_per_round": 1}, "privacy": {"epsilon": 3.0}}),
        ("proximal", {"training": {"proximal": 10.0, "steps_per_round": 2, "learning_rate": 0.5}}),
        ("weights", {"roster": roster(4000, 1000, 1000, 1000)}),
        ("releases", {"evaluation": {"releases": 4, "noise_multiplier": 20.0}}),
        ("releases", {"evaluation": {"noise_multiplier": 1.5}, "privacy": {"epsilon": 6.0}}),
        ("evaluation", {"evaluation": {"noise_multiplier": 80.0}}),
    ],
)
def test_what_is_unusual_is_said_alone(topic: str, changes: dict[str, object]) -> None:
    found = concerns(study(**changes), tested_share=0.4)
    assert topic in [concern.topic for concern in found]
    assert {concern.topic for concern in found} <= {topic, "budget"}
    for concern in found:
        assert str(concern).startswith(f"{concern.topic.upper()}: ")
        assert "\n" not in concern.text
        assert concern.text.endswith(".")


@pytest.mark.parametrize(
    ("training", "heard"),
    [
        ({"proximal": 0.1, "steps_per_round": 1}, "does nothing to the one step"),
        ({"proximal": 0.1, "learning_rate": 0.5}, ""),
        ({"proximal": 4.0, "learning_rate": 0.5}, "corrects 2 times"),
        ({"proximal": 4.0, "learning_rate": 0.5, "optimizer": "adam"}, ""),
        ({"proximal": 0.0, "steps_per_round": 1}, ""),
    ],
)
def test_a_pull_that_does_nothing_or_overshoots_is_said(training: dict[str, object], heard: str) -> None:
    found = [concern.text for concern in concerns(study(training=training)) if concern.topic == "proximal"]
    assert len(found) == bool(heard)
    assert heard in "".join(found)


def test_the_width_said_is_the_width_expected_and_the_number_needed_reaches_it() -> None:
    loud = study(evaluation={"noise_multiplier": 80.0})
    text = said(loud, "evaluation").text
    assert f"±{100 * expected_half_width(loud, 0.4):.0f} points" in text
    needed = units_to_test(loud, 0.10)
    assert f"{needed:,} tested" in text
    bands = sum(member.band for member in loud.roster)
    assert expected_half_width(loud, needed / bands) <= 0.10 + 1e-9 < expected_half_width(loud, (needed - 1) / bands)


def test_a_figure_that_will_say_nothing_is_called_so() -> None:
    assert "will say nothing" in said(study(evaluation={"noise_multiplier": 500.0}), "evaluation").text


def test_what_is_tested_decides_whether_noise_drowns_it() -> None:
    assert concerns(study(), tested_share=0.4) == ()
    assert "2 % as many" in said(study(), "evaluation", tested_share=0.02).text


def test_a_study_that_releases_nothing_has_no_figure_to_drown() -> None:
    quiet = study(evaluation={"releases": 0, "noise_multiplier": 500.0})
    assert {concern.topic for concern in concerns(quiet, tested_share=0.01)} <= {"budget"}


def test_the_numbers_said_are_recomputed() -> None:
    record = study(privacy={"unit": "record", "max_records_per_unit": 1})
    assert f"epsilon {epsilon_for_group(plan(record), 10):.3g}" in said(record, "unit").text
    wide = study(privacy={"max_charges": 7, "epsilon": 4.0})
    alone = plan(study(privacy={"max_charges": 3})).epsilon()
    assert f"epsilon {alone:.3g}" in said(wide, "charges").text
    stated = study(privacy={"epsilon": 8.0})
    assert f"spends {plan(stated).epsilon():.3g} at most" in said(stated, "budget").text
    heavy = study(roster=roster(4000, 1000, 1000, 1000))
    assert "site-000 weighs 57 %" in said(heavy, "weights").text


def test_noise_that_is_calibrated_to_its_epsilon_is_no_concern() -> None:
    sigma = calibrate_noise(
        epsilon=3.0,
        delta=1e-5,
        sampling_rate=0.25,
        steps=8,
        evaluation_noise_multiplier=8.0,
        evaluation_releases=1,
    )
    assert concerns(study(privacy={"noise_multiplier": sigma}), tested_share=0.4) == ()
