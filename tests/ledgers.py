"""A study, its plan and its charges, for tests of ledgers."""

from __future__ import annotations

from pathlib import Path

from client.ledger import ChargeKey, Ledger, SqliteLedger
from common.identity import SiteId
from common.messages import Stage
from common.parts import Digest
from common.privacy.plan import PrivacyPlan
from common.study import Unit
from tests.studies import signed_study

SIGNED = signed_study()
STUDY = SIGNED.study
SITE = SiteId("site-000")
PLAN = PrivacyPlan.for_site(STUDY, SITE)
ACCOUNT = "cardiology"
EPSILON, DELTA = 10.0, 1e-4


def opened(path: Path, anchor: Path | None = None) -> SqliteLedger:
    """Open a ledger's file."""
    return SqliteLedger(path, anchor)


def with_account(ledger: Ledger, *, account: str = ACCOUNT, unit: Unit = Unit.RECORD) -> None:
    """Open an account that has room for three of these studies."""
    ledger.open_account(
        account, population="patients of cardiology since 2015", unit=unit, epsilon=EPSILON, delta=DELTA
    )


def joined(ledger: Ledger) -> None:
    """Open the account and let it pay for the study."""
    with_account(ledger)
    ledger.join(ACCOUNT, STUDY.digest, PLAN)


def charge(instance: int, *, stage: Stage = Stage.FIT, study: Digest = STUDY.digest, attempt: int = 0) -> ChargeKey:
    """Return the key of a charge."""
    return ChargeKey(ACCOUNT, study, stage, instance, attempt, b"input", (SITE, SiteId("site-001")))
