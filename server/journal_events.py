"""What a study's transcript says, as frozen events, and where a study stands after them.

Pure: nothing here reads a clock or touches a disk. :class:`Standing` is what the events add up to and the one place
that says which may follow which. Times are for people; nothing is decided by them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Annotated, Literal, Self

import numpy as np
import rfc8785
from pydantic import Field, StringConstraints, TypeAdapter

from common import errors
from common.agreement import Approval, SignedStudy
from common.chain import START, Link, extend
from common.errors import ConsiliumError
from common.identity import Signature, SiteId
from common.parts import Digest, Hex32, Name, Part
from server.aggregation import Vector
from server.progress import Ending, RoundRecord

Count = Annotated[int, Field(ge=0, le=(1 << 53) - 1)]
"""What the numbers of canonical JSON hold."""
_Hex = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$")]
_Whole = Annotated[str, StringConstraints(pattern=r"^-?\d{1,19}$")]


class State(StrEnum):
    """Where a study is in the operator's queue."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    ABORTED = "aborted"


_MAY_FOLLOW = {
    State.QUEUED: {State.RUNNING, State.ABORTED},
    State.RUNNING: {State.FINISHED, State.ABORTED},
    State.ABORTED: {State.RUNNING},
    State.FINISHED: set[State](),
}


class Event(Part):
    """Base of every event: when it was written."""

    at: str

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes; raises ``ValueError`` for what they cannot hold."""
        return rfc8785.dumps(self.model_dump(mode="json"))


class Countersigned(Part):
    """One site's approval."""

    site: Name
    signature: _Hex


class Enqueued(Event):
    """The first event of every transcript: the agreement, in which a digest stands for the study's canonical bytes."""

    kind: Literal["enqueued"] = "enqueued"
    study: Hex32
    signature: _Hex
    approvals: tuple[Countersigned, ...]

    @classmethod
    def of(cls, digest: Digest, signed: SignedStudy, approvals: Iterable[Approval], at: str) -> Self:
        """Write an agreement down."""
        written = tuple(Countersigned(site=one.site, signature=one.signature.hex()) for one in approvals)
        return cls(at=at, study=digest, signature=signed.signature.hex(), approvals=written)

    def agreement(self, canonical: bytes) -> tuple[SignedStudy, tuple[Approval, ...]]:
        """Return the agreement that was written down."""
        approvals = (
            Approval(SiteId(one.site), Digest(self.study), Signature(bytes.fromhex(one.signature)))
            for one in self.approvals
        )
        return SignedStudy(canonical, Signature(bytes.fromhex(self.signature))), tuple(approvals)


class Entered(Event):
    """The study entered another state."""

    kind: Literal["state"] = "state"
    state: State
    reason: str


class RoundDone(Event):
    """A round is done: all that the operator learnt from it, and the SHA-256 of the vector after it."""

    kind: Literal["round"] = "round"
    round_index: Count
    attempt: Count
    survivors: tuple[Name, ...]
    update_norm: float
    bytes_up: Count
    bytes_down: Count
    vector: Hex32

    @classmethod
    def of(cls, record: RoundRecord, vector: Vector, at: str) -> Self:
        """Write a round down."""
        return cls(
            at=at,
            round_index=record.round_index,
            attempt=record.attempt,
            survivors=record.survivors,
            update_norm=record.update_norm,
            bytes_up=record.bytes_up,
            bytes_down=record.bytes_down,
            vector=hashlib.sha256(vector_bytes(vector)).hexdigest(),
        )

    @property
    def record(self) -> RoundRecord:
        """Return the round that was written down."""
        return RoundRecord(
            self.round_index,
            self.attempt,
            tuple(map(SiteId, self.survivors)),
            self.update_norm,
            self.bytes_up,
            self.bytes_down,
        )


class Ended(Event):
    """How the evaluation ended. Counts are decimals in quotes: the numbers of JSON do not hold every int64."""

    kind: Literal["ended"] = "ended"
    counts: tuple[_Whole, ...] | None
    survivors: tuple[Name, ...]
    instance: Count
    not_evaluated: str

    @classmethod
    def of(cls, ending: Ending, at: str) -> Self:
        """Write an ending down."""
        counts = None if ending.counts is None else tuple(str(int(count)) for count in ending.counts)
        return cls(
            at=at,
            counts=counts,
            survivors=ending.survivors,
            instance=ending.instance,
            not_evaluated=ending.not_evaluated,
        )

    @property
    def ending(self) -> Ending:
        """Return the ending that was written down."""
        counts = None if self.counts is None else np.array([int(count) for count in self.counts], dtype=np.int64)
        return Ending(counts, tuple(map(SiteId, self.survivors)), self.instance, self.not_evaluated)


AnyEvent = Enqueued | Entered | RoundDone | Ended
_READER: TypeAdapter[AnyEvent] = TypeAdapter(Annotated[AnyEvent, Field(discriminator="kind")])


def read_event(link: Link) -> AnyEvent:
    """Read what :meth:`Event.canonical` wrote; raises ``ValueError``."""
    return _READER.validate_json(link.body)


@dataclass(frozen=True, slots=True)
class Standing:
    """What a study's events add up to.

    since   when the state was entered
    reason  why, where something was said
    rounds  how many are done
    ended   whether the evaluation's end was noted
    events  how many there are, and the ``head`` of their chain
    """

    state: State = State.QUEUED
    since: str = ""
    reason: str = ""
    rounds: int = 0
    ended: bool = False
    events: int = START.number
    head: Digest = START.digest

    def after(self, event: AnyEvent) -> tuple[Link, Standing]:
        """Return the link that an event becomes and where the study then stands; raises CSL-636 if it may not follow.

        Rounds follow each other one by one, and the end comes after them, once. Both come about while a study runs.
        """
        if (self.events == 0) != isinstance(event, Enqueued):
            raise ConsiliumError(errors.OPERATOR_ORDER, "a study is enqueued once, before all else")
        link = extend(Link(self.events, b"", self.head), event.canonical())
        then = replace(self, events=link.number, head=link.digest)
        match event:
            case Enqueued():
                return link, replace(then, since=event.at)
            case Entered():
                if event.state not in _MAY_FOLLOW[self.state]:
                    raise ConsiliumError(errors.OPERATOR_ORDER, f"from {self.state} to {event.state}")
                return link, replace(then, state=event.state, since=event.at, reason=event.reason)
            case RoundDone():
                self.check_under_way()
                if event.round_index != self.rounds:
                    raise ConsiliumError(errors.OPERATOR_ORDER, f"round {event.round_index} after {self.rounds} rounds")
                return link, replace(then, rounds=self.rounds + 1)
            case Ended():
                self.check_under_way()
                return link, replace(then, ended=True)

    def check_under_way(self) -> None:
        """Raise CSL-636 unless the study runs and has not ended."""
        if self.state is not State.RUNNING or self.ended:
            raise ConsiliumError(errors.OPERATOR_ORDER, "it has ended" if self.ended else f"it is {self.state}")


def vector_bytes(vector: Vector) -> bytes:
    """Return a vector as little-endian float32; raises ``TypeError`` for one of another type."""
    return vector.astype("<f4", casting="equiv").tobytes()


def vector_from(raw: bytes) -> Vector:
    """Read what :func:`vector_bytes` wrote."""
    return np.frombuffer(raw, dtype="<f4").astype(np.float32)
