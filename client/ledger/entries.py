"""What a ledger's chain holds: frozen entries, each with the moment it was written and a salt, as canonical JSON.

Entries are only ever added. The salt keeps the chain's digest, which leaves with every reply, from confirming a guess
about what was written (RULES 14, 18). Times are for people; nothing is decided by them.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import rfc8785
from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, ValidationError, field_serializer

from common import errors
from common.errors import ConsiliumError
from common.messages import Stage
from common.parts import Hex32, Line, Name, Part
from common.privacy.plan import PrivacyPlan
from common.study import TrainingNoise, Unit

MAX_COUNT: Final = (1 << 53) - 1
"""The largest integer that canonical JSON holds."""
LEAST_CAP, MOST_CAP = 1e-6, 1e12
"""Between these an account's epsilon promises something or nothing, and sums and figures of it stay numbers."""
SALT_BYTES = 16
NAME_BYTES = 32
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]


class Begun(Part):
    """The first entry of every chain.

    ledger  drawn at random and kept for good, in the anchor too: by it two ledgers of one site are told apart
    """

    kind: Literal["ledger"] = "ledger"
    ledger: Hex32


class AccountOpened(Part):
    """A patient population named by the hospital, and the most that its patients may ever be charged (RULES 8)."""

    kind: Literal["account"] = "account"
    account: Name
    population: Line
    unit: Unit
    epsilon: float = Field(ge=LEAST_CAP, le=MOST_CAP)
    delta: float = Field(gt=0, lt=1)


class StudyJoined(Part):
    """A study commits all that it may ever spend on an account, whether it is spent or not (RULES 7).

    plan  its ``noise`` is written where it is not Gaussian
    """

    kind: Literal["study"] = "study"
    account: Name
    study: Hex32
    plan: PrivacyPlan
    epsilon: float = Field(ge=0, description="of all charges and evaluation releases together, at the plan's delta")
    accountant: Line

    @field_serializer("plan", mode="wrap")
    def _as_before_there_was_a_choice(
        self, plan: PrivacyPlan, write: SerializerFunctionWrapHandler
    ) -> dict[str, object]:
        """Leave the noise out where it is Gaussian: entries from before there was a choice keep their bytes."""
        written: dict[str, object] = write(plan)
        return {key: value for key, value in written.items() if (key, value) != ("noise", TrainingNoise.GAUSSIAN)}


class Charged(Part):
    """One reply to one request, written down before it is computed."""

    kind: Literal["charge"] = "charge"
    account: Name
    study: Hex32
    stage: Stage
    instance: int = Field(ge=0)
    attempt: int = Field(ge=0)
    input_digest: Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2})*$", max_length=128)]
    cohort: tuple[Name, ...]


class StudyClosed(Part):
    """The study makes no further charge. What it committed stays spent, unless it was never charged at all."""

    kind: Literal["closed"] = "closed"
    account: Name
    study: Hex32


class FoundBehind(Part):
    """Something that this site signed shows entries that are not here: the ledger was put back from an older copy."""

    kind: Literal["behind"] = "behind"
    era: Count
    number: Count
    head: Hex32


class Exhausted(Part):
    """The worst case: every charge of the study was made; without a study, all of the account was spent."""

    kind: Literal["exhausted"] = "exhausted"
    account: Name
    study: Hex32 | None = None


class Covered(Part):
    """Entries that are not here and that a recovery answers for: whatever they spent, it has charged.

    era     they were written in
    above   the last entry of that era that is here; 0 where all of every account was charged, so that no entry matters
    number  the last of them that anything showed
    head    the digest with which the chain ended there, where it is known
    """

    era: Count
    above: Count
    number: Count
    head: Hex32 | None = None


class Recovered(Part):
    """What was lost is charged in full, and a new era of the chain begins.

    era      which begins
    covered  what it answers for, and nothing else: what was lost may have been written on several branches
    """

    kind: Literal["recovered"] = "recovered"
    reason: Line
    era: int = Field(ge=1, le=MAX_COUNT)
    covered: tuple[Covered, ...]


Entry = Begun | AccountOpened | StudyJoined | Charged | StudyClosed | FoundBehind | Exhausted | Recovered


class Record(Part):
    """An entry as it stands in the chain."""

    at: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]
    salt: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
    entry: Annotated[Entry, Field(discriminator="kind")]

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @classmethod
    def from_canonical(cls, body: bytes) -> Record:
        """Read what :meth:`canonical` wrote; raises CSL-211."""
        try:
            record = cls.model_validate_json(body)
        except (ValidationError, RecursionError) as error:
            raise ConsiliumError(errors.LEDGER_DAMAGED, "an entry cannot be read") from error
        if record.canonical() != body:
            raise ConsiliumError(errors.LEDGER_DAMAGED, "an entry is not in canonical form")
        return record
