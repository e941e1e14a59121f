"""What a site has spent: training charges and evaluation releases, each made before anything is computed.

A charge is named by everything that makes it a release of its own (RULES 7). Charging the same key again is free,
since a crash before the reply reruns that very key; another key is another charge, and the study's maximum holds for
all of them. This ledger lives in memory and serves simulated sites, whose patients are not real.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import Stage
from common.privacy.plan import PrivacyPlan
from common.study import Digest


@dataclass(frozen=True, slots=True)
class ChargeKey:
    """What is charged: one reply to one request of one study for one patient population."""

    account: str
    study: Digest
    stage: Stage
    instance: int
    attempt: int
    input_digest: bytes
    cohort: tuple[SiteId, ...]


class Ledger(Protocol):
    """Where a site writes down what it spends."""

    def charge(self, key: ChargeKey, plan: PrivacyPlan) -> None:
        """Record a charge before its reply is computed; raises CSL-204 when the study's maximum is reached."""

    def charges(self, study: Digest) -> tuple[ChargeKey, ...]:
        """Return the study's charges in the order they were made."""


class MemoryLedger:
    """A ledger for one process's lifetime, for simulated sites."""

    def __init__(self) -> None:
        self._charges: dict[ChargeKey, None] = {}

    def charge(self, key: ChargeKey, plan: PrivacyPlan) -> None:
        """Record a charge; see :class:`Ledger`."""
        if key in self._charges:
            return
        made = sum(1 for other in self.charges(key.study) if other.stage is key.stage)
        limit = plan.evaluation_releases if key.stage.is_evaluation else plan.max_charges
        if made >= limit:
            raise ConsiliumError(errors.LEDGER_SPENT, f"{made} of {limit} charges of {key.stage.value} were made")
        self._charges[key] = None

    def charges(self, study: Digest) -> tuple[ChargeKey, ...]:
        """Return the study's charges; see :class:`Ledger`."""
        return tuple(key for key in self._charges if key.study == study)
