"""The rules of the ledger hold in memory and on disk alike: what is a charge, what is committed, what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.ledger import Ledger, MemoryLedger
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import Stage
from common.parts import Digest
from common.privacy.plan import PrivacyPlan
from common.study import Unit
from tests.ledgers import ACCOUNT, DELTA, EPSILON, PLAN, STUDY, charge, joined, opened, with_account

OTHER = Digest("0b" * 32)
PATIENTS = replace(PLAN, unit=Unit.PATIENT, max_records_per_unit=3)


@pytest.fixture(params=["memory", "disk"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    if request.param == "memory":
        yield MemoryLedger()
        return
    with opened(tmp_path / "ledger.sqlite") as kept:
        yield kept


def refused(code: str, ledger: Ledger, act: str, *arguments: object) -> None:
    """Whatever is refused is not written down."""
    head = ledger.head()
    with pytest.raises(ConsiliumError) as caught:
        getattr(ledger, act)(*arguments)
    assert caught.value.code == code
    assert ledger.head() == head


def test_the_same_charge_again_is_free(ledger: Ledger) -> None:
    joined(ledger)
    for _ in range(10):
        ledger.charge(charge(1))
    assert ledger.charges(STUDY.digest) == (charge(1),)


@pytest.mark.parametrize(
    "change",
    [{"instance": 2}, {"attempt": 1}, {"input_digest": b"other"}, {"cohort": (SiteId("site-000"),)}],
)
def test_whatever_changes_the_release_is_a_charge_of_its_own(ledger: Ledger, change: dict[str, object]) -> None:
    """A server that claims a crash and asks again for another model or cohort pays for it."""
    joined(ledger)
    ledger.charge(charge(1))
    ledger.charge(replace(charge(1), **change))  # type: ignore[arg-type]
    assert len(ledger.charges(STUDY.digest)) == 2


def test_no_more_than_the_studys_charges_are_ever_made(ledger: Ledger) -> None:
    joined(ledger)
    for instance in range(PLAN.max_charges):
        ledger.charge(charge(instance))
    refused("CSL-204", ledger, "charge", charge(99))
    ledger.charge(charge(0))
    assert len(ledger.charges(STUDY.digest)) == PLAN.max_charges


def test_evaluation_has_a_limit_of_its_own(ledger: Ledger) -> None:
    joined(ledger)
    ledger.charge(charge(1, stage=Stage.COUNTS))
    refused("CSL-204", ledger, "charge", charge(2, stage=Stage.COUNTS))
    ledger.charge(charge(2))


def test_another_study_does_not_count(ledger: Ledger) -> None:
    joined(ledger)
    ledger.join(ACCOUNT, OTHER, PLAN)
    ledger.charge(charge(1, study=OTHER))
    assert ledger.charges(STUDY.digest) == ()


def test_nothing_is_charged_to_a_study_or_an_account_that_is_not_there(ledger: Ledger) -> None:
    refused("CSL-215", ledger, "charge", charge(1))
    with_account(ledger)
    refused("CSL-215", ledger, "charge", charge(1))
    if not isinstance(ledger, MemoryLedger):
        refused("CSL-215", ledger, "join", "neurology", STUDY.digest, PLAN)
    refused("CSL-215", ledger, "close", ACCOUNT, STUDY.digest)


def test_a_study_commits_all_that_it_may_spend_when_it_is_joined_and_once(ledger: Ledger) -> None:
    joined(ledger)
    head = ledger.head()
    ledger.join(ACCOUNT, STUDY.digest, PLAN)
    assert ledger.head() == head
    (balance,) = ledger.balances()
    assert balance.epsilon_committed == PLAN.epsilon()
    assert balance.epsilon_remaining == pytest.approx(EPSILON - PLAN.epsilon())
    assert balance.delta_remaining == pytest.approx(DELTA - PLAN.delta)


def test_across_studies_epsilons_and_deltas_add_and_the_cap_holds(ledger: Ledger) -> None:
    with_account(ledger)
    fits = int(EPSILON // PLAN.epsilon())
    for number in range(fits):
        ledger.join(ACCOUNT, Digest(f"{number:064x}"), PLAN)
    assert ledger.balances()[0].epsilon_committed == pytest.approx(fits * PLAN.epsilon())
    refused("CSL-204", ledger, "join", ACCOUNT, OTHER, PLAN)


def test_the_cap_on_delta_holds_by_itself(ledger: Ledger) -> None:
    ledger.open_account(ACCOUNT, population="p", unit=Unit.RECORD, epsilon=1000.0, delta=1.5 * PLAN.delta)
    ledger.join(ACCOUNT, STUDY.digest, PLAN)
    refused("CSL-204", ledger, "join", ACCOUNT, OTHER, PLAN)


def test_an_account_capped_per_patient_refuses_record_level_studies_and_the_other_way_round(ledger: Ledger) -> None:
    """To remove one record of a patient is not to remove a patient: neither guarantee implies the other's epsilon."""
    with_account(ledger, unit=Unit.PATIENT)
    refused("CSL-215", ledger, "join", ACCOUNT, STUDY.digest, PLAN)
    ledger.join(ACCOUNT, STUDY.digest, PATIENTS)
    with_account(ledger, account="records", unit=Unit.RECORD)
    refused("CSL-215", ledger, "join", "records", STUDY.digest, PATIENTS)


def test_a_population_has_one_account(ledger: Ledger) -> None:
    """Neither new data nor a new study opens a fresh budget: only a person does, under another name."""
    joined(ledger)
    with pytest.raises(ConsiliumError) as caught:
        with_account(ledger)
    assert caught.value.code == "CSL-215"


@pytest.mark.parametrize("name", ["", "a b", "x" * 200, "../etc"])
def test_a_name_that_is_none_is_refused_with_a_code(ledger: Ledger, name: str) -> None:
    with pytest.raises(ConsiliumError) as caught:
        ledger.open_account(name, population="p", unit=Unit.RECORD, epsilon=1.0, delta=1e-5)
    assert caught.value.code == "CSL-215"


def test_a_study_under_another_plan_is_not_the_same_study(ledger: Ledger) -> None:
    joined(ledger)
    refused("CSL-215", ledger, "join", ACCOUNT, STUDY.digest, replace(PLAN, noise_multiplier=9.0))


def test_a_closed_study_is_charged_no_more_and_keeps_what_it_spent(ledger: Ledger) -> None:
    joined(ledger)
    ledger.charge(charge(1))
    ledger.close(ACCOUNT, STUDY.digest)
    ledger.close(ACCOUNT, STUDY.digest)
    refused("CSL-215", ledger, "charge", charge(2))
    refused("CSL-215", ledger, "join", ACCOUNT, STUDY.digest, PLAN)
    assert ledger.balances()[0].epsilon_committed == PLAN.epsilon()


def test_a_study_closed_before_any_charge_gives_back_what_it_committed(ledger: Ledger) -> None:
    joined(ledger)
    ledger.close(ACCOUNT, STUDY.digest)
    assert ledger.balances()[0].epsilon_committed == 0.0


def test_a_study_is_paid_for_by_one_account(ledger: Ledger) -> None:
    """Two would grant it twice the charges that were signed; a study that was closed unused may be moved."""
    joined(ledger)
    with_account(ledger, account="neurology")
    refused("CSL-215", ledger, "join", "neurology", STUDY.digest, PLAN)
    ledger.close(ACCOUNT, STUDY.digest)
    ledger.join("neurology", STUDY.digest, PLAN)
    refused("CSL-215", ledger, "join", ACCOUNT, STUDY.digest, PLAN)
    for instance in range(PLAN.max_charges):
        refused("CSL-215", ledger, "charge", charge(instance))
        ledger.charge(replace(charge(instance), account="neurology"))
    ledger.close("neurology", STUDY.digest)
    with_account(ledger, account="oncology")
    refused("CSL-215", ledger, "join", "oncology", STUDY.digest, PLAN)
    assert len(ledger.charges(STUDY.digest)) == PLAN.max_charges


def test_a_study_that_costs_no_epsilon_is_joined_and_pays_with_its_delta(ledger: Ledger) -> None:
    """With so much noise that delta covers everything the accountant finds an epsilon of exactly 0."""
    plan = replace(
        PLAN, noise_multiplier=5000.0, sampling_rate=1e-3, max_charges=4, evaluation_releases=0, delta=DELTA / 2
    )
    assert plan.epsilon() == 0.0
    with_account(ledger)
    for study in (STUDY.digest, OTHER):
        ledger.join(ACCOUNT, study, plan)
    assert ledger.balances()[0].epsilon_remaining == EPSILON
    refused("CSL-204", ledger, "join", ACCOUNT, Digest("0c" * 32), plan)
    MemoryLedger().join("simulated", STUDY.digest, plan)


@pytest.mark.parametrize("epsilon", [0.0, -1.0, 1e-320, 1e308, math.inf, math.nan])
def test_a_cap_that_no_epsilon_can_be_compared_with_is_refused(ledger: Ledger, epsilon: float) -> None:
    with pytest.raises(ConsiliumError) as caught:
        ledger.open_account(ACCOUNT, population="p", unit=Unit.RECORD, epsilon=epsilon, delta=1e-5)
    assert caught.value.code == "CSL-215"


@given(noises=st.lists(st.floats(1.0, 20.0), min_size=1, max_size=12))
@settings(max_examples=30, deadline=None)
def test_no_sequence_of_studies_commits_more_than_the_cap(noises: list[float]) -> None:
    ledger = MemoryLedger()
    with_account(ledger)
    accepted: list[PrivacyPlan] = []
    for number, noise in enumerate(noises):
        plan = replace(PLAN, noise_multiplier=round(noise, 1))
        try:
            ledger.join(ACCOUNT, Digest(f"{number:064x}"), plan)
        except ConsiliumError:
            assert sum(one.epsilon() for one in accepted) + plan.epsilon() > EPSILON or len(accepted) >= 10
        else:
            accepted.append(plan)
    assert sum(plan.epsilon() for plan in accepted) <= EPSILON
    assert sum(plan.delta for plan in accepted) <= DELTA * (1 + 1e-12)
