"""The operator's ServerApp: identify the sites, ask for sums, move the global vector, ask for the final counts.

It handles sealed envelopes and decoded sums, never one site's update. A sum that aborts is asked for again in a new
epoch, as a new attempt that every site charges anew; a study whose sites no longer suffice ends with a named error.
With a journal, where the study stands is kept after every stage: a new process goes on with the very request that the
old one may have sent, and sites answer it with the very same bytes.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common import errors
from common.agreement import Agreement
from common.chunks import NEED
from common.errors import ConsiliumError
from common.identity import Identity, SiteId
from common.messages import ANYONE, Stage
from common.payloads import (
    count_encoding,
    dump_round,
    dump_vector,
    input_digest,
    vector_encoding,
)
from common.secagg import Encoding, Phase, ServerSession, Sum
from common.secagg.terms import Terms
from common.stopwatch import Stopwatch
from server.aggregation import Vector, moved, server_optimizer
from server.board import Board, Standing
from server.conduct import Conduct
from server.correspondence import Correspondence
from server.distribution import Distribution, Turn
from server.progress import Ending, Progress, RoundRecord
from server.witnesses import Witnesses

_ATTEMPTS = 3
_NONCE_BYTES = 32
_AGAIN_SECONDS = 5.0
"""Until a node that did not say who it is is asked again."""


@dataclass(frozen=True, slots=True)
class SumStages:
    """The stages that one kind of sum passes through."""

    input: Stage
    view: Stage
    unmask: Stage


FITTING = SumStages(Stage.FIT, Stage.VIEW, Stage.UNMASK)
COUNTING = SumStages(Stage.COUNTS, Stage.COUNTS_VIEW, Stage.COUNTS_UNMASK)
_SUMMING = (Phase.INPUT, Phase.VIEW, Phase.UNMASK)
_OPENING = {Phase.HELLO: Stage.KEYS, Phase.PREPARE: Stage.PREPARE, Phase.ACKNOWLEDGE: Stage.ACKNOWLEDGE}


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


_IN_ONE_PROCESS = Conduct()


class Coordinator:
    """Runs one study to its end over a Flower grid.

    agreement   the verified study
    operator    the identity that signed it
    start       (dimension,) float32, the global vector before the first round
    witnesses   what each site showed of its ledger, over all processes and studies of this operator (RULES 18)
    entropy     source of session identifiers and nonces; the operating system's, except in simulations
    on_round    called after each round with its record and the new vector
    conduct     how it is run; in one process where nothing is said
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
        conduct: Conduct = _IN_ONE_PROCESS,
    ) -> None:
        self._study, self._conduct = agreement.study, conduct
        self._entropy, self._on_round = entropy, on_round
        self._vectors = vector_encoding(self._study, len(start))
        self._counts = count_encoding(self._study)
        self._optimizer = server_optimizer(self._study.training)
        self._letters = Correspondence(agreement.study, agreement.digest, operator, witnesses)
        self._distribution = Distribution(self._study.backbone, self._letters, conduct.backbone)
        self._nodes: dict[SiteId, int] = {}
        self._terms = Terms.from_study(self._study)
        self._quorum = max(conduct.quorum, self._terms.smallest_cohort)
        self._board = conduct.board or Board()
        self._session: ServerSession | None = None
        self._instance = 0
        self._attempt = 0
        self._under_way = False
        self._tried: dict[SiteId, str] = {}
        self._greeted: dict[int, tuple[str | None, float]] = {}
        self.traffic = self._letters.traffic
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
        """Run every round and the evaluation that are not done yet; raises CSL-602 when too few sites are left."""
        self._board.begin(self._letters.keys)
        if self._resumed():
            return self.outcome
        for round_index in range(len(self.outcome.rounds), self._study.training.rounds):
            self._conduct.between(grid)
            self._round(grid, round_index)
        if self._study.evaluation.releases:
            self._evaluate(grid)
        if self._conduct.journal is not None:
            self._conduct.journal.end(Ending.of(self.outcome.counts, self.outcome.not_evaluated))
        return self.outcome

    def _resumed(self) -> bool:
        """Take up what an earlier process left; returns whether nothing is left to do."""
        if self._conduct.journal is None:
            return False
        progress, ending = self._conduct.journal.progress(), self._conduct.journal.ending()
        if progress is not None:
            self._instance, self._attempt, self._under_way = progress.instance, progress.attempt, progress.under_way
            self.outcome.vector, self.outcome.rounds = progress.vector, list(self._conduct.journal.rounds())
            self._optimizer.restore(progress.optimizer)
            if progress.session:
                self._session = ServerSession.restore(
                    self._terms,
                    progress.session,
                    encodings=(self._vectors, self._counts),
                    entropy=self._entropy,
                )
        if ending is None:
            return False
        if ending.counts is not None:
            self.outcome.counts = Sum(ending.counts, ending.survivors, ending.instance)
        self.outcome.not_evaluated = ending.not_evaluated
        return True

    def _keep(self, done: RoundRecord | None = None) -> None:
        """Have the journal hold where the study stands, before anything that follows from it is sent."""
        if self._conduct.journal is None:
            return
        self._conduct.journal.keep(
            Progress(
                instance=self._instance,
                attempt=self._attempt,
                rounds=len(self.outcome.rounds),
                under_way=self._under_way,
                vector=self.outcome.vector,
                optimizer=self._optimizer.dump(),
                session=b"" if self._session is None else self._session.store(),
            ),
            done,
        )

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
        moves = self._conduct.moves(round_index)
        self.outcome.vector = moved(self._optimizer, self.outcome.vector, mean, round_index, moves)
        record = RoundRecord(
            round_index=round_index,
            attempt=self._attempt,
            survivors=total.survivors,
            update_norm=float(np.linalg.norm(mean)),
            bytes_up=self.traffic.up - up,
            bytes_down=self.traffic.down - down,
        )
        self.outcome.rounds.append(record)
        self._keep(record)
        self._on_round(record, self.outcome.vector)

    def _sum(self, grid: Grid, stages: SumStages, encoding: Encoding, parts: Mapping[str, bytes]) -> Sum:
        """Obtain one secure sum; after an abort, again in a new epoch and as a new attempt."""
        if not self._under_way:
            self._instance, self._attempt, self._under_way = self._instance + 1, 0, True
        reason = ""
        for _ in range(_ATTEMPTS):
            try:
                session = self._opened(grid)
                if session.phase is Phase.READY:
                    with self.watch.timed("secagg"):
                        names = [name for name in ("vector", "round") if name in parts]
                        digest = input_digest(stages.input, *(parts[name] for name in names))
                        session.begin(stage=stages.input.value, input_digest=digest, encoding=encoding)
                while session.phase in _SUMMING:
                    self._keep()
                    stage = {Phase.INPUT: stages.input, Phase.VIEW: stages.view}.get(session.phase, stages.unmask)
                    self._exchange(grid, session, stage, parts if stage is stages.input else {})
                self._under_way = False
                with self.watch.timed("secagg"):
                    return session.result()
            except ConsiliumError as error:
                if not error.code.startswith("CSL-4"):
                    raise
                self._session, reason = None, str(error)
                self._attempt += 1
        # A study that is resumed begins with a sum of its own number, which no site has charged for.
        self._under_way = False
        self._keep()
        raise ConsiliumError(errors.QUORUM_LOST, f"after {_ATTEMPTS} attempts; the last: {reason}")

    def _opened(self, grid: Grid) -> ServerSession:
        """Return a session in which a sum can begin, or has begun; who came late is in it from a new epoch on."""
        self._identify(grid)
        session = self._session
        if session is not None:
            # Where there is no epoch yet, gathering for one does the same.
            self._feed(grid, self._conduct.deadline.patience)
        if session is not None and not set(session.cohort) <= self._nodes.keys():
            # A new process does not know yet which connection is whose.
            self._gathered(grid, session.cohort)
        if session is not None and session.phase in _SUMMING:
            return session
        ready = session is not None and session.phase is Phase.READY and not self._newcomers(session)
        if session is None or not (ready or session.phase in _OPENING):
            sites = self._gathered(grid, self._letters.keys)
            self._tried = {site: self._conduct.attendance.connection(self._nodes[site]) or "" for site in sites}
            session = ServerSession(self._terms, entropy=self._entropy)
            session.open_epoch(sites)
            self._session = session
        while session.phase in _OPENING:
            self._keep()
            self._exchange(grid, session, _OPENING[session.phase], {})
        return session

    def _newcomers(self, session: ServerSession) -> set[SiteId]:
        """Return who is connected, not in the epoch, and was not asked on this connection to be."""
        return {
            site
            for site, connection in self._present().items()
            if not (site in session.cohort or self._distribution.lacks(site) or self._tried.get(site) == connection)
        }

    def _present(self) -> dict[SiteId, str]:
        """Return who is connected, and what names the connection."""
        found = {site: self._conduct.attendance.connection(node) for site, node in self._nodes.items()}
        return {site: connection for site, connection in found.items() if connection is not None}

    def _gathered(self, grid: Grid, wanted: Collection[SiteId]) -> list[SiteId]:
        """Return who of some sites is here; waits for a quorum, and a little for the rest."""
        start = time.monotonic()
        while True:
            present = self._present()
            here = [site for site in wanted if site in present and not self._distribution.lacks(site)]
            for site in here:
                self._board.set(site, Standing.ONLINE)
            limit = (
                self._conduct.deadline.patience if len(here) >= self._quorum else self._conduct.deadline.seconds or 0.0
            )
            left = start + limit - time.monotonic()
            if len(here) == len(wanted) or left <= 0:
                return sorted(here)
            if self._feed(grid, min(left, self._conduct.deadline.patience)):
                # Whoever gets its backbone is coming: each turn that brought bytes begins the wait for a quorum anew.
                start = start if len(here) >= self._quorum else time.monotonic()
            elif not self._conduct.attendance.wait(left):
                return sorted(here)
            self._identify(grid)

    def _feed(self, grid: Grid, seconds: float) -> bool:
        """Send of the backbone what connected sites lack of it, for so long; returns whether anything arrived."""
        present = self._present()
        for site in filter(self._distribution.lacks, present):
            self._board.set(site, Standing.FETCHING)
        turn = Turn(self._instance, self._attempt, seconds, self._conduct.deadline.of(Stage.BACKBONE) or seconds)
        return self._distribution.feed(grid, {site: self._nodes[site] for site in present}, turn)

    def _identify(self, grid: Grid) -> None:
        """Learn which node is which site from signatures over a fresh nonce, never from what Flower says."""
        known = set(self._nodes.values())
        strangers = [node for node in grid.get_node_ids() if node not in known and self._may_have_changed(node)]
        if not strangers:
            return
        self._conduct.greet(grid, strangers)
        nonce = self._entropy(_NONCE_BYTES)
        request = self._letters.envelope(Stage.IDENTIFY, ANYONE, self._instance, self._attempt, {"nonce": nonce})
        timeout = self._conduct.deadline.of(Stage.IDENTIFY)
        for node, reply in self._letters.send(grid, dict.fromkeys(strangers, request), timeout).items():
            site = SiteId(reply.sender)
            if reply.parts.get("nonce") == nonce and site not in self._nodes:
                with contextlib.suppress(ConsiliumError):
                    self._distribution.learn(site, reply.parts.get(NEED))
                    self._nodes[site] = node

    def _may_have_changed(self, node: int) -> bool:
        """Return whether to ask a node who it is: on each connection once, and again after a while."""
        now, connection = time.monotonic(), self._conduct.attendance.connection(node)
        before, at = self._greeted.get(node, (None, 0.0))
        if self._conduct.deadline.seconds is not None and before == connection and now - at < _AGAIN_SECONDS:
            return False
        self._greeted[node] = (connection, now)
        return True

    def _exchange(self, grid: Grid, session: ServerSession, stage: Stage, parts: Mapping[str, bytes]) -> None:
        """Send this phase's requests, hand each reply to the session, close the phase."""
        with self.watch.timed("secagg"):
            requests = session.requests()
        envelopes = {
            self._nodes[site]: self._letters.envelope(
                stage, site, self._instance, self._attempt, {"secagg": raw, **parts}
            )
            for site, raw in requests.items()
            if site in self._nodes
        }
        for site in requests:
            self._board.set(site, Standing.WORKING)
        replies = self._letters.send(grid, envelopes, self._conduct.deadline.of(stage))
        answered = {SiteId(reply.sender) for reply in replies.values()}
        masked = stage in (Stage.FIT, Stage.COUNTS)
        for site in requests:
            there = Standing.MASKED if masked else Standing.ONLINE
            self._board.set(site, there if site in answered else Standing.UNAVAILABLE)
        with self.watch.timed("secagg"):
            for reply in replies.values():
                try:
                    session.receive(SiteId(reply.sender), reply.parts.get("secagg", b""))
                except ConsiliumError as error:
                    # A site whose reply is refused counts as lost; the protocol decides what that means.
                    if not error.code.startswith("CSL-4"):
                        raise
            session.advance()
