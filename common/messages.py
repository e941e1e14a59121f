"""What travels: signed envelopes bound to (study, stage, instance, attempt, sender, recipient).

An envelope carries named parts of bytes (a vector, a protocol message). The signature covers a canonical header that
holds the SHA-256 of each part, so that nothing can be swapped, replayed in another place or spoken in another's name.
Who sent a message is what its signature says, never what the transport says.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Literal

import rfc8785
from pydantic import Field, StringConstraints, ValidationError

from common import errors
from common.errors import ConsiliumError
from common.identity import Domain, Identity, PublicKey, Signature, verify
from common.parts import Digest, Hex32, Name, Part

OPERATOR = "operator"
"""The operator's name as a sender and a recipient; no site may take it (the roster's names are checked)."""
ANYONE = "anyone"
"""The recipient of the one request that is sent before the operator knows which connection is which site."""
MAX_PART_BYTES = 1 << 31
MAX_HEADER_BYTES = 4096


class Stage(StrEnum):
    """Every stage of a study, named as the Flower message type that carries it."""

    IDENTIFY = "query.identify"
    BACKBONE = "query.backbone"
    OFFER = "query.offer"
    AGREED = "query.agreed"
    KEYS = "train.keys"
    PREPARE = "train.prepare"
    ACKNOWLEDGE = "train.acknowledge"
    FIT = "train.fit"
    VIEW = "train.view"
    UNMASK = "train.unmask"
    COUNTS = "evaluate.counts"
    COUNTS_VIEW = "evaluate.view"
    COUNTS_UNMASK = "evaluate.unmask"

    @property
    def is_evaluation(self) -> bool:
        """Whether the stage belongs to an evaluation sum."""
        return self.value.startswith("evaluate.")


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message before it is signed, or after it was verified."""

    study: Digest
    stage: Stage
    instance: int
    attempt: int
    sender: str
    recipient: str
    parts: Mapping[str, bytes]

    def part(self, name: str) -> bytes:
        """Return a part by its name; raises CSL-130 where there is none."""
        try:
            return self.parts[name]
        except KeyError as error:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, f"no part {name!r}") from error


@dataclass(frozen=True, slots=True)
class Sealed:
    """A signed envelope: canonical header, its signature and the parts."""

    header: bytes
    signature: Signature
    parts: Mapping[str, bytes]

    @property
    def size(self) -> int:
        """Bytes of everything in it."""
        return len(self.header) + len(self.signature) + sum(len(part) for part in self.parts.values())


class _PartDigest(Part):
    size: int = Field(ge=0, le=MAX_PART_BYTES)
    sha256: Hex32


class _Header(Part):
    version: Literal[1] = 1
    study: Hex32
    stage: Stage
    instance: int = Field(ge=0, lt=1 << 53)
    attempt: int = Field(ge=0, lt=1 << 53)
    sender: Name
    recipient: Name
    parts: dict[Annotated[str, StringConstraints(pattern=r"^[a-z]{1,16}$")], _PartDigest] = Field(max_length=4)


def seal(envelope: Envelope, identity: Identity) -> Sealed:
    """Sign an envelope; raises CSL-130 if a field is out of range."""
    try:
        header = _Header(
            study=envelope.study,
            stage=envelope.stage,
            instance=envelope.instance,
            attempt=envelope.attempt,
            sender=envelope.sender,
            recipient=envelope.recipient,
            parts={name: _digest_part(part) for name, part in envelope.parts.items()},
        )
    except ValidationError as error:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, f"{error.error_count()} fields are out of range") from error
    canonical = rfc8785.dumps(header.model_dump(mode="json"))
    return Sealed(canonical, identity.sign(Domain.MESSAGE, canonical), dict(envelope.parts))


def peek_sender(sealed: Sealed) -> str:
    """Return who the message claims to be from, so that the right key can be chosen; proves nothing."""
    return _read_header(sealed.header).sender


def peek_study(sealed: Sealed) -> Digest:
    """Return which study the message claims to belong to, so that it can be handed on; proves nothing."""
    return Digest(_read_header(sealed.header).study)


def unseal(sealed: Sealed, key: PublicKey, *, study: Digest, stage: Stage, sender: str, recipient: str) -> Envelope:
    """Verify a message and what it is bound to, and return it.

    Raises CSL-130 if it cannot be read, CSL-121 if the signature does not hold, CSL-131 if it is bound elsewhere or a
    part is not the one that was signed. The caller compares ``instance`` and ``attempt`` with its own state.
    """
    header = _read_header(sealed.header)
    verify(key, Domain.MESSAGE, sealed.header, sealed.signature)
    for name, found, wanted in (
        ("study", header.study, study),
        ("stage", header.stage, stage),
        ("sender", header.sender, sender),
        ("recipient", header.recipient, recipient),
    ):
        if found != wanted:
            raise ConsiliumError(errors.MESSAGE_MISBOUND, f"another {name}")
    if {name: _digest_part(part) for name, part in sealed.parts.items()} != header.parts:
        raise ConsiliumError(errors.MESSAGE_MISBOUND, "a part is not the one that was signed")
    return Envelope(
        Digest(header.study),
        header.stage,
        header.instance,
        header.attempt,
        header.sender,
        header.recipient,
        dict(sealed.parts),
    )


def _read_header(header: bytes) -> _Header:
    if len(header) > MAX_HEADER_BYTES:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, "the header is too long")
    try:
        parsed = _Header.model_validate_json(header)
        canonical = rfc8785.dumps(json.loads(header))
    except (ValueError, RecursionError) as error:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, "the header cannot be read") from error
    if canonical != header:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, "the header is not canonical")
    return parsed


def _digest_part(part: bytes) -> _PartDigest:
    return _PartDigest(size=len(part), sha256=hashlib.sha256(part).hexdigest())
