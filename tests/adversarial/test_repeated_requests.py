"""RULES 7 from the operator's side: a request that was answered is free, and one that a crash left unanswered is dead.

The site writes down that it opened a sum before it charges for it. So no key is ever used again, and what the operator
asks for instead, whether it claims the crash or saw it, is another charge of those that were signed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.journal import SqliteJournal
from client.ledger import SqliteLedger
from client.site import Site
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import Sealed, Stage
from common.study import Unit
from tests.federations import Federation, KnownWorkload, federation
from tests.studies import NOW

SITE = SiteId("site-000")


class Interrupted(KnownWorkload):
    """Dies in the first computations, after they were charged."""

    deaths = 2

    def train(self, start: NDArray[np.float32], round_index: int) -> NDArray[np.float32]:
        if self.deaths:
            self.deaths -= 1
            raise RuntimeError("power cut")
        return super().train(start, round_index)


class Kept:
    """One site of a federation on a disk, which can be started again; keeps the requests for its updates."""

    def __init__(self, made: Federation, folder: Path) -> None:
        self._made, self._folder = made, folder
        self._workload = Interrupted(made.workloads[SITE].update, made.workloads[SITE].cells)
        self.ledger = SqliteLedger(folder / "ledger.sqlite")
        self.ledger.open_account("default", population="p", unit=Unit.RECORD, epsilon=150.0, delta=1e-3)
        self.requests: list[Sealed] = []
        self._journal: SqliteJournal | None = None

    def start(self) -> Site:
        if self._journal is not None:
            self._journal.close()
        signed = self._made.signed
        self._journal = SqliteJournal(self._folder / "journal.sqlite", signed.study.digest, SITE)
        site = Site(
            signed.agreement,
            SITE,
            signed.sites[SITE],
            self._workload,
            self.ledger,
            verified=frozenset(signed.sites),
            clock=lambda: NOW,
            journal=self._journal,
        )
        plain = site.answer

        def answer(stage: Stage, sealed: Sealed) -> Sealed:
            if stage is Stage.FIT:
                self.requests.append(sealed)
            return plain(stage, sealed)

        site.answer = answer  # type: ignore[method-assign]
        return site

    @property
    def computed(self) -> int:
        return len(self._workload.seen)

    @property
    def charges(self) -> int:
        return len(self.ledger.charges(self._made.signed.study.digest))


def test_a_request_left_unanswered_is_never_run_again_and_what_replaces_it_is_another_charge(tmp_path: Path) -> None:
    made = federation(7, privacy={"max_charges": 100, "epsilon": 100.0}, evaluation={"releases": 0})
    kept = Kept(made, tmp_path)
    made.sites[SITE] = kept.start()
    made.run()
    assert kept.charges == len(kept.requests) == kept.computed + 2
    assert kept.computed > 0
    unanswered = kept.requests[0]
    for site in (made.sites[SITE], kept.start()):
        charges = kept.charges
        with pytest.raises(ConsiliumError):
            site.answer(Stage.FIT, unanswered)
        assert kept.charges == charges


def test_a_request_that_was_answered_is_answered_again_with_the_same_bytes_at_no_charge(tmp_path: Path) -> None:
    made = federation(7, privacy={"max_charges": 100, "epsilon": 100.0}, evaluation={"releases": 0})
    kept = Kept(made, tmp_path)
    made.sites[SITE] = kept.start()
    made.run()
    charges = kept.charges
    first = made.sites[SITE].answer(Stage.FIT, kept.requests[-1])
    again = kept.start().answer(Stage.FIT, kept.requests[-1])
    assert again.parts["secagg"] == first.parts["secagg"]
    assert kept.charges == charges
