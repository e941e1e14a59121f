"""The hospital's process: which approved study a request belongs to, and the one site that answers it.

A study runs here only if its folder holds the operator's signature and every site's approval. The study in work stays
open with its model; another one takes its place. Everything else about the link is :mod:`common.link.node`'s affair.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from client.config import SiteConfig
from client.egress import EgressEntry
from client.fetching import Fetching, cache_folder
from client.gate import Gate
from client.journal import SqliteJournal
from client.ledger import Ledger
from client.offers import STAGES, Offers
from client.outbox import SqliteOutbox
from client.policy import violations
from client.released import keep_vector
from client.shelf import is_running
from client.site import Site, SiteLog, Workload
from common import agreement as agreements
from common import errors
from common.agreement import Agreement, verify_agreement
from common.errors import ConsiliumError
from common.identity import Identity
from common.link.records import from_records, to_records
from common.logs import log
from common.messages import Stage, peek_study
from common.parts import Digest
from common.secagg import Terms as AggregationTerms
from common.study import Kind

_log = log("consilium.daemon")
_KEPT = 100
"""Entries in memory; the files hold all."""


@dataclass(slots=True)
class _Open:
    app: ClientApp
    close: contextlib.ExitStack


class Daemon:
    """Answers Flower messages for one hospital.

    make    makes what a site computes under a study: its model and records
    ledger  the hospital's own, over all studies
    record  told of everything that leaves before it does
    kind    of the studies that are run; a hospital's daemon refuses simulations (RULES 15)
    current returns the site's file as it is now: its policy and its verified peers are read anew as a study is opened
    """

    def __init__(
        self,
        config: SiteConfig,
        identity: Identity,
        make: Callable[[Agreement], Workload],
        ledger: Ledger,
        *,
        record: Callable[[EgressEntry], None],
        kind: Kind = Kind.DEPLOYMENT,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        current: Callable[[], SiteConfig] | None = None,
    ) -> None:
        self._current = current or (lambda: config)
        self._config, self._identity, self._make, self._ledger = config, identity, make, ledger
        self._record, self._kind, self._clock = record, kind, clock
        self._open: dict[Digest, _Open] = {}
        self._fetching: Fetching | None = None
        self._offers = Offers(
            config.site_id,
            identity,
            ledger,
            config.operator_key,
            config.offers,
            config.studies,
            record=record,
            kind=kind,
            clock=clock,
        )

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer one message; whatever is wrong stays in the log here, and the operator sees ``unavailable``."""
        try:
            sealed = from_records(message.content)
            digest, stage = peek_study(sealed), Stage(message.metadata.message_type)
            if stage in STAGES:
                return Message(to_records(self._offers.answer(stage, sealed)), reply_to=message)
            fetching = self._fetched(digest)
            reply = None if fetching is None else fetching.answer(stage, sealed)
            if reply is not None:
                return Message(to_records(reply), reply_to=message)
            return self._app(digest)(message, context)
        except ConsiliumError as error:
            _log.warning("refused", code=error.code, detail=str(error))
        except Exception:
            _log.exception("failed")
        return Message(Error(600, str(ConsiliumError(errors.SITE_UNAVAILABLE))), reply_to=message)

    def warm(self) -> None:
        """Open the study that was approved last, so that its first request does not wait for a model."""
        for agreed in sorted(self._approved(), key=lambda found: found.study.created)[-1:]:
            try:
                if self._fetched(agreed.digest) is None:
                    self._app(agreed.digest)
            except ConsiliumError as error:
                _log.warning("not ready", study=agreed.digest[:12], code=error.code, detail=str(error))

    def close(self) -> None:
        """Let go of the study in work."""
        while self._open:
            self._open.popitem()[1].close.close()

    def _app(self, digest: Digest) -> ClientApp:
        """Return the app of the site under a study, opened now if need be; raises what keeps it from running here."""
        if digest not in self._open:
            agreed = self._agreed(digest)
            self.close()
            self._open[digest] = self._opened(agreed)
            _log.info("study opened", study=digest[:12], title=agreed.study.title)
        return self._open[digest].app

    def _fetched(self, digest: Digest) -> Fetching | None:
        """Return who answers for a study while its backbone comes from the operator; None where that is not so."""
        source = self._config.backbone
        if digest in self._open or source is None or not source.from_operator:
            return None
        if self._fetching is None or self._fetching.digest != digest:
            agreed = self._agreed(digest)
            self._gate(agreed)
            self._fetching = Fetching(
                agreed,
                self._config.site_id,
                self._identity,
                self._ledger,
                cache_folder(self._config.backbones_folder, agreed.study.backbone),
                record=self._record,
                clock=self._clock,
            )
        return None if self._fetching.is_complete else self._fetching

    def _agreed(self, digest: Digest) -> Agreement:
        for found in self._approved():
            if found.digest == digest:
                return found
        raise ConsiliumError(errors.STUDY_NOT_APPROVED, f"no study {digest[:12]} is approved here")

    def _opened(self, agreed: Agreement) -> _Open:
        config, name = self._config, agreed.digest[:16]
        gate, verified = self._gate(agreed), self._current().verified_in(agreed.study)
        # Before a model is made: this is the one reason that a person here mends while the daemon runs.
        AggregationTerms.from_study(agreed.study).check_reachable(config.site_id, verified)
        with contextlib.ExitStack() as stack:
            config.state.mkdir(mode=0o700, parents=True, exist_ok=True)
            journal = stack.enter_context(
                SqliteJournal(config.state / f"{name}.journal.sqlite", agreed.digest, config.site_id)
            )
            outbox = stack.enter_context(
                SqliteOutbox(config.state / f"{name}.outbox.sqlite", agreed.digest, config.site_id)
            )
            site = Site(
                agreed,
                config.site_id,
                self._identity,
                self._make(agreed),
                self._ledger,
                verified=verified,
                account=config.account,
                clock=self._clock,
                journal=journal,
                outbox=outbox,
                record=self._record,
                log=SiteLog(egress=deque(maxlen=_KEPT), incidents=deque(maxlen=_KEPT)),
                permit=gate,
                keep=lambda raw: self._keep(agreed.digest, raw),
            )
            return _Open(site.app(), stack.pop_all())

    def _keep(self, digest: Digest, raw: bytes) -> None:
        """Keep the vector that was evaluated, for this site's own verdict; a full disk costs that and no round."""
        try:
            keep_vector(self._config.state, digest, raw)
        except OSError as error:
            _log.warning("released vector not kept", study=digest[:12], detail=error.strerror)

    def _gate(self, agreed: Agreement) -> Gate:
        """Return what each request has to pass; raises CSL-160 for a study that the policy forbids altogether."""
        policy = self._current().policy
        config, study = self._config.model_copy(update={"policy": policy}), agreed.study
        found = violations(study, config, book=None, now=self._clock(), kind=self._kind)
        if found or config.policy is None:
            raise ConsiliumError(errors.POLICY_FORBIDS, "; ".join(map(str, found)))
        return Gate(
            config.policy,
            study,
            config.state,
            is_here=lambda: is_running(config.studies, agreed.digest),
            clock=self._clock,
        )

    def _approved(self) -> Iterator[Agreement]:
        """Yield every study in the folder that may run here; one that may not is said so in the log."""
        if not self._config.studies.is_dir():
            return
        for folder in sorted(self._config.studies.iterdir()):
            # A name with a dot is a folder that is being made.
            if folder.name.startswith(".") or not (folder / "study.json").is_file():
                continue
            try:
                signed, approvals = agreements.read(folder)
                yield verify_agreement(signed, approvals, self._config.operator_key, now=self._clock(), kind=self._kind)
            except ConsiliumError as error:
                _log.warning("study refused", folder=folder.name, code=error.code, detail=str(error))


@contextlib.contextmanager
def alone(state: Path) -> Iterator[None]:
    """Hold a state folder against every other process; raises CSL-604 where another holds it."""
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(state / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConsiliumError(errors.SITE_RUNNING, str(state)) from error
        yield
    finally:
        os.close(handle)


def is_held(state: Path) -> bool:
    """Return whether a daemon runs on a state folder."""
    try:
        with alone(state):
            return False
    except ConsiliumError:
        return True
