"""What must hold each time before this site computes: the study still approved, the hour, the round allowed by hand.

Asked for every request that would be charged, before it is. What it raises stays here; the operator sees a site that is
unavailable (RULES 14). A round is allowed by a file that people write with `consilium-client study allow`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from client.policy import Policy
from common import errors
from common.durable import write_whole
from common.errors import ConsiliumError
from common.messages import Envelope, Stage
from common.parts import Digest, Hex32, Part
from common.payloads import parse_round
from common.study import Study


class Allowed(Part):
    """What people have allowed of one study; rounds are counted from 1, as people do."""

    study: Hex32
    rounds: tuple[Annotated[int, Field(ge=1)], ...] = ()
    evaluation: bool = False


class Gate:
    """Lets a request through, or raises.

    policy     the site's
    state      the site's folder, where what was allowed lies
    is_here    returns whether the study is among those approved: it may be withdrawn while it is open
    """

    def __init__(
        self,
        policy: Policy,
        study: Study,
        state: Path,
        *,
        is_here: Callable[[], bool],
        clock: Callable[[], datetime],
    ) -> None:
        self._policy, self._rounds, self._digest = policy, study.training.rounds, study.digest
        self._state, self._is_here, self._clock = state, is_here, clock

    def __call__(self, stage: Stage, request: Envelope) -> None:
        """Raise CSL-107 once the study was withdrawn, CSL-161 outside the hours, CSL-162 for a round not allowed."""
        if not self._is_here():
            raise ConsiliumError(errors.STUDY_NOT_APPROVED, f"{self._digest[:12]} was withdrawn here")
        local = self._clock().astimezone()
        if not self._policy.trains_at(local):
            raise ConsiliumError(errors.POLICY_HOURS, f"{local:%H:%M} is not within {', '.join(self._policy.hours)}")
        if not self._policy.manual_rounds:
            return
        allowed = allowed_of(self._state, self._digest)
        if stage.is_evaluation:
            if not allowed.evaluation:
                raise ConsiliumError(errors.POLICY_ROUND, f"the evaluation of {self._digest[:12]}")
            return
        number = parse_round(request.part("round"), self._rounds) + 1
        if number not in allowed.rounds:
            raise ConsiliumError(errors.POLICY_ROUND, f"round {number} of {self._digest[:12]}")


def allowed_of(state: Path, digest: Digest) -> Allowed:
    """Return what was allowed of a study; nothing where no file says so, or one that cannot be read."""
    try:
        found = Allowed.model_validate_json(_file(state, digest).read_bytes())
    except (OSError, ValidationError):
        return Allowed(study=digest)
    return found if found.study == digest else Allowed(study=digest)


def allow(state: Path, digest: Digest, *, rounds: Collection[int], evaluation: bool) -> Allowed:
    """Allow rounds, counted from 1, or the evaluation, beside what was allowed before; raises CSL-164."""
    before = allowed_of(state, digest)
    after = Allowed(
        study=digest,
        rounds=tuple(sorted({*before.rounds, *rounds})),
        evaluation=before.evaluation or evaluation,
    )
    path = _file(state, digest)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, after.model_dump_json().encode())
    except OSError as error:
        raise ConsiliumError(errors.STUDY_UNWRITABLE, f"{path}: {error.strerror}") from error
    return after


def _file(state: Path, digest: Digest) -> Path:
    return state / "allowed" / f"{digest[:16]}.json"
