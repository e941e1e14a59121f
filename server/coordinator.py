"""The operator's ServerApp: identify the sites, ask for sums, move the global vector, ask for the final counts.

It handles sealed envelopes and decoded sums, never one site's update. A sum that aborts is asked for again in a new
epoch, as a new attempt that every site charges anew; a study whose sites no longer suffice ends with a named error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from common import errors
from common.agreement import Agreement
from common.errors import ConsiliumError
from common.identity import Identity, PublicKey, SiteId
from common.link.records import from_records, to_records
from common.messages import ANYONE, OPERATOR, Envelope, Stage, peek_sender, seal, unseal
from common.payloads import (
    LEDGER_BYTES,
    LEDGER_PART,
    count_encoding,
    dump_round,
    dump_vector,
    input_digest,
    vector_encoding,
)
from common.secagg import Encoding, Phase, ServerSession, Sum
from common.stopwatch import Stopwatch
from server.aggregation import Vector, server_optimizer
from server.progress import RoundRecord
from server.witnesses import Witnesses

_ATTEMPTS = 3
_NONCE_BYTES = 32


@dataclass(frozen=True, slots=True)
class SumStages:
    """The stages that one kind of sum passes through."""

    input: Stage
    view: Stage
    unmask: Stage


FITTING = SumStages(Stage.FIT, Stage.VIEW, Stage.UNMASK)
COUNTING = SumStages(Stage.COUNTS, Stage.COUNTS_VIEW, Stage.COUNTS_UNMASK)
_OPENING = {Phase.HELLO: Stage.KEYS, Phase.PREPARE: Stage.PREPARE, Phase.ACKNOWLEDGE: Stage.ACKNOWLEDGE}


@dataclass(slots=True)
class Traffic:
    """Bytes of sealed envelopes since the study began."""

    up: int = 0
    down: int = 0
    messages: int = 0


@dataclass(slots=True)
class Outcome:
    """What a finished study leaves with the operator.

    counts         the sum of the evaluation's noised cells; None where none was agreed or none came about
    not_evaluated  why no counts came about
    """

    vector: Vector
    rounds: list[RoundRecord] = field(default_factory=list)
    counts: Sum | None = None
    not_evaluated: str = ""


class Coordinator:
    """Runs one study to its end over a Flower grid.

    agreement   the verified study
    operator    the identity that signed it
    start       (dimension,) float32, the global vector before the first round
    witnesses   what each site showed of its ledger, over all processes and studies of this operator (RULES 18)
    entropy     source of session identifiers and nonces; the operating system's, except in simulations
    on_round    called after each round with its record and the new vector
    deadline    seconds a stage may take; None waits
    """

    def __init__(
        self,
        agreement: Agreement,
        operator: Identity,
        start: Vector,
        *,
        witnesses: Witnesses,
        entropy: Callable[[int], bytes] = os.urandom,
        on_round: Callable[[RoundRecord, Vector], None] = lambda _record, _vector: None,
        deadline: float | None = None,
    ) -> None:
        self._study, self._digest, self._operator = agreement.study, agreement.digest, operator
        self._entropy, self._on_round, self._deadline = entropy, on_round, deadline
        self._vectors = vector_encoding(self._study, len(start))
        self._counts = count_encoding(self._study)
        self._optimizer = server_optimizer(self._study.training)
        self._keys = {member.site_id: member.public_key for member in self._study.roster}
        self._nodes: dict[SiteId, int] = {}
        self._witnesses = witnesses
        self._session: ServerSession | None = None
        self._instance = 0
        self._attempt = 0
        self.traffic = Traffic()
        self.watch = Stopwatch()
        self.outcome = Outcome(np.array(start, dtype=np.float32))

    def app(self) -> ServerApp:
        """Return the Flower ServerApp that runs the study; its result is :attr:`outcome`."""
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            del context
            self.run(grid)

        return app

    def run(self, grid: Grid) -> Outcome:
        """Run every round and the final evaluation; raises CSL-602 when too few sites are left."""
        self._identify(grid)
        for round_index in range(self._study.training.rounds):
            self._round(grid, round_index)
        if self._study.evaluation.releases:
            self._evaluate(grid)
        return self.outcome

    def _evaluate(self, grid: Grid) -> None:
        """Ask for the final counts; a study whose sites no longer suffice for them keeps its vector all the same."""
        try:
            self.outcome.counts = self._sum(grid, COUNTING, self._counts, {"vector": dump_vector(self.outcome.vector)})
        except ConsiliumError as error:
            if error.fault is not errors.QUORUM_LOST:
                raise
            self.outcome.not_evaluated = str(error)

    def _round(self, grid: Grid, round_index: int) -> None:
        up, down = self.traffic.up, self.traffic.down
        parts = {"vector": dump_vector(self.outcome.vector), "round": dump_round(round_index)}
        total = self._sum(grid, FITTING, self._vectors, parts)
        mean = np.asarray(total.values, dtype=np.float64)
        self.outcome.vector = self._optimizer.step(self.outcome.vector, mean, round_index)
        record = RoundRecord(
            round_index=round_index,
            attempt=self._attempt,
            survivors=total.survivors,
            update_norm=float(np.linalg.norm(mean)),
            bytes_up=self.traffic.up - up,
            bytes_down=self.traffic.down - down,
        )
        self.outcome.rounds.append(record)
        self._on_round(record, self.outcome.vector)

    def _identify(self, grid: Grid) -> None:
        """Learn which node is which site from signatures over a fresh nonce, never from what Flower says."""
        nonce = self._entropy(_NONCE_BYTES)
        nodes = list(grid.get_node_ids())
        request = self._envelope(Stage.IDENTIFY, ANYONE, {"nonce": nonce})
        for node, reply in self._send(grid, dict.fromkeys(nodes, request)).items():
            site = SiteId(reply.sender)
            if reply.parts.get("nonce") == nonce and site not in self._nodes:
                self._nodes[site] = node

    def _sum(self, grid: Grid, stages: SumStages, encoding: Encoding, parts: Mapping[str, bytes]) -> Sum:
        """Obtain one secure sum; after an abort, again in a new epoch and as a new attempt."""
        self._instance += 1
        reason = ""
        for attempt in range(_ATTEMPTS):
            self._attempt = attempt
            try:
                session = self._session
                if session is None or session.phase is not Phase.READY:
                    session = self._open_epoch(grid)
                with self.watch.timed("secagg"):
                    digest = input_digest(stages.input, *(parts[name] for name in ("vector", "round") if name in parts))
                    session.begin(stage=stages.input.value, input_digest=digest, encoding=encoding)
                self._exchange(grid, session, stages.input, parts)
                while session.phase in (Phase.VIEW, Phase.UNMASK):
                    self._exchange(grid, session, stages.view if session.phase is Phase.VIEW else stages.unmask, {})
                with self.watch.timed("secagg"):
                    return session.result()
            except ConsiliumError as error:
                if not error.code.startswith("CSL-4"):
                    raise
                self._session, reason = None, str(error)
        raise ConsiliumError(errors.QUORUM_LOST, f"after {_ATTEMPTS} attempts; the last: {reason}")

    def _open_epoch(self, grid: Grid) -> ServerSession:
        session = ServerSession.for_study(self._study, entropy=self._entropy)
        session.open_epoch(sorted(self._nodes))
        while session.phase in _OPENING:
            self._exchange(grid, session, _OPENING[session.phase], {})
        self._session = session
        return session

    def _exchange(self, grid: Grid, session: ServerSession, stage: Stage, parts: Mapping[str, bytes]) -> None:
        """Send this phase's requests, hand each reply to the session, close the phase."""
        with self.watch.timed("secagg"):
            requests = session.requests()
        envelopes = {
            self._nodes[site]: self._envelope(stage, site, {"secagg": raw, **parts, **self._witness(stage, site)})
            for site, raw in requests.items()
        }
        replies = self._send(grid, envelopes)
        with self.watch.timed("secagg"):
            for reply in replies.values():
                try:
                    session.receive(SiteId(reply.sender), reply.parts.get("secagg", b""))
                except ConsiliumError as error:
                    # A site whose reply is refused counts as lost; the protocol decides what that means.
                    if not error.code.startswith("CSL-4"):
                        raise
            session.advance()

    def _witness(self, stage: Stage, site: SiteId) -> dict[str, bytes]:
        """Return where the site's ledger last ended, for it to check as an epoch opens (RULES 18)."""
        if stage is not Stage.KEYS:
            return {}
        known = self._witnesses.of(self._keys[site])
        return {} if known is None else {LEDGER_PART: known}

    def _keep_witnesses(self, replies: Iterable[Envelope]) -> None:
        """Keep where verified replies say that ledgers end; durable before anything is done with the replies.

        Who answers first after a start has shown nothing yet: what it showed before must not be overwritten by it.
        """
        shown = {
            self._keys[SiteId(reply.sender)]: head
            for reply in replies
            if reply.stage is not Stage.IDENTIFY and len(head := reply.parts.get(LEDGER_PART, b"")) == LEDGER_BYTES
        }
        if shown:
            self._witnesses.keep(shown)

    def _envelope(self, stage: Stage, recipient: str, parts: Mapping[str, bytes]) -> Envelope:
        return Envelope(self._digest, stage, self._instance, self._attempt, OPERATOR, recipient, parts)

    def _send(self, grid: Grid, requests: Mapping[int, Envelope]) -> dict[int, Envelope]:
        """Send signed requests and return the verified replies, by node; what does not verify is no reply."""
        replies: dict[int, Envelope] = {}
        messages = (self._message(node, request) for node, request in requests.items())
        for message in grid.send_and_receive(messages, timeout=self._deadline):
            if message.has_error():
                continue
            node = message.metadata.src_node_id
            if node not in requests or node in replies:
                continue
            try:
                replies[node] = self._verified(message, requests[node])
            except ConsiliumError:
                # Forged, misbound or unreadable: the same as silence, and nobody learns which.
                continue
        self._keep_witnesses(replies.values())
        return replies

    def _key_of(self, sender: str) -> PublicKey:
        """Return a site's key; raises CSL-122 for a stranger."""
        try:
            return self._keys[SiteId(sender)]
        except KeyError as error:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, sender) from error

    def _message(self, node: int, request: Envelope) -> Message:
        """Sign a request; made one by one as they are sent, since those of many sites do not fit the memory at once."""
        sealed = seal(request, self._operator)
        self.traffic.down += sealed.size
        self.traffic.messages += 1
        return Message(to_records(sealed), node, request.stage.value, group_id=str(request.instance))

    def _verified(self, message: Message, request: Envelope) -> Envelope:
        sealed = from_records(message.content)
        self.traffic.up += sealed.size
        self.traffic.messages += 1
        sender = peek_sender(sealed) if request.recipient == ANYONE else request.recipient
        reply = unseal(
            sealed,
            self._key_of(sender),
            study=self._digest,
            stage=request.stage,
            sender=sender,
            recipient=OPERATOR,
        )
        if (reply.instance, reply.attempt) != (request.instance, request.attempt):
            raise ConsiliumError(errors.MESSAGE_MISBOUND, "another instance")
        return reply
