"""Offers: studies that the operator has signed travel to their sites, and approvals come back, until all have approved.

Beside the approvals nothing is decided here. A study that all have approved is moved to where studies are run from.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flwr.serverapp import Grid

from common import agreement as agreements
from common.agreement import Approval, SignedStudy, check_approval, dump_approvals, verify_study
from common.errors import ConsiliumError
from common.identity import Identity, PublicKey, Signature, SiteId
from common.logs import log
from common.messages import Stage
from common.parts import Digest
from common.payloads import APPROVAL_PART, APPROVALS_PART, SIGNATURE_PART, STUDY_PART
from common.sqlite_files import sync_folder
from common.study import Study
from server.correspondence import Correspondence
from server.witnesses import Witnesses

STOPPED = ".stopped"
"""Folder among the studies with an empty file for each that is to stop, named by the first 16 digits of its digest."""
_log = log("consilium.offers")
_ANSWER_SECONDS = 15.0
_ASK_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Offer:
    """A study on its way to being agreed."""

    folder: Path
    study: Study
    digest: Digest
    signed: SignedStudy
    approvals: tuple[Approval, ...]

    @property
    def missing(self) -> tuple[SiteId, ...]:
        """The sites that have not approved it."""
        there = {approval.site for approval in self.approvals}
        return tuple(member.site_id for member in self.study.roster if member.site_id not in there)


def offers(folder: Path, operator: PublicKey) -> Iterator[Offer]:
    """Yield every study in a folder of offers that the operator has signed, with the approvals that hold."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith(".") or not (path / "study.json").is_file():
            continue
        try:
            signed, approvals = agreements.read(path)
            study = verify_study(signed, operator)
            digest = study.digest
            yield Offer(path, study, digest, signed, tuple(_holding(study, approvals)))
        except ConsiliumError as error:
            _log.warning("offer refused", folder=path.name, code=error.code, detail=str(error))


class Offering:
    """Exchanges offers and approvals with whoever is connected.

    folder   of offers; ``studies`` is where they go once all have approved
    node_of  returns the node under which a site was admitted, None for none: where to send, never who it is
    every    seconds after which a site that has not approved is asked again
    """

    def __init__(
        self,
        folder: Path,
        studies: Path,
        operator: Identity,
        witnesses: Witnesses,
        node_of: Callable[[SiteId], int | None],
        *,
        every: float = _ASK_SECONDS,
    ) -> None:
        self._every = every
        self._folder, self._studies, self._operator = folder, studies, operator
        self._witnesses, self._node_of = witnesses, node_of
        self._asked_at: dict[tuple[Digest, int], float] = {}

    def exchange(self, grid: Grid) -> None:
        """Ask every connected site for its approval of what it has not approved; tell all of what all have."""
        here = set(grid.get_node_ids())
        for offer in offers(self._folder, self._operator.public_key):
            fresh = self._asked(grid, here, offer)
            if fresh:
                agreements.write(offer.folder, offer.signed, (*offer.approvals, *fresh))
                for approval in fresh:
                    _log.info("approved", study=offer.digest[:12], site=approval.site)
            if not set(offer.missing) - {approval.site for approval in fresh}:
                approvals = (*offer.approvals, *fresh)
                self.tell(grid, here, offer.study, offer.digest, offer.signed, approvals)
                os.rename(offer.folder, self._studies / offer.folder.name)
                sync_folder(self._studies)
                _log.info("agreed by all", study=offer.digest[:12], title=offer.study.title)

    def tell(
        self,
        grid: Grid,
        nodes: Collection[int],
        study: Study,
        digest: Digest,
        signed: SignedStudy,
        approvals: tuple[Approval, ...],
    ) -> None:
        """Send a study that all have approved to those of its sites that are on some nodes."""
        parts = {
            STUDY_PART: signed.canonical,
            SIGNATURE_PART: bytes(signed.signature),
            APPROVALS_PART: dump_approvals(approvals),
        }
        letters = Correspondence(study, digest, self._operator, self._witnesses)
        requests = {
            node: letters.envelope(Stage.AGREED, site, 0, 0, parts) for node, site in self._on(nodes, study).items()
        }
        letters.send(grid, requests, _ANSWER_SECONDS)

    def _asked(self, grid: Grid, here: Collection[int], offer: Offer) -> tuple[Approval, ...]:
        parts = {STUDY_PART: offer.signed.canonical, SIGNATURE_PART: bytes(offer.signed.signature)}
        letters = Correspondence(offer.study, offer.digest, self._operator, self._witnesses)
        missing = set(offer.missing)
        requests = {
            node: letters.envelope(Stage.OFFER, site, 0, 0, parts)
            for node, site in self._on(here, offer.study).items()
            if site in missing and self._is_due(offer.digest, node)
        }
        given = (
            Approval(SiteId(reply.sender), offer.digest, Signature(reply.parts[APPROVAL_PART]))
            for reply in letters.send(grid, requests, _ANSWER_SECONDS).values()
            if reply.parts.get(APPROVAL_PART)
        )
        return tuple(_holding(offer.study, given))

    def _is_due(self, digest: Digest, node: int) -> bool:
        """Return whether to ask a site again: people take hours to approve, and each asking is a line in its log."""
        now = time.monotonic()
        if now - self._asked_at.get((digest, node), -math.inf) < self._every:
            return False
        self._asked_at[digest, node] = now
        return True

    def _on(self, nodes: Collection[int], study: Study) -> Mapping[int, SiteId]:
        places = {member.site_id: self._node_of(member.site_id) for member in study.roster}
        return {node: site for site, node in places.items() if node is not None and node in nodes}


def _holding(study: Study, approvals: Collection[Approval] | Iterator[Approval]) -> Iterator[Approval]:
    """Yield the approvals that their sites have signed."""
    for approval in approvals:
        try:
            check_approval(study, approval)
        except ConsiliumError as error:
            _log.warning("approval refused", site=approval.site, code=error.code)
        else:
            yield approval
