"""The hospital's stage handlers as a Flower ClientApp: check, charge, compute, mask, let out.

Each request is verified against the approved study before anything else; a request seen before is answered with the
very same bytes; whatever goes wrong, the operator sees one ``unavailable`` and the reason stays here (RULES 14).
Nothing in this module knows a model: the :class:`Workload` does, so that the link and the protocol can be tested
without torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping, MutableSequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from client.egress import NONCE_BYTES, Egress, EgressEntry
from client.ledger import ChargeKey, Ledger
from client.ledger.witness import Witness
from client.outbox import MemoryOutbox, Outbox
from common import errors
from common.agreement import Agreement
from common.errors import ConsiliumError
from common.identity import Identity, SiteId, parse_public_key
from common.link.records import from_records, to_records
from common.messages import ANYONE, OPERATOR, Envelope, Sealed, Stage, unseal
from common.payloads import LEDGER_PART, count_encoding, input_digest, parse_round, parse_vector, vector_encoding
from common.privacy.plan import PrivacyPlan
from common.secagg import Encoding, SiteSession, Ticket
from common.secagg import Terms as AggregationTerms
from common.secagg.journal import Journal
from common.stopwatch import Stopwatch
from common.study import Study

_log = logging.getLogger("consilium.site")


class Workload(Protocol):
    """What a site computes. Both results are differentially private before they are returned."""

    @property
    def dimension(self) -> int:
        """Length of the vector."""

    def train(self, start: NDArray[np.float32], round_index: int) -> NDArray[np.float32]:
        """Return the private update of one round, (dimension,) float32: end minus start."""

    def evaluate(self, vector: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the noised cells (weight, correct) of one evaluation, (2,) int64."""


@dataclass(slots=True)
class SiteLog:
    """What a site keeps for itself: what left, what failed, and where time went. Never sent."""

    egress: MutableSequence[EgressEntry] = field(default_factory=list)
    incidents: MutableSequence[str] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=Stopwatch)


@dataclass(frozen=True, slots=True)
class Terms:
    """What a site reads from the study that every other site reads too; simulated sites share one reading.

    aggregation  who may take part and who must
    vectors      how updates are encoded, counts how the evaluation's cells are
    """

    aggregation: AggregationTerms
    vectors: Encoding
    counts: Encoding

    @classmethod
    def of(cls, study: Study, dimension: int) -> Terms:
        """Read a study whose vector has that length; raises CSL-409 if a sum could overflow."""
        return cls(AggregationTerms.from_study(study), vector_encoding(study, dimension), count_encoding(study))


class Site:
    """One site in one study.

    agreement   the verified study with its approvals
    verified    peers whose fingerprints this site compared out of band (RULES 3)
    entropy     source of keys and shares; the operating system's, except in simulations
    ledger      commits the study to the account, last of all; every reply carries where its chain ends (RULES 18)
    account     the patient population that the ledger charges
    journal     what the secure sums must not forget over a restart (RULES 5); in memory where None
    outbox      the replies that left, to be sent again byte for byte; in memory where None
    record      told of everything that leaves before it does; what it raises keeps it here
    log         what is kept for people here; a daemon bounds it
    terms       of this very study and dimension, where several simulated sites share one reading; else read here
    permit      asked before a request is charged; what it raises keeps the site from taking part
    keep        given the bytes of each vector whose evaluation was answered: the operator's, and public

    Raises the coded error of whatever keeps the study from ever starting here (key, guarantee, expiry, encodings,
    peers), and only then those of :meth:`Ledger.join`; one that raised has committed nothing.
    """

    def __init__(
        self,
        agreement: Agreement,
        site: SiteId,
        identity: Identity,
        workload: Workload,
        ledger: Ledger,
        *,
        verified: frozenset[SiteId],
        entropy: Callable[[int], bytes] = os.urandom,
        account: str = "default",
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        journal: Journal | None = None,
        outbox: Outbox | None = None,
        record: Callable[[EgressEntry], None] = lambda _entry: None,
        log: SiteLog | None = None,
        terms: Terms | None = None,
        permit: Callable[[Stage, Envelope], None] = lambda _stage, _request: None,
        keep: Callable[[bytes], None] = lambda _raw: None,
    ) -> None:
        study = agreement.study
        if study.member(site).public_key != identity.public_key:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, f"{site} holds another key than the roster")
        self.site = site
        self.log = SiteLog() if log is None else log
        self._study, self._digest = study, agreement.digest
        self._operator_key = parse_public_key(study.operator)
        self._workload, self._ledger, self._account, self._clock = workload, ledger, account, clock
        plan = PrivacyPlan.for_site(study, site)
        plan.check_dimension(workload.dimension)
        self._witness = Witness(identity, ledger.name, entropy)
        shared = Terms.of(study, workload.dimension) if terms is None else terms
        shared.aggregation.check_reachable(site, verified)
        self._vectors, self._counts = shared.vectors, shared.counts
        self._egress = Egress(
            study,
            site,
            identity,
            dimension=workload.dimension,
            cells=self._counts.dimension,
            witness=lambda: self._witness.seal(ledger.head()),
            write=self._written,
        )
        self._session = SiteSession(
            shared.aggregation, identity, site, verified=verified, entropy=entropy, journal=journal
        )
        self._outbox, self._record = MemoryOutbox() if outbox is None else outbox, record
        self._permit, self._keep = permit, keep
        self._handlers: Mapping[Stage, Callable[[Envelope], Mapping[str, bytes]]] = {
            Stage.IDENTIFY: proof_of_identity,
            # Asked again when the reply to the last chunk was lost: nothing is missing.
            Stage.BACKBONE: lambda _request: {},
            Stage.KEYS: self._keys,
            Stage.PREPARE: lambda request: self._protocol(self._session.prepare, request),
            Stage.ACKNOWLEDGE: lambda request: self._protocol(self._session.acknowledge, request),
            Stage.FIT: self._fit,
            Stage.VIEW: lambda request: self._protocol(self._session.view, request),
            Stage.UNMASK: lambda request: self._protocol(self._session.unmask, request),
            Stage.COUNTS: self._count,
            Stage.COUNTS_VIEW: lambda request: self._protocol(self._session.view, request),
            Stage.COUNTS_UNMASK: lambda request: self._protocol(self._session.unmask, request),
        }
        study.check_valid_at(clock())
        # Last: a study that cannot start here must not take what it commits from the budget.
        ledger.join(account, agreement.digest, plan)

    def app(self) -> ClientApp:
        """Return the Flower ClientApp that answers this site's stages."""
        app = ClientApp()
        categories = {"query": app.query, "train": app.train, "evaluate": app.evaluate}
        for stage in Stage:
            category, action = stage.value.split(".")
            categories[category](action)(partial(self._handle, stage))
        return app

    def answer(self, stage: Stage, sealed: Sealed) -> Sealed:
        """Answer one request; raises a coded error and lets nothing out if anything is wrong with it."""
        self._study.check_valid_at(self._clock())
        recipient = ANYONE if stage is Stage.IDENTIFY else self.site
        request = unseal(
            sealed, self._operator_key, study=self._digest, stage=stage, sender=OPERATOR, recipient=recipient
        )
        name = hashlib.sha256(sealed.header).digest()
        reply = self._outbox.find(name)
        if reply is None:
            reply = self._egress.release(request, self._handlers[stage](request))
            self._outbox.put(name, reply)
        return reply

    def _written(self, entry: EgressEntry) -> None:
        self._record(entry)
        self.log.egress.append(entry)

    def _handle(self, stage: Stage, message: Message, context: Context) -> Message:
        """Answer a Flower message. ``context`` is Flower's and holds nothing of ours: it is lost at a restart."""
        del context
        try:
            return Message(to_records(self.answer(stage, from_records(message.content))), reply_to=message)
        except ConsiliumError as error:
            self.log.incidents.append(f"{stage.value}: {error}")
            _log.warning("%s: %s", stage.value, error)
        except Exception as error:
            self.log.incidents.append(f"{stage.value}: {type(error).__name__}")
            _log.exception("%s failed", stage.value)
        return Message(Error(600, str(ConsiliumError(errors.SITE_UNAVAILABLE))), reply_to=message)

    def _keys(self, request: Envelope) -> Mapping[str, bytes]:
        """Open an epoch, unless what the operator keeps shows, or once showed, a ledger put back (RULES 18)."""
        shown = request.parts.get(LEDGER_PART)
        self._ledger.vouch(None if shown is None else self._witness.open(shown))
        return self._protocol(self._session.hello, request)

    def _protocol(self, step: Callable[[bytes], bytes], request: Envelope) -> Mapping[str, bytes]:
        with self.log.watch.timed("secagg"):
            return {"secagg": step(request.part("secagg"))}

    def _fit(self, request: Envelope) -> Mapping[str, bytes]:
        raw, round_bytes = request.part("vector"), request.part("round")
        start = parse_vector(raw, self._workload.dimension)
        round_index = parse_round(round_bytes, self._study.training.rounds)
        digest = input_digest(request.stage, raw, round_bytes)
        return self._masked(
            request, digest, self._vectors, "training", lambda: self._workload.train(start, round_index)
        )

    def _count(self, request: Envelope) -> Mapping[str, bytes]:
        raw = request.part("vector")
        vector = parse_vector(raw, self._workload.dimension)
        digest = input_digest(request.stage, raw)
        parts = self._masked(request, digest, self._counts, "evaluation", lambda: self._workload.evaluate(vector))
        self._keep(raw)
        return parts

    def _masked(
        self,
        request: Envelope,
        digest: bytes,
        encoding: Encoding,
        work: str,
        compute: Callable[[], NDArray[np.generic]],
    ) -> Mapping[str, bytes]:
        """Open a sum, charge for it, compute and mask; what was answered before a restart is only sent again."""
        opening, stage = request.part("secagg"), request.stage.value
        known = self._session.answered(opening, input_digest=digest, stage=stage, encoding=encoding)
        if known is not None:
            return {"secagg": known}
        self._permit(request.stage, request)
        with self.log.watch.timed("secagg"):
            ticket = self._session.open_input(opening, input_digest=digest, stage=stage, encoding=encoding)
        self._charge(request, ticket, digest)
        with self.log.watch.timed(work):
            values = compute()
        with self.log.watch.timed("secagg"):
            return {"secagg": self._session.mask(ticket, values)}

    def _charge(self, request: Envelope, ticket: Ticket, digest: bytes) -> None:
        key = ChargeKey(
            account=self._account,
            study=self._digest,
            stage=request.stage,
            instance=ticket.instance,
            attempt=request.attempt,
            input_digest=digest,
            cohort=ticket.cohort,
        )
        self._ledger.charge(key)


def proof_of_identity(request: Envelope) -> Mapping[str, bytes]:
    """Return the parts that answer the operator's nonce, to be signed; raises CSL-130 for what is no nonce."""
    nonce = request.part("nonce")
    if len(nonce) != NONCE_BYTES:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, f"a nonce has {NONCE_BYTES} bytes")
    return {"nonce": nonce}
