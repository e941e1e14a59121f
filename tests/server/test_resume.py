"""An operator that dies between any two stages: the next process ends the study as if nothing had happened."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import Message
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.link.inprocess import InProcessGrid
from common.messages import Stage
from server.attendance import Deadline
from server.board import Board, Standing
from server.conduct import Conduct
from server.coordinator import Coordinator
from server.progress import Ending, Progress, RoundRecord
from server.witnesses import MemoryWitnesses
from tests.federations import DIMENSION, Federation, federation


class DeathError(Exception):
    """The process is no more."""


@dataclass
class Diary:
    """A study's journal that survives its process, which dies at one call, before it is written or after."""

    dies_at: int = -1
    written: bool = False
    calls: int = 0
    kept: Progress | None = None
    done: list[RoundRecord] = field(default_factory=list)
    ended: Ending | None = None

    def progress(self) -> Progress | None:
        return self.kept

    def rounds(self) -> tuple[RoundRecord, ...]:
        return tuple(self.done)

    def ending(self) -> Ending | None:
        return self.ended

    def keep(self, progress: Progress, done: RoundRecord | None = None) -> None:
        self._die(after=False)
        self.kept = progress
        if done is not None:
            self.done.append(done)
        self._die(after=True)

    def end(self, ending: Ending) -> None:
        self._die(after=False)
        self.ended = ending
        self._die(after=True)

    def _die(self, *, after: bool) -> None:
        if not after:
            self.calls += 1
        if self.calls == self.dies_at and after is self.written:
            self.dies_at = -1
            raise DeathError


def coordinator(made: Federation, diary: Diary, board: Board | None = None) -> Coordinator:
    return Coordinator(
        made.signed.agreement,
        made.signed.operator,
        np.zeros(DIMENSION, dtype=np.float32),
        witnesses=MemoryWitnesses(),
        conduct=Conduct(journal=diary, board=board),
    )


def grid(made: Federation, silent: frozenset[SiteId] = frozenset()) -> InProcessGrid:
    nodes = {made.node(site) for site in silent}
    return InProcessGrid(
        {made.node(name): site.app() for name, site in made.sites.items()},
        lost=lambda message: message.metadata.dst_node_id in nodes,
    )


def lived(diary: Diary, training: dict[str, object] | None = None) -> tuple[NDArray[np.float32], list[int], int]:
    """Run a study in as many processes as it takes; returns its vector, its charges a site, and the processes."""
    made = federation(5, evaluation={"releases": 1}, training=training or {})
    for processes in range(1, 4):
        try:
            outcome = coordinator(made, diary).run(grid(made))
        except DeathError:
            continue
        charges = [len(ledger.charges(made.signed.study.digest)) for ledger in made.ledgers.values()]
        return outcome.vector, charges, processes
    raise AssertionError("the study does not end")


UNDISTURBED = Diary()
VECTOR, CHARGES, _ = lived(UNDISTURBED)


def test_an_undisturbed_study_keeps_each_round_once() -> None:
    assert [done.round_index for done in UNDISTURBED.done] == [0, 1, 2]
    assert UNDISTURBED.ended is not None
    assert UNDISTURBED.calls > 10


@pytest.mark.parametrize("written", [False, True], ids=["before it is written", "after"])
@pytest.mark.parametrize("dies_at", range(1, UNDISTURBED.calls + 1))
def test_a_death_at_any_call_of_the_journal_changes_neither_vector_nor_rounds(dies_at: int, written: bool) -> None:
    diary = Diary(dies_at, written)
    vector, charges, processes = lived(diary)
    assert processes == 2
    # Each site's rounding to the lattice is random, and less than a tenth of what one round moves.
    np.testing.assert_allclose(vector, VECTOR, atol=5e-4)
    assert [done.round_index for done in diary.done] == [0, 1, 2]
    assert [len(done.survivors) for done in diary.done] == [5, 5, 5]
    assert diary.ended is not None
    assert diary.ended.counts is not None
    # Nobody is charged for the operator's death.
    assert charges == CHARGES


def test_what_the_optimiser_remembers_outlives_the_process() -> None:
    """A velocity that was lost would cost the last round most of what the first two add to it."""
    training: dict[str, object] = {"rounds": 3, "server_optimizer": "fedmomentum", "server_momentum": 0.9}
    undisturbed = Diary()
    vector, _, _ = lived(undisturbed, training)
    for dies_at in range(2, undisturbed.calls, 5):
        again, _, processes = lived(Diary(dies_at, written=True), training)
        assert processes == 2
        np.testing.assert_allclose(again, vector, atol=2e-3)
    # Three equal updates: 1 + 1.9 + 2.71 times one of them, where FedAvg moves by three.
    np.testing.assert_allclose(vector, VECTOR * 5.61 / 3.0, atol=2e-3)


def test_a_study_that_has_ended_is_only_read_again() -> None:
    made = federation(5, evaluation={"releases": 1})

    def never(message: Message) -> bool:
        raise AssertionError(message.metadata.message_type)

    again = coordinator(made, UNDISTURBED).run(InProcessGrid({}, lost=never))
    np.testing.assert_array_equal(again.vector, VECTOR)
    assert again.counts is not None


def test_too_few_sites_end_in_a_named_error_and_those_who_come_back_go_on_with_the_same_study() -> None:
    made, diary, board = federation(5), Diary(), Board()
    silent = frozenset(sorted(made.sites)[:3])
    with pytest.raises(ConsiliumError) as raised:
        coordinator(made, diary, board).run(grid(made, silent))
    assert raised.value.fault is errors.QUORUM_LOST
    assert diary.done == []
    outcome = coordinator(made, diary, board).run(grid(made))
    assert [done.round_index for done in outcome.rounds] == [0, 1, 2]
    assert {stood.standing for stood in board.sites().values()} <= {Standing.MASKED, Standing.ONLINE}


class Arriving:
    """Attendance in which one node is not there until it is told to come."""

    def __init__(self, node: int) -> None:
        self.node, self.here, self.waits = node, False, 0

    def connection(self, node: int) -> str | None:
        return "1" if self.here or node != self.node else None

    def wait(self, seconds: float) -> bool:
        del seconds
        self.waits += 1
        return False


def test_a_site_that_comes_late_is_in_the_next_epoch_and_its_update_counts() -> None:
    made = federation(5, privacy={"max_charges": 20, "epsilon": 60.0})
    late = sorted(made.sites)[2]
    attendance = Arriving(made.node(late))
    sizes: list[int] = []

    def on_round(done: RoundRecord, _vector: object) -> None:
        sizes.append(len(done.survivors))
        attendance.here = True

    coordinator_ = Coordinator(
        made.signed.agreement,
        made.signed.operator,
        np.zeros(DIMENSION, dtype=np.float32),
        witnesses=MemoryWitnesses(),
        on_round=on_round,
        conduct=Conduct(attendance=attendance),
    )
    coordinator_.run(grid(made))
    assert sizes == [4, 5, 5]


def test_an_epoch_is_not_opened_with_fewer_than_the_operator_wants_while_others_may_come() -> None:
    made = federation(5, privacy={"max_charges": 20, "epsilon": 60.0})
    attendance = Arriving(made.node(sorted(made.sites)[0]))

    def come(seconds: float) -> bool:
        del seconds
        attendance.waits += 1
        attendance.here = attendance.waits > 2
        return True

    attendance.wait = come  # type: ignore[method-assign]
    opened: list[set[int]] = []

    def tap(message: Message) -> bool:
        if message.metadata.message_type == Stage.KEYS.value:
            opened.append({message.metadata.dst_node_id})
        return False

    conduct = Conduct(attendance=attendance, quorum=5, deadline=Deadline(600.0))
    made_coordinator = Coordinator(
        made.signed.agreement,
        made.signed.operator,
        np.zeros(DIMENSION, dtype=np.float32),
        witnesses=MemoryWitnesses(),
        conduct=conduct,
    )
    apps = {made.node(name): site.app() for name, site in made.sites.items()}
    made_coordinator.run(InProcessGrid(apps, lost=tap))
    assert attendance.waits > 2
    assert len(opened) == 5
