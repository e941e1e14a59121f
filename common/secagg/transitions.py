"""Every legal order of messages, for both sides. What is not in these tables is refused (CSL-402)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from common import errors
from common.errors import ConsiliumError


class Phase(Enum):
    """What the server is waiting for."""

    CLOSED = "closed"
    HELLO = "hello"
    PREPARE = "prepare"
    ACKNOWLEDGE = "acknowledge"
    READY = "ready"
    INPUT = "input"
    VIEW = "view"
    UNMASK = "unmask"
    DONE = "done"


class State(Enum):
    """What a site has done."""

    IDLE = "idle"
    GREETED = "greeted"
    PREPARED = "prepared"
    READY = "ready"
    OPENED = "opened"
    MASKED = "masked"
    VIEWED = "viewed"
    SPENT = "spent"


class Step(Enum):
    """What a site is asked to do."""

    HELLO = "hello"
    PREPARE = "prepare"
    ACKNOWLEDGE = "acknowledge"
    OPEN = "open"
    MASK = "mask"
    VIEW = "view"
    UNMASK_ALL = "unmask the whole cohort"
    UNMASK_VIEW = "unmask a signed view"


SITE: Mapping[tuple[State, Step], State] = {
    **{(state, Step.HELLO): State.GREETED for state in State},
    (State.GREETED, Step.PREPARE): State.PREPARED,
    (State.PREPARED, Step.ACKNOWLEDGE): State.READY,
    (State.READY, Step.OPEN): State.OPENED,
    (State.OPENED, Step.MASK): State.MASKED,
    (State.MASKED, Step.VIEW): State.VIEWED,
    (State.MASKED, Step.UNMASK_ALL): State.SPENT,
    (State.VIEWED, Step.UNMASK_VIEW): State.SPENT,
    (State.SPENT, Step.ACKNOWLEDGE): State.READY,
}
"""A new hello is legal at any time: it forgets every secret of the epoch before. Nothing else leads back."""

SERVER: Mapping[Phase, frozenset[Phase]] = {
    Phase.CLOSED: frozenset({Phase.HELLO}),
    Phase.HELLO: frozenset({Phase.PREPARE}),
    Phase.PREPARE: frozenset({Phase.ACKNOWLEDGE}),
    Phase.ACKNOWLEDGE: frozenset({Phase.READY}),
    Phase.READY: frozenset({Phase.INPUT}),
    Phase.INPUT: frozenset({Phase.VIEW, Phase.UNMASK}),
    Phase.VIEW: frozenset({Phase.UNMASK}),
    Phase.UNMASK: frozenset({Phase.READY, Phase.DONE}),
    Phase.DONE: frozenset(),
}
"""READY and DONE hold a result; from DONE a new epoch is needed, because a site was lost."""


def after(state: State, step: Step) -> State:
    """Return the state after a step; raises CSL-402 where the step is not legal."""
    try:
        return SITE[state, step]
    except KeyError as error:
        raise ConsiliumError(errors.SECAGG_ILLEGAL, f"{step.value} while {state.value}") from error
