"""One plan is the source of sampler, clip, noise, accountant and statement."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant

from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.accounting import EVALUATION_SCALE, EVALUATION_SENSITIVITY
from common.privacy.plan import PrivacyPlan, cell_bound
from common.study import Study
from tests.studies import fields

SITE = SiteId("site-001")


def study(**changes: object) -> Study:
    return Study.from_fields(fields(**changes)[0])  # type: ignore[arg-type]


def test_a_plan_repeats_the_study_and_nothing_else() -> None:
    plan = PrivacyPlan.for_site(study(), SITE)
    assert plan.steps == 2 * 4
    assert plan.divisor == 0.25 * 100
    assert plan.noise_deviation == 1.5
    assert plan.evaluation_deviation == 5.0 * EVALUATION_SENSITIVITY


def test_the_divisor_is_the_public_band_and_never_a_live_count() -> None:
    names = {field.name for field in dataclasses.fields(PrivacyPlan)}
    assert names.isdisjoint({"units", "records", "examples", "count"})


def test_epsilon_covers_every_charge_and_every_release() -> None:
    plan = PrivacyPlan.for_site(study(), SITE)
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    accountant.compose(plan.event())
    assert plan.epsilon() == pytest.approx(accountant.get_epsilon(1e-5), abs=1e-4)
    assert plan.epsilon() >= accountant.get_epsilon(1e-5)
    more = dataclasses.replace(plan, max_charges=5)
    assert more.epsilon() > plan.epsilon()
    assert dataclasses.replace(plan, evaluation_releases=2).epsilon() > plan.epsilon()


def test_a_study_that_spends_more_than_it_states_is_refused() -> None:
    spent = PrivacyPlan.for_site(study(), SITE).epsilon()
    assert PrivacyPlan.for_site(study(privacy={"epsilon": spent}), SITE).epsilon() == spent
    with pytest.raises(ConsiliumError, match="CSL-203"):
        PrivacyPlan.for_site(study(privacy={"epsilon": spent * 0.999}), SITE)


def test_a_site_outside_the_roster_has_no_plan() -> None:
    with pytest.raises(ConsiliumError, match="CSL-122"):
        PrivacyPlan.for_site(study(), SiteId("stranger"))


@pytest.mark.parametrize("change", [{"clip_norm": float("inf")}, {"clip_norm": 0.0}, {"population": 0}])
def test_a_plan_without_a_bound_cannot_be_made(change: dict[str, float]) -> None:
    plan = PrivacyPlan.for_site(study(), SITE)
    with pytest.raises(ConsiliumError, match="CSL-201"):
        dataclasses.replace(plan, **change)  # type: ignore[arg-type]


def test_noise_too_small_for_the_accountant_is_refused() -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        PrivacyPlan.for_site(study(privacy={"noise_multiplier": 0.001}), SITE)


def test_cells_are_bounded_by_public_numbers() -> None:
    small, large = study(), study(evaluation={"noise_multiplier": 50.0})
    assert cell_bound(small) >= 2 * 100 * EVALUATION_SCALE
    assert cell_bound(large) - cell_bound(small) == pytest.approx(12 * 45 * EVALUATION_SENSITIVITY, abs=2)


def test_planning_loads_no_torch() -> None:
    program = "import sys, common.privacy.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
