"""Studies that the operator offers: kept here for people to review, and answered with an approval once one was given.

An offer changes nothing: it is a file to be read. Only what lies approved in the studies folder, under every site's
signature, is ever run, and it gets there by this site's own approval alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from client.egress import Egress, EgressEntry
from client.ledger import Ledger
from client.ledger.witness import Witness
from client.shelf import read_approval
from common import agreement as agreements
from common import errors
from common.agreement import Approval, SignedStudy, check_approval, parse_approvals, verify_agreement, verify_study
from common.durable import folder_whole
from common.enrolment import written
from common.errors import ConsiliumError
from common.identity import Identity, PublicKey, Signature, SiteId
from common.logs import log
from common.messages import OPERATOR, Envelope, Sealed, Stage, peek_study, unseal
from common.parts import Digest
from common.payloads import APPROVAL_PART, APPROVALS_PART, SIGNATURE_PART, STUDY_PART
from common.study import Kind, Study

STAGES = (Stage.OFFER, Stage.AGREED)
_log = log("consilium.offers")
_MOST_OFFERS = 100
_MOST_BYTES = 4 << 20


class Offers:
    """One hospital's offers.

    operator  the key that is pinned here
    offers    folder with one folder a study that was offered
    studies   folder with one folder a study that every site has approved
    kind      of the studies that are looked at
    """

    def __init__(
        self,
        site: SiteId,
        identity: Identity,
        ledger: Ledger,
        operator: PublicKey,
        offers: Path,
        studies: Path,
        *,
        record: Callable[[EgressEntry], None],
        kind: Kind = Kind.DEPLOYMENT,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._site, self._identity, self._operator = site, identity, operator
        self._offers, self._studies, self._record = offers, studies, record
        self._kind, self._clock = kind, clock
        witness = Witness(identity, ledger.name, os.urandom)
        self._witness = lambda: witness.seal(ledger.head())

    def answer(self, stage: Stage, sealed: Sealed) -> Sealed:
        """Answer one request; raises a coded error, and lets nothing out, if anything is wrong with it."""
        digest = peek_study(sealed)
        request = unseal(sealed, self._operator, study=digest, stage=stage, sender=OPERATOR, recipient=self._site)
        signed = SignedStudy(request.part(STUDY_PART), Signature(request.part(SIGNATURE_PART)))
        study = self._checked(signed, digest)
        if stage is Stage.OFFER:
            parts = {APPROVAL_PART: self._offered(signed, study, digest)}
        else:
            self._agreed(request, signed, study, digest)
            parts = {}
        egress = Egress(
            study, self._site, self._identity, dimension=0, cells=0, witness=self._witness, write=self._record
        )
        return egress.release(request, parts)

    def _checked(self, signed: SignedStudy, digest: Digest) -> Study:
        if len(signed.canonical) > _MOST_BYTES:
            raise ConsiliumError(errors.STUDY_INVALID, "it is too long")
        study = verify_study(signed, self._operator)
        if study.digest != digest or study.kind is not self._kind:
            raise ConsiliumError(errors.STUDY_KIND_REFUSED, f"study {digest[:12]}")
        if study.member(self._site).public_key != self._identity.public_key:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, f"{self._site} holds another key than the roster")
        study.check_valid_at(self._clock())
        return study

    def _offered(self, signed: SignedStudy, study: Study, digest: Digest) -> bytes:
        """Keep a study for review; returns this site's approval, empty before it was given."""
        folder = self._offers / digest[:16]
        if not folder.is_dir():
            if self._offers.is_dir() and sum(1 for _ in self._offers.iterdir()) >= _MOST_OFFERS:
                raise ConsiliumError(errors.STUDY_INVALID, f"{_MOST_OFFERS} offers wait for review already")
            _put(folder, signed, ())
            _log.info("study offered", study=digest[:12], title=study.title)
        approval = read_approval(folder, self._site, digest)
        if approval is None:
            return b""
        check_approval(study, approval)
        return approval.signature

    def _agreed(self, request: Envelope, signed: SignedStudy, study: Study, digest: Digest) -> None:
        """Put a study that all have approved where it is run; this site's own approval must be its own."""
        folder = self._studies / digest[:16]
        if folder.is_dir():
            return
        approvals = parse_approvals(study, digest, request.part(APPROVALS_PART))
        verify_agreement(signed, approvals, self._operator, now=self._clock(), kind=self._kind)
        if read_approval(self._offers / digest[:16], self._site, digest) is None:
            raise ConsiliumError(errors.STUDY_NOT_APPROVED, f"{self._site}: not any longer")
        _put(folder, signed, approvals)
        _log.info("study agreed", study=digest[:12], title=study.title)


def _put(folder: Path, signed: SignedStudy, approvals: tuple[Approval, ...]) -> None:
    """Make a study's folder, whole or not at all."""
    with written(folder), folder_whole(folder) as made:
        agreements.write(made, signed, approvals)
