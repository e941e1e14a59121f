"""The single door of a site: every byte that leaves passes :meth:`Egress.release`.

It checks a reply against the study (which parts may leave at this stage, and how large they can be), signs it, and
writes down what left, to whom, for which instance and under which guarantee. What is not listed here cannot leave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common import errors
from common.chunks import NEED, NEED_BYTES
from common.errors import ConsiliumError
from common.identity import Identity, SiteId
from common.messages import OPERATOR, Envelope, Sealed, Stage, seal
from common.parts import Digest
from common.payloads import APPROVAL_PART, LEDGER_BYTES, LEDGER_PART, SIGNATURE_BYTES
from common.study import Study

NONCE_BYTES = 32
_PER_PEER_BYTES = 1024
"""Upper bound of the protocol's keys, shares, signatures and framing for one peer."""


@dataclass(frozen=True, slots=True)
class EgressEntry:
    """One thing that left."""

    number: int
    study: Digest
    recipient: str
    stage: Stage
    instance: int
    attempt: int
    part_bytes: Mapping[str, int]
    total_bytes: int
    sha256: str
    guarantee: str


_GUARANTEES: Mapping[Stage, str] = {
    Stage.IDENTIFY: "proof of identity; which part of the public backbone is still missing, if any is",
    Stage.BACKBONE: "which part of the public backbone is still missing, if any is",
    Stage.OFFER: "this site's countersignature of a study, if it was given",
    Stage.AGREED: "that a study has arrived",
    Stage.KEYS: "public key of this epoch",
    Stage.PREPARE: "public mask key; shares encrypted to peers",
    Stage.ACKNOWLEDGE: "hashes of what peers sent",
    Stage.FIT: "differentially private update, masked: only the sum over the cohort can be read",
    Stage.VIEW: "signature over the surviving sites",
    Stage.UNMASK: "shares that open the sum and nothing else",
    Stage.COUNTS: "differentially private counts, masked: only the sum over the cohort can be read",
    Stage.COUNTS_VIEW: "signature over the surviving sites",
    Stage.COUNTS_UNMASK: "shares that open the sum and nothing else",
}


class Egress:
    """The door of one site for one study.

    dimension   length of the study's vector
    cells       number of evaluation counts
    witness     returns where the ledger ends, sealed for the operator to keep
    write       called with each entry before its bytes are handed over
    """

    def __init__(
        self,
        study: Study,
        site: SiteId,
        identity: Identity,
        *,
        dimension: int,
        cells: int,
        witness: Callable[[], bytes],
        write: Callable[[EgressEntry], None],
    ) -> None:
        self._identity = identity
        self._site = site
        self._witness, self._write = witness, write
        self._number = 0
        overhead = _PER_PEER_BYTES * (len(study.roster) + 4)
        # The rotation pads to a power of two at most, and a masked coordinate takes at most eight bytes.
        padded = 1 << max(0, dimension - 1).bit_length()
        packed = padded * study.aggregation.bits // 8
        self._limits: dict[Stage, dict[str, int]] = {
            stage: {"secagg": overhead + (packed if stage is Stage.FIT else 8 * cells if stage is Stage.COUNTS else 0)}
            for stage in Stage
            if stage not in (Stage.IDENTIFY, Stage.BACKBONE, Stage.OFFER, Stage.AGREED)
        }
        self._limits[Stage.IDENTIFY] = {"nonce": NONCE_BYTES, NEED: NEED_BYTES}
        self._limits[Stage.BACKBONE] = {NEED: NEED_BYTES}
        self._limits[Stage.OFFER] = {APPROVAL_PART: SIGNATURE_BYTES}
        self._limits[Stage.AGREED] = {}

    def release(self, request: Envelope, parts: Mapping[str, bytes]) -> Sealed:
        """Let the reply to a verified request leave, signed and written down; raises CSL-601 and lets nothing out.

        Where the ledger ends goes with every reply (RULES 18).
        """
        limits = self._limits[request.stage]
        # Where nothing is missing, nothing is said of it; every other part leaves at its stage, or nothing does.
        if request.sender != OPERATOR or not limits.keys() - {NEED} <= parts.keys() <= limits.keys():
            raise ConsiliumError(errors.EGRESS_REFUSED, f"{request.stage.value}: parts {sorted(parts)}")
        for name, part in parts.items():
            if len(part) > limits[name]:
                raise ConsiliumError(errors.EGRESS_REFUSED, f"{request.stage.value}: {name} has {len(part)} bytes")
        head = self._witness()
        if len(head) != LEDGER_BYTES:
            raise ConsiliumError(errors.EGRESS_REFUSED, f"the ledger's head has {len(head)} bytes")
        whole = {**parts, LEDGER_PART: head}
        reply = seal(
            Envelope(
                study=request.study,
                stage=request.stage,
                instance=request.instance,
                attempt=request.attempt,
                sender=self._site,
                recipient=OPERATOR,
                parts=whole,
            ),
            self._identity,
        )
        self._number += 1
        self._write(
            EgressEntry(
                number=self._number,
                study=request.study,
                recipient=OPERATOR,
                stage=request.stage,
                instance=request.instance,
                attempt=request.attempt,
                part_bytes={name: len(part) for name, part in whole.items()},
                total_bytes=reply.size,
                sha256=hashlib.sha256(reply.header + reply.signature).hexdigest(),
                guarantee=_GUARANTEES[request.stage],
            )
        )
        return reply
