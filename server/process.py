"""The operator's process: listeners, journal and one study after the other, until it is told to stop.

A study that was under way when a process ended, however it ended, is gone on with in a new Flower run under the same
digest. One that ends with a named error waits for ``run`` to be started again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from flwr.serverapp import Grid

from common import agreement as agreements
from common import errors
from common.agreement import verify_agreement
from common.errors import ConsiliumError
from common.identity import Identity, fingerprint
from common.link.fleet_app import fleet_app
from common.link.nodes import node_key_bytes
from common.link.relay import FleetGrid, Relay
from common.logs import log
from common.parts import Digest
from common.study import Kind
from server.attendance import Deadline
from server.audit import AuditLog
from server.board import Board
from server.conduct import Conduct
from server.config import ServerConfig
from server.coordinator import Coordinator, Outcome
from server.guard import Call, Guard
from server.health import Metrics, health_app
from server.journal import Queued, SqlJournal
from server.journal_events import State
from server.listener import listening, tls_context
from server.offering import STOPPED, Offering, offers
from server.product import Produce, locate
from server.progress import RoundRecord
from server.witnesses import SqliteWitnesses

_log = log("consilium.server")
_LOOK_SECONDS = 2.0
"""How often the folders of studies and of admitted sites are looked at."""
_MAKING = ".making-"
"""How the name of a release begins that is not whole yet."""


@dataclass(frozen=True, slots=True)
class Serving:
    """What is open while a server serves."""

    relay: Relay
    journal: SqlJournal
    witnesses: SqliteWitnesses


class Operator:
    """One operator's server.

    produce  makes a study's model: where it starts and what is released
    kind     of the studies that are run
    passphrase  of the TLS key, if it is encrypted
    """

    def __init__(
        self,
        config: ServerConfig,
        identity: Identity,
        produce: Produce,
        *,
        kind: Kind = Kind.DEPLOYMENT,
        passphrase: bytes | None = None,
    ) -> None:
        self._config, self._identity, self._produce, self._kind = config, identity, produce, kind
        self._passphrase = passphrase
        self._stop = threading.Event()
        self._board, self._metrics = Board(), Metrics()
        self._relay = Relay()
        self._admitted: dict[str, bytes] = {}
        self._nodes: dict[str, int] = {}
        self._current: Digest | None = None
        self.port = 0

    def stop(self) -> None:
        """Have :meth:`run` return: at once between studies, else when the process is ended."""
        self._stop.set()

    def run(self, *, until_idle: bool = False) -> bool:
        """Serve until stopped, or until no study is left to run; returns whether every study has been finished.

        Raises CSL-64x where it cannot listen, CSL-63x for its files.
        """
        with self.serving() as serving, self._relay.run() as grid:
            offering = self._offering(serving)
            tried: set[Digest] = set()
            while not self._stop.is_set():
                offering.exchange(grid)
                self.enqueue(serving.journal)
                waiting = [study for study in serving.journal.queue() if study.state is not State.FINISHED]
                due = next(
                    (found for found in waiting if not (found.digest in tried or self._stopped(found.digest))), None
                )
                if due is None:
                    if until_idle and not any(offers(self._config.offers, self._identity.public_key)):
                        return not waiting
                    self._stop.wait(_LOOK_SECONDS)
                    continue
                self._run_study(serving, grid, offering, due)
                # One that ended with an error waits for a new start; one that was stopped, for its resumption.
                if not self._stopped(due.digest):
                    tried.add(due.digest)
            return False

    @contextlib.contextmanager
    def serving(self) -> Iterator[Serving]:
        """Open the files and the listeners, for as long as the context lasts; raises as :meth:`run`."""
        config = self._config
        config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            journal = stack.enter_context(SqlJournal(config.journal_url))
            witnesses = stack.enter_context(SqliteWitnesses(config.state / "witnesses.sqlite"))
            audit = stack.enter_context(AuditLog(config.state / "audit.jsonl"))
            self._admit()
            stack.enter_context(self._listeners(audit))
            yield Serving(self._relay, journal, witnesses)

    @contextlib.contextmanager
    def _listeners(self, audit: AuditLog) -> Iterator[None]:
        config = self._config

        def audited(call: Call) -> None:
            audit(call)
            self._metrics.call(call)

        tls = tls_context(
            str(config.tls.certificate),
            str(config.tls.key),
            None if config.tls.client_ca is None else str(config.tls.client_ca),
            self._passphrase,
        )
        with contextlib.ExitStack() as stack:
            fleet = Guard(fleet_app(self._relay), audit=audited)
            self.port = stack.enter_context(listening(fleet, config.listen_address, tls))
            stack.callback(self._relay.close)
            if config.health_address is not None:
                app = health_app(self._metrics, self._board, self._status)
                stack.enter_context(listening(app, config.health_address, None))
            over = threading.Event()
            watcher = threading.Thread(target=self._watch, args=(over,), name="admission", daemon=True)
            watcher.start()
            _log.info("listening", port=self.port, operator=fingerprint(self._identity.public_key))
            try:
                yield
            finally:
                over.set()
                watcher.join(10.0)

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(_LOOK_SECONDS):
            self._admit()

    def _admit(self) -> None:
        """Let in whoever has a key in the folder of sites, and nobody else any longer."""
        folder, found = self._config.sites, {}
        for path in sorted(folder.glob("*.pem")) if folder.is_dir() else ():
            try:
                key = load_pem_public_key(path.read_bytes())
                if not isinstance(key, ec.EllipticCurvePublicKey):
                    raise ValueError("not a node key")
                found[path.stem] = node_key_bytes(key)
            except (OSError, ValueError, UnsupportedAlgorithm) as error:
                _log.warning("not a node key", site=path.stem, error=type(error).__name__)
        for name, key_bytes in found.items():
            if self._admitted.get(name) != key_bytes:
                self._nodes[name] = self._relay.admit(key_bytes, name)
                _log.info("admitted", site=name)
        for name, key_bytes in self._admitted.items():
            if key_bytes not in found.values():
                self._relay.dismiss(key_bytes)
                self._nodes.pop(name, None)
                _log.info("dismissed", site=name)
        self._admitted = found

    def enqueue(self, journal: SqlJournal) -> None:
        """Take up every study in the folder that is signed by this operator and approved by all its sites."""
        known = {study.digest for study in journal.queue()}
        folder = self._config.studies
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            there = (path / "study.json").is_file() and (path / "signatures.json").is_file()
            if path.name.startswith(".") or not there:
                continue
            try:
                signed, approvals = agreements.read(path)
                if signed.digest in known:
                    # Its approvals were verified then, and will be before it runs: not every two seconds.
                    continue
                agreed = verify_agreement(
                    signed, approvals, self._identity.public_key, now=datetime.now(UTC), kind=self._kind
                )
            except ConsiliumError as error:
                _log.warning("study refused", folder=path.name, code=error.code, detail=str(error))
                continue
            journal.enqueue(signed, approvals)
            _log.info("study queued", study=agreed.digest[:12], title=agreed.study.title)

    def _offering(self, serving: Serving) -> Offering:
        return Offering(
            self._config.offers,
            self._config.studies,
            self._identity,
            serving.witnesses,
            lambda site: self._nodes.get(site),
        )

    def _run_study(self, serving: Serving, grid: FleetGrid, offering: Offering, due: Queued) -> None:
        """Run one study to its release, or to a named error that the journal keeps."""
        journal = serving.journal
        signed, approvals = journal.agreement(due.digest)
        self._current = due.digest
        _log.info("study runs", study=due.digest[:12], title=due.title, before=due.state.value)
        try:
            agreed = verify_agreement(
                signed, approvals, self._identity.public_key, now=datetime.now(UTC), kind=self._kind
            )
            product = self._produce(agreed.study)
            deadline = Deadline(self._config.deadline)
            if due.state is not State.RUNNING:
                journal.enter(due.digest, State.RUNNING)

            def on_round(record: RoundRecord, _vector: object) -> None:
                self._metrics.rounds.inc()
                _log.info("round done", round=record.round_index, attempt=record.attempt, sites=len(record.survivors))

            grid.patience = deadline.patience

            def between(grid: Grid) -> None:
                offering.exchange(grid)
                if self._stop.is_set():
                    raise ConsiliumError(errors.SERVER_STOPPED, "between two rounds")
                if self._stopped(due.digest):
                    raise ConsiliumError(errors.STUDY_STOPPED, due.title)

            coordinator = Coordinator(
                agreed,
                self._identity,
                product.start(),
                witnesses=serving.witnesses,
                on_round=on_round,
                conduct=Conduct(
                    moves=product.moves,
                    deadline=deadline,
                    quorum=self._config.quorum,
                    attendance=_Connected(self._relay, self._stop),
                    journal=journal.of(due.digest),
                    greet=lambda grid, nodes: offering.tell(
                        grid, nodes, agreed.study, agreed.digest, signed, approvals
                    ),
                    between=between,
                    board=self._board,
                    backbone=lambda: locate(self._config.backbone),
                ),
            )
            outcome = coordinator.run(grid)
            folder = self._config.state / "releases" / due.digest[:16]
            with _whole_or_nothing(folder) as made:
                product.release(made, outcome.vector, signed, approvals)
                (made / "result.json").write_text(json.dumps(_result(outcome, due.digest), indent=1) + "\n")
            journal.enter(due.digest, State.FINISHED)
            _log.info("released", study=due.digest[:12], folder=str(folder))
        except ConsiliumError as error:
            _log.error("study stopped", study=due.digest[:12], code=error.code, detail=str(error))
            if error.fault not in (errors.OPERATOR_UNWRITABLE, errors.OPERATOR_LOCKED, errors.SERVER_STOPPED):
                journal.enter(due.digest, State.ABORTED, str(error))
        finally:
            self._current = None

    def _stopped(self, digest: Digest) -> bool:
        return (self._config.studies / STOPPED / digest[:16]).exists()

    def _status(self) -> Mapping[str, object]:
        return {"study": self._current, "admitted": sorted(self._admitted)}


class _Connected:
    """Who is connected to the relay; see :class:`server.attendance.Attendance`."""

    def __init__(self, relay: Relay, stop: threading.Event) -> None:
        self._relay, self._stop = relay, stop

    def connection(self, node: int) -> str | None:
        """Return what names a node's present connection."""
        return self._relay.connection(node)

    def wait(self, seconds: float) -> bool:
        """Wait for news from any node; returns False once the server is to stop."""
        self._relay.wait(self._relay.told(), seconds)
        return not self._stop.is_set()


def _result(outcome: Outcome, digest: Digest) -> Mapping[str, object]:
    """Return what the study ended with, as numbers."""
    counts = outcome.counts
    return {
        "study": digest,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rounds": [
            {"round": done.round_index, "attempt": done.attempt, "sites": len(done.survivors), "norm": done.update_norm}
            for done in outcome.rounds
        ],
        "counts": None
        if counts is None
        else {"cells": [int(v) for v in counts.values], "sites": len(counts.survivors)},
        "not_evaluated": outcome.not_evaluated,
    }


@contextlib.contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[Path]:
    """Make a folder elsewhere and put it in its place when it is whole; a crash leaves nothing half done there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{_MAKING}*"):
        # Of a process that was killed here; the journal lets no other one in.
        shutil.rmtree(left, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=_MAKING, dir=folder.parent))
    try:
        yield made
        for path in (made, *made.rglob("*")):
            _sync(path)
        if folder.exists():
            shutil.rmtree(folder)
        os.rename(made, folder)
        _sync(folder.parent)
    except OSError as error:
        raise ConsiliumError(errors.RELEASE_INVALID, f"{folder}: {error.strerror}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _sync(path: Path) -> None:
    """Have a file, or a folder's own entries, on disk before what follows from it is."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
