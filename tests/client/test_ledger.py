"""A charge is named by everything that makes it a release of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from client.ledger import ChargeKey, MemoryLedger
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import Stage
from common.privacy.plan import PrivacyPlan
from tests.studies import signed_study

STUDY = signed_study().study
PLAN = PrivacyPlan.for_site(STUDY, SiteId("site-000"))
KEY = ChargeKey("default", STUDY.digest, Stage.FIT, 1, 0, b"input", (SiteId("site-000"), SiteId("site-001")))


def test_the_same_charge_again_is_free() -> None:
    ledger = MemoryLedger()
    for _ in range(10):
        ledger.charge(KEY, PLAN)
    assert ledger.charges(STUDY.digest) == (KEY,)


@pytest.mark.parametrize(
    "change",
    [{"instance": 2}, {"attempt": 1}, {"input_digest": b"other"}, {"cohort": (SiteId("site-000"),)}, {"account": "b"}],
)
def test_whatever_changes_the_release_is_a_charge_of_its_own(change: dict[str, object]) -> None:
    """A server that claims a crash and asks again for another model or cohort pays for it."""
    ledger = MemoryLedger()
    ledger.charge(KEY, PLAN)
    ledger.charge(replace(KEY, **change), PLAN)  # type: ignore[arg-type]
    assert len(ledger.charges(STUDY.digest)) == 2


def test_no_more_than_the_studys_charges_are_ever_made() -> None:
    ledger = MemoryLedger()
    for instance in range(PLAN.max_charges):
        ledger.charge(replace(KEY, instance=instance), PLAN)
    with pytest.raises(ConsiliumError) as caught:
        ledger.charge(replace(KEY, instance=99), PLAN)
    assert caught.value.code == "CSL-204"
    assert len(ledger.charges(STUDY.digest)) == PLAN.max_charges


def test_evaluation_has_a_limit_of_its_own() -> None:
    ledger = MemoryLedger()
    counts = replace(KEY, stage=Stage.COUNTS)
    ledger.charge(counts, PLAN)
    with pytest.raises(ConsiliumError) as caught:
        ledger.charge(replace(counts, instance=2), PLAN)
    assert caught.value.code == "CSL-204"
    ledger.charge(KEY, PLAN)


def test_another_study_does_not_count() -> None:
    ledger = MemoryLedger()
    other = replace(KEY, study=signed_study(title="Another").study.digest)
    ledger.charge(other, PLAN)
    assert ledger.charges(STUDY.digest) == ()
