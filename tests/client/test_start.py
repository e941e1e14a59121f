"""A study that cannot start at a site takes nothing from its budget: it is joined after everything was checked."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from client.ledger import MemoryLedger
from client.site import Site
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.grid import MOST_DIMENSION
from common.study import Unit
from tests.federations import KnownWorkload
from tests.studies import NOW, Signed, signed_study

SITE = SiteId("site-000")
NAMES = ("site-000", "site-001", "site-002")
LATER = datetime(2028, 1, 1, tzinfo=UTC)


def ledger() -> MemoryLedger:
    made = MemoryLedger()
    made.open_account("default", population="p", unit=Unit.RECORD, epsilon=3.0, delta=1e-4)
    return made


class Wide(KnownWorkload):
    """Says how long its vector is, and never computes one."""

    def __init__(self, dimension: int) -> None:
        super().__init__(np.zeros(0, np.float32), np.zeros(2, np.int64))
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        return self._dimension


def start(
    made: Signed,
    kept: MemoryLedger,
    *,
    dimension: int = 50,
    peers: int = 3,
    holder: SiteId = SITE,
    now: datetime = NOW,
) -> Site:
    """Start the site as a hospital does; ``peers`` is how many of the three others it verified."""
    return Site(
        made.agreement,
        SITE,
        made.sites[holder],
        Wide(dimension),
        kept,
        verified=frozenset(sorted(made.sites)[1 : 1 + peers]),
        clock=lambda: now,
    )


def block(stop: int) -> dict[str, object]:
    return {"blocks": [{"name": "b", "start": 0, "stop": stop, "sites": list(NAMES)}]}


CANNOT: dict[str, tuple[str, Callable[[MemoryLedger], object]]] = {
    "a block ends outside the update": ("CSL-408", lambda kept: start(signed_study(aggregation=block(4096)), kept)),
    "the update could overflow the sum": (
        "CSL-409",
        lambda kept: start(signed_study(70, aggregation={"bits": 8}, neighbourhoods={}), kept),
    ),
    "the discrete step has no room for so many coordinates": (
        "CSL-201",
        lambda kept: start(signed_study(privacy={"noise": "discrete-gaussian"}), kept, dimension=MOST_DIMENSION + 1),
    ),
    "no peer was verified": ("CSL-404", lambda kept: start(signed_study(), kept, peers=0)),
    "the study has expired": ("CSL-106", lambda kept: start(signed_study(), kept, now=LATER)),
    "the key is another site's": ("CSL-122", lambda kept: start(signed_study(), kept, holder=SiteId("site-001"))),
    "it spends more than it states": ("CSL-203", lambda kept: start(signed_study(privacy={"epsilon": 0.5}), kept)),
}


@pytest.mark.parametrize("why", CANNOT)
def test_a_study_that_cannot_start_here_takes_nothing_from_the_budget(why: str) -> None:
    kept, (code, attempt) = ledger(), CANNOT[why]
    head = kept.head()
    with pytest.raises(ConsiliumError, match=code):
        attempt(kept)
    assert kept.head() == head
    assert kept.balances()[0].epsilon_remaining == 3.0


def test_a_study_that_can_start_commits_all_it_may_spend_before_it_answers_anything() -> None:
    kept = ledger()
    made = signed_study(aggregation=block(50))
    start(made, kept)
    (study,) = kept.balances()[0].studies
    assert study.study == made.study.digest
    assert kept.balances()[0].epsilon_remaining == pytest.approx(3.0 - study.epsilon)
