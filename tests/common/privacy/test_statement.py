"""The statement says what the plan says, and never less than what a hospital must know."""

from __future__ import annotations

import pytest

from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.accounting import accountant_version
from common.privacy.groups import epsilon_for_group
from common.privacy.plan import PrivacyPlan
from common.privacy.statement import NEIGHBOUR, expected_half_width, statement
from common.study import Study, Unit
from tests.studies import fields


def study(**changes: object) -> Study:
    return Study.from_fields(fields(**changes)[0])  # type: ignore[arg-type]


def test_every_number_is_the_plans() -> None:
    agreed = study()
    plan = PrivacyPlan.for_site(agreed, SiteId("site-002"))
    text = statement(agreed, SiteId("site-002"))
    for said in (
        agreed.digest,
        f"| epsilon recomputed here | {plan.epsilon():.4f} |",
        f"| delta | {plan.delta:g} |",
        f"rate {plan.sampling_rate:g}",
        f"{plan.noise_multiplier:g} times the clip norm",
        f"| steps charged | {plan.steps},",
        accountant_version(),
    ):
        assert said in text


@pytest.mark.parametrize("unit", list(Unit))
def test_unit_and_neighbour_relation_stand_where_epsilon_stands(unit: Unit) -> None:
    text = statement(study(privacy={"unit": unit.value, "max_records_per_unit": 3 if unit is Unit.PATIENT else 1}))
    assert NEIGHBOUR[unit] in text
    assert f"| unit of privacy | {unit.value} |" in text


def test_a_record_level_study_says_what_it_means_for_a_person_with_many_records() -> None:
    agreed = study()
    plan, text = PrivacyPlan.for_site(agreed, SiteId("site-000")), statement(agreed)
    for records in (1, 2, 10):
        row = next(line for line in text.splitlines() if line.startswith(f"| {records} |"))
        assert float(row.split("|")[2].split()[0]) >= epsilon_for_group(plan, records)
    assert "no protection to speak of" in text
    patients = statement(study(privacy={"unit": "patient", "max_records_per_unit": 3}))
    assert "records of one person" not in patients


def test_a_simulation_is_said_to_be_one() -> None:
    assert "simulation study" in statement(study())
    assert "simulation study" not in statement(study(kind="deployment"))


@pytest.mark.parametrize(
    "topic", ["compose", "other studies", "Mironov", "how long it takes", "snapshot", "outside this"]
)
def test_residual_leaks_are_stated(topic: str) -> None:
    assert topic.lower() in statement(study(kind="deployment")).lower()


def test_a_study_that_spends_more_than_it_states_has_no_statement() -> None:
    with pytest.raises(ConsiliumError, match="CSL-203"):
        statement(study(privacy={"epsilon": 0.5}))


def test_noise_that_drowns_the_evaluation_is_foreseen() -> None:
    assert expected_half_width(study()) > 0.3
    assert expected_half_width(study(evaluation={"noise_multiplier": 0.5})) < 0.1
    assert expected_half_width(study(evaluation={"noise_multiplier": 500.0})) == 1.0
