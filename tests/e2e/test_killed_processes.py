"""Hospitals and the operator are killed at every moment of a study, alone and together, and the study comes to its end.

A death is SIGKILL by the process itself at a named moment (:mod:`tests.e2e.deaths`), so that each is met for certain.
"""

from __future__ import annotations

import signal
from functools import partial
from pathlib import Path

import pytest

from common.messages import Stage
from server.journal import State
from tests.e2e.deaths import held, let_go, operator_dies, operator_waits, site_dies, site_dies_in_every_sum
from tests.e2e.network import network, until

OPENING = (Stage.KEYS, Stage.PREPARE, Stage.ACKNOWLEDGE)
SUMMING = (Stage.FIT, Stage.UNMASK, Stage.COUNTS, Stage.COUNTS_UNMASK)
VIEWING = (Stage.VIEW, Stage.COUNTS_VIEW)
"""Asked for only where somebody was lost."""
STEPS = ("asked", "recorded", "answered")
OF_A_SITE = frozenset(
    {f"{stage.value}:{step}" for stage in (*OPENING, Stage.FIT, Stage.UNMASK) for step in STEPS}
    | {f"{Stage.FIT.value}:{step}" for step in ("charged", "masked", "sent")}
    | {f"{Stage.IDENTIFY.value}:asked", f"{Stage.UNMASK.value}:sent", f"{Stage.COUNTS.value}:answered"}
)
OF_AN_OPERATOR = frozenset(
    {f"{stage.value}:{what}" for stage in (Stage.IDENTIFY, *OPENING, *SUMMING) for what in ("asking", "heard")}
    | {"queued", "kept", "ending", "ended", "releasing", "released"}
)
VICTIM = "site-02"


def marks_in(folder: Path) -> Path:
    made = folder / "marks"
    made.mkdir(parents=True)
    return made


def deaths(marks: Path) -> set[str]:
    return {mark.name for mark in marks.iterdir()} - {"last"}


@pytest.mark.slow
def test_a_site_may_die_at_any_moment_and_the_study_ends_with_the_right_sum(tmp_path: Path) -> None:
    marks = marks_in(tmp_path)
    # One death a sum, and a few sums in which the victim is not back yet.
    with network(tmp_path, rounds=3 * len(OF_A_SITE) // 2, dimension=100) as net:
        net.faults[VICTIM] = partial(site_dies, OF_A_SITE, marks)
        net.start()
        net.finish(seconds=600)
        net.end()
        assert deaths(marks) == OF_A_SITE
        assert net.starts[VICTIM] == len(OF_A_SITE) + 1
        net.check_release()


@pytest.mark.slow
def test_two_sites_may_die_in_one_sum_which_is_then_another_attempt_and_another_charge(tmp_path: Path) -> None:
    # With five sites a second loss is one too many.
    moments, rounds = frozenset(f"{Stage.VIEW.value}:{step}" for step in STEPS), 8
    marks, others = marks_in(tmp_path / "one"), marks_in(tmp_path / "other")
    with network(tmp_path, rounds=rounds, dimension=100) as net:
        net.faults[VICTIM] = partial(site_dies, moments, marks)
        net.faults["site-04"] = partial(site_dies_in_every_sum, frozenset({"train.fit:charged"}), others)
        net.start()
        net.finish()
        net.end()
        assert deaths(marks) == moments
        net.check_release()
        attempts = {record.round_index: record.attempt for record in net.rounds()}
        assert sum(attempts.values()) > 0
        # Who was there all the time was charged for every attempt.
        assert len(net.charges("site-00")) >= sum(attempt + 1 for attempt in attempts.values()) + 1


@pytest.mark.slow
def test_an_operator_may_die_at_any_moment_and_goes_on_with_the_very_request(tmp_path: Path) -> None:
    marks = marks_in(tmp_path)
    with network(tmp_path, rounds=3, dimension=100) as net:
        net.faults["operator"] = partial(operator_dies, OF_AN_OPERATOR, marks)
        net.start()
        net.finish(seconds=600)
        net.end()
        assert deaths(marks) == OF_AN_OPERATOR
        net.check_release()
        # Nobody was asked for another attempt: what was charged is what the study needs, and no more.
        assert {record.attempt for record in net.rounds()} == {0}
        assert all(len(net.charges(site)) == 3 + 1 for site in net.sites)


@pytest.mark.slow
def test_an_operator_may_die_while_the_others_agree_on_who_was_lost(tmp_path: Path) -> None:
    moments = frozenset(f"{stage.value}:{what}" for stage in VIEWING for what in ("asking", "heard"))
    marks, others = marks_in(tmp_path / "one"), marks_in(tmp_path / "other")
    with network(tmp_path, rounds=2, dimension=100) as net:
        net.faults["operator"] = partial(operator_dies, moments, marks)
        net.faults[VICTIM] = partial(
            site_dies_in_every_sum, frozenset({"train.fit:charged", "evaluate.counts:charged"}), others
        )
        net.start()
        net.finish()
        net.end()
        assert deaths(marks) == moments
        net.check_release()
        assert {record.attempt for record in net.rounds()} == {0}
        assert all(VICTIM not in record.survivors for record in net.rounds())


@pytest.mark.slow
def test_both_may_die_at_once(tmp_path: Path) -> None:
    marks, moments = (
        marks_in(tmp_path),
        frozenset(
            {
                "train.prepare:answered",
                *(f"train.fit:{what}" for what in ("charged", "masked", "answered")),
                "train.unmask:recorded",
            }
        ),
    )
    with network(tmp_path, rounds=6, dimension=100) as net:
        net.faults[VICTIM] = partial(site_dies, moments, marks)
        net.start()
        net.finish(together=True)
        net.end()
        assert deaths(marks) == moments
        assert net.starts["operator"] == len(moments) + 1
        net.check_release()


@pytest.mark.slow
def test_a_study_that_lost_too_many_ends_by_name_and_goes_on_when_they_are_back(tmp_path: Path) -> None:
    marks, lost = marks_in(tmp_path), ("site-03", "site-04")
    with network(tmp_path, rounds=3, deadline=20.0, dimension=100) as net:
        net.faults["operator"] = partial(operator_waits, frozenset({0}), marks)
        net.start()
        until(lambda: held(marks, 0), "the first round")
        for site in lost:
            net.kill(site)
        let_go(marks, 0)
        until(lambda: net.operator.exitcode is not None, "the operator ends")
        assert net.operator.exitcode == 3
        assert "CSL-602" in net.codes("operator")
        assert net.state() is State.ABORTED
        assert [record.round_index for record in net.rounds()] == [0]
        assert not (net.place("operator") / "state" / "releases").exists()
        net.start("operator", *lost)
        net.finish()
        net.end()
        net.check_release()


@pytest.mark.slow
def test_a_site_that_was_stopped_past_the_deadline_joins_a_later_epoch(tmp_path: Path) -> None:
    marks = marks_in(tmp_path)
    with network(tmp_path, rounds=4, deadline=40.0, dimension=100) as net:
        net.faults["operator"] = partial(operator_waits, frozenset({0, 1}), marks)
        net.start()
        until(lambda: held(marks, 0), "the first round")
        net.signal(VICTIM, signal.SIGSTOP)
        let_go(marks, 0)
        until(lambda: held(marks, 1), "a round without the one that is stopped")
        net.signal(VICTIM, signal.SIGCONT)
        let_go(marks, 1)
        net.finish()
        net.end()
        net.check_release()
        assert [VICTIM in record.survivors for record in net.rounds()][:2] == [True, False]
        assert VICTIM in net.rounds()[-1].survivors
