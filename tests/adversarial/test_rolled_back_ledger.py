"""RULES 18: a site whose ledger and anchor were both put back is stopped by what it signed, through the whole link.

The coordinator hands each site the last head that it signed; a site that does not find it in its chain refuses before
it opens an epoch, and the operator sees a site that is unavailable and no reason.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from client.ledger import MemoryLedger, SqliteLedger
from client.ledger.recovery import inspect, recover
from client.ledger.witness import Witness
from client.site import Site
from common.identity import SiteId
from common.link.records import from_records
from common.messages import Stage
from common.payloads import LEDGER_BYTES, LEDGER_PART
from common.study import Unit
from server.coordinator import Coordinator
from tests.federations import Federation, federation
from tests.studies import NOW

SITE = SiteId("site-000")
CHANGES: dict[str, Any] = {"privacy": {"max_charges": 100, "epsilon": 100.0}, "evaluation": {"releases": 50}}


def seat(made: Federation, ledger: SqliteLedger | MemoryLedger) -> None:
    """Put the site on this ledger, as a start of its process does."""
    made.sites[SITE] = Site(
        made.signed.agreement,
        SITE,
        made.signed.sites[SITE],
        made.workloads[SITE],
        ledger,
        verified=frozenset(made.signed.sites),
        clock=lambda: NOW,
    )


def start(made: Federation, path: Path) -> SqliteLedger:
    ledger = SqliteLedger(path)
    seat(made, ledger)
    return ledger


def again(made: Federation) -> None:
    """Let the operator run the study once more, with what its sites showed it before."""
    witnessed = made.coordinator._witnessed
    made.coordinator = Coordinator(made.signed.agreement, made.signed.operator, made.coordinator.outcome.vector)
    made.coordinator._witnessed = witnessed


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "books"
    folder.mkdir()
    path = folder / "ledger.sqlite"
    with SqliteLedger(path) as ledger:
        ledger.open_account("default", population="p", unit=Unit.RECORD, epsilon=150.0, delta=1e-3)
    return path


def rolled_back(path: Path, copy: Path) -> None:
    """Put everything back: the restored snapshot of a whole machine."""
    shutil.rmtree(path.parent)
    shutil.copytree(copy, path.parent)


def test_a_site_put_back_whole_refuses_to_train_and_says_no_reason(path: Path, tmp_path: Path) -> None:
    made = federation(7, **CHANGES)
    with start(made, path):
        pass
    shutil.copytree(path.parent, tmp_path / "snapshot")
    with start(made, path) as ledger:
        made.run()
        spent = len(ledger.charges(made.signed.study.digest))
    assert spent == 4
    rolled_back(path, tmp_path / "snapshot")
    again(made)
    refusals: list[Message] = []
    with start(made, path) as ledger:
        outcome = made.run(tap=lambda message: refusals.append(message) if message.has_error() else None)
        assert ledger.charges(made.signed.study.digest) == ()
        assert all(SITE not in record.survivors for record in outcome.rounds)
        assert any("CSL-212" in incident for incident in made.sites[SITE].log.incidents)
    assert refusals
    assert all("unavailable" in str(message.error.reason) for message in refusals)
    assert not any("ledger" in str(message.error.reason) for message in refusals)


def test_without_the_operators_witness_the_same_rollback_goes_unnoticed(path: Path, tmp_path: Path) -> None:
    """The test above can fail: what stops the site is the head that it signed, and nothing else."""
    made = federation(7, **CHANGES)
    with start(made, path):
        pass
    shutil.copytree(path.parent, tmp_path / "snapshot")
    with start(made, path):
        made.run()
    rolled_back(path, tmp_path / "snapshot")
    again(made)
    made.coordinator._witnessed = {}
    with start(made, path) as ledger:
        made.run()
        assert len(ledger.charges(made.signed.study.digest)) == 4


def test_after_the_recovery_the_site_takes_part_in_no_study_it_may_have_spent(path: Path, tmp_path: Path) -> None:
    made = federation(7, **CHANGES)
    shutil.copytree(path.parent, tmp_path / "snapshot")
    with start(made, path):
        made.run()
    rolled_back(path, tmp_path / "snapshot")
    again(made)
    with start(made, path):
        made.run()
    recover(path)
    with SqliteLedger(path) as ledger:
        assert ledger.balances()[0].epsilon_remaining == 0.0
    again(made)
    with start(made, path) as ledger:
        outcome = made.run()
        assert all(SITE not in record.survivors for record in outcome.rounds)
        assert ledger.charges(made.signed.study.digest) == ()


def test_an_operator_that_makes_a_head_up_or_swaps_two_sites_heads_stops_nobody_for_good(path: Path) -> None:
    """A refused request costs the operator a reply; the ledger is not marked, and the next honest epoch goes on."""
    made = federation(7, **CHANGES)
    with start(made, path) as ledger:
        made.run()
        head = ledger.head()
        other = made.coordinator._witnessed[SiteId("site-001")]
        for shown in (other, bytes(LEDGER_BYTES), b"short", made.coordinator._witnessed[SITE][:-1] + b"\x00"):
            again(made)
            made.coordinator._witnessed = {SITE: shown}
            made.run()
            assert any("CSL-130" in incident for incident in made.sites[SITE].log.incidents)
        assert ledger.head() == head
        again(made)
        made.coordinator._witnessed = {}
        outcome = made.run()
        assert all(SITE in record.survivors for record in outcome.rounds)


def test_a_head_of_the_sites_trial_ledger_shown_to_its_real_one_is_refused_and_costs_nothing(
    path: Path, tmp_path: Path
) -> None:
    """Two ledgers of one site: an operator that replays what it kept of the first burns no account of the second."""
    made = federation(7, **CHANGES)
    trial = tmp_path / "trial.sqlite"
    with SqliteLedger(trial) as ledger:
        ledger.open_account("default", population="p", unit=Unit.RECORD, epsilon=150.0, delta=1e-3)
    with start(made, trial):
        made.run()
    with start(made, path) as ledger:
        head = ledger.head()
        again(made)
        outcome = made.run()
        assert all(SITE not in record.survivors for record in outcome.rounds)
        assert any("CSL-130" in incident for incident in made.sites[SITE].log.incidents)
        assert ledger.head() == head
        assert ledger.balances()[0].epsilon_remaining > 0.0
    assert inspect(path).reason == ""


def test_a_site_that_was_found_behind_opens_no_epoch_whatever_is_shown_to_it(path: Path, tmp_path: Path) -> None:
    """Else its answers with and without an old head would tell the operator the reason (RULES 14)."""
    made = federation(7, **CHANGES)
    with start(made, path):
        pass
    shutil.copytree(path.parent, tmp_path / "snapshot")
    with start(made, path):
        made.run()
    rolled_back(path, tmp_path / "snapshot")
    kept = made.coordinator._witnessed[SITE]
    with start(made, path) as ledger:
        for shown in (kept, None, Witness(made.signed.sites[SITE], ledger.name, os.urandom).seal(ledger.head())):
            again(made)
            made.coordinator._witnessed = {} if shown is None else {SITE: shown}
            answered: list[str] = []
            made.run(tap=lambda reply, seen=answered: note(reply, seen))  # type: ignore[misc]
            assert Stage.IDENTIFY.value in answered
            assert Stage.KEYS.value not in answered


def note(reply: Message, seen: list[str]) -> None:
    """Remember which stages the site answered."""
    if not reply.has_error() and b'"sender":"site-000"' in from_records(reply.content).header:
        seen.append(reply.metadata.message_type)


def test_every_reply_carries_where_the_ledger_ends_and_nothing_that_counts(path: Path) -> None:
    made = federation(7, **CHANGES)
    replies: list[Message] = []
    with start(made, path) as ledger:
        witness = Witness(made.signed.sites[SITE], ledger.name, os.urandom)
        made.run(tap=replies.append)
        heads = dict(ledger._numbers)
    seen, parts = set(), list[bytes]()
    for message in replies:
        sealed = from_records(message.content)
        part = sealed.parts[LEDGER_PART]
        assert len(part) == LEDGER_BYTES
        parts.append(part)
        if b'"sender":"site-000"' in sealed.header:
            head = witness.open(part)
            assert heads[head.digest] == head.number
            seen.add(head)
            assert not any(bytes.fromhex(digest)[:4] in part for digest in heads)
            assert not any(number.to_bytes(8, "big") in part for number in heads.values())
    stages = {message.metadata.message_type for message in replies}
    assert {stage.value for stage in (Stage.IDENTIFY, Stage.KEYS, Stage.FIT, Stage.COUNTS)} <= stages
    assert len(seen) == 1 + 4
    # No reply's part shares its nonce or its first sealed bytes with another's, of this site or of any other.
    assert len({part[:12] for part in parts}) == len({part[12:24] for part in parts}) == len(parts)
