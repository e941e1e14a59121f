"""A study with the operator's signature and the sites' approvals: what must hold before anything runs.

The operator signs the digest; each site countersigns the same digest under its own name. Simulation studies are
signed in domains of their own, so that a hospital's daemon can never be led to run one (RULES 15).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from common import errors
from common.errors import ConsiliumError
from common.identity import Domain, Identity, PublicKey, Signature, SiteId, parse_public_key, verify
from common.parts import Digest
from common.study import Kind, Study

_SIGNING = {Kind.DEPLOYMENT: Domain.STUDY, Kind.SIMULATION: Domain.STUDY_SIMULATION}
_SIGNATURE_BYTES = 64
_APPROVING = {Kind.DEPLOYMENT: Domain.APPROVAL, Kind.SIMULATION: Domain.APPROVAL_SIMULATION}


@dataclass(frozen=True, slots=True)
class SignedStudy:
    """The canonical bytes and the operator's signature over their digest."""

    canonical: bytes
    signature: Signature

    @property
    def digest(self) -> Digest:
        """The digest that is signed, of whatever the bytes are."""
        return Digest(hashlib.sha256(self.canonical).hexdigest())


@dataclass(frozen=True, slots=True)
class Approval:
    """One site's countersignature of one digest."""

    site: SiteId
    digest: Digest
    signature: Signature


@dataclass(frozen=True, slots=True)
class Agreement:
    """A verified study and the approvals that came with it; made by :func:`verify_agreement` only."""

    study: Study
    digest: Digest
    approvals: tuple[Approval, ...]


def sign(study: Study, operator: Identity) -> SignedStudy:
    """Sign a study as its operator; raises CSL-104 if the study names another operator."""
    if operator.public_key != parse_public_key(study.operator):
        raise ConsiliumError(errors.STUDY_SIGNATURE_WRONG, "the study names another operator")
    return SignedStudy(study.canonical(), operator.sign(_SIGNING[study.kind], study.digest.encode()))


def approve(signed: SignedStudy, site: SiteId, identity: Identity, operator_key: PublicKey) -> Approval:
    """Countersign a study as one of its sites; raises CSL-104, CSL-122 or CSL-121 if the key is not the roster's."""
    study = verify_study(signed, operator_key)
    return countersign(study, study.digest, site, identity)


def countersign(study: Study, digest: Digest, site: SiteId, identity: Identity) -> Approval:
    """Countersign a study that is verified already, under its digest; raises CSL-122, or CSL-121 for another key."""
    if study.member(site).public_key != identity.public_key:
        raise ConsiliumError(errors.SIGNATURE_WRONG, f"{site} holds another key than the roster")
    return Approval(site, digest, identity.sign(_APPROVING[study.kind], _approval_bytes(site, digest)))


def verify_study(signed: SignedStudy, operator_key: PublicKey) -> Study:
    """Read and verify a signed study against the operator key that the reader has pinned.

    Raises CSL-101 to CSL-103 for the bytes, CSL-104 for the signature, CSL-105 if there is none.
    """
    if not signed.signature:
        raise ConsiliumError(errors.STUDY_UNSIGNED)
    study = Study.from_canonical(signed.canonical)
    if parse_public_key(study.operator) != operator_key:
        raise ConsiliumError(errors.STUDY_SIGNATURE_WRONG, "the study names another operator than the one pinned here")
    digest = signed.digest
    try:
        verify(operator_key, _SIGNING[study.kind], digest.encode(), signed.signature)
    except ConsiliumError as error:
        raise ConsiliumError(errors.STUDY_SIGNATURE_WRONG, f"study {digest[:12]}") from error
    return study


def verify_agreement(
    signed: SignedStudy, approvals: tuple[Approval, ...], operator_key: PublicKey, *, now: datetime, kind: Kind
) -> Agreement:
    """Check everything that must hold before a study runs: signature, kind, expiry, and every site's approval.

    Raises, besides the errors of :func:`verify_study`: CSL-108 for a study of another kind, CSL-109 for one that asks
    for other software, CSL-106 when it has expired, CSL-107 naming the first site whose approval is missing or does not
    hold, CSL-122 for a stranger's.
    """
    study = verify_study(signed, operator_key)
    if study.kind is not kind:
        raise ConsiliumError(errors.STUDY_KIND_REFUSED, f"it is a {study.kind.value} study, {kind.value} was asked for")
    study.check_software(version("consilium"))
    study.check_valid_at(now)
    digest = study.digest
    by_site = {approval.site: approval for approval in approvals}
    for stranger in by_site.keys() - {member.site_id for member in study.roster}:
        raise ConsiliumError(errors.IDENTITY_UNKNOWN, stranger)
    for member in study.roster:
        approval = by_site.get(member.site_id)
        if approval is None or approval.digest != digest:
            raise ConsiliumError(errors.STUDY_NOT_APPROVED, member.site)
        check_approval(study, approval)
    return Agreement(study, digest, tuple(by_site[member.site_id] for member in study.roster))


def check_approval(study: Study, approval: Approval) -> None:
    """Raise CSL-107 for an approval that its site did not sign, CSL-122 for a stranger's."""
    key = study.member(approval.site).public_key
    try:
        verify(key, _APPROVING[study.kind], _approval_bytes(approval.site, approval.digest), approval.signature)
    except ConsiliumError as error:
        raise ConsiliumError(errors.STUDY_NOT_APPROVED, f"{approval.site}: its signature does not hold") from error


def dump_approvals(approvals: tuple[Approval, ...]) -> bytes:
    """Return approvals as they travel: 64 bytes each, in order of the roster that they are all of."""
    return b"".join(approval.signature for approval in sorted(approvals, key=lambda approval: approval.site))


def parse_approvals(study: Study, digest: Digest, raw: bytes) -> tuple[Approval, ...]:
    """Read what :func:`dump_approvals` wrote, unverified; raises CSL-130 for another length than the roster's."""
    if len(raw) != _SIGNATURE_BYTES * len(study.roster):
        raise ConsiliumError(errors.MESSAGE_MALFORMED, "an approval is missing")
    return tuple(
        Approval(member.site_id, digest, Signature(raw[at * _SIGNATURE_BYTES : (at + 1) * _SIGNATURE_BYTES]))
        for at, member in enumerate(study.roster)
    )


def write(folder: Path, signed: SignedStudy, approvals: tuple[Approval, ...]) -> None:
    """Write ``study.json`` (the canonical bytes themselves) and ``signatures.json`` beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_bytes(signed.canonical)
    signatures = {
        "operator": signed.signature.hex(),
        "approvals": {approval.site: approval.signature.hex() for approval in approvals},
    }
    (folder / "signatures.json").write_text(json.dumps(signatures, indent=2, sort_keys=True) + "\n")


def read(folder: Path) -> tuple[SignedStudy, tuple[Approval, ...]]:
    """Read what :func:`write` wrote, unverified; raises CSL-101 for files that cannot be read."""
    try:
        canonical = (folder / "study.json").read_bytes()
        signatures = json.loads((folder / "signatures.json").read_text())
        digest = Digest(hashlib.sha256(canonical).hexdigest())
        approvals = tuple(
            Approval(SiteId(site), digest, Signature(bytes.fromhex(signature)))
            for site, signature in signatures["approvals"].items()
        )
        return SignedStudy(canonical, Signature(bytes.fromhex(signatures["operator"]))), approvals
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConsiliumError(errors.STUDY_UNREADABLE, f"{folder}: {type(error).__name__}") from error


def _approval_bytes(site: SiteId, digest: Digest) -> bytes:
    return f"{digest} {site}".encode()
