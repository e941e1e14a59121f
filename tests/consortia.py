"""A consortium's folders with a history in them, as daemons would have left them, for tests of what people look at."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from client.config import SiteConfig
from client.egress import EgressEntry
from client.egress_log import EgressLog
from client.ledger import ChargeKey, SqliteLedger
from common import agreement as agreements
from common.agreement import SignedStudy, approve, sign
from common.identity import SiteId
from common.messages import OPERATOR, Stage
from common.privacy.accounting import EVALUATION_SCALE
from common.privacy.plan import PrivacyPlan
from common.study import Study, Unit
from server.audit import AuditLog
from server.config import ServerConfig
from server.guard import Call
from server.journal import SqlJournal, State
from server.progress import Ending, Progress, RoundRecord, StudyJournal
from simulations.network.consortium import Account, LaidOut, lay_out, publish
from simulations.network.rehearsal import NO_DATA
from tests.studies import fields

NOW = datetime.now(UTC).replace(microsecond=0)
SITES = tuple(map(SiteId, ("coast", "harbour", "hilltop", "lakeside", "northgate")))
HOSPITAL = SITES[2]
HOSTILE = '<script>document.title="taken"</script><img src="https://evil.example/p.png" onerror="alert(1)">'
_PASSPHRASE = "of a consortium that nobody runs"
_DIMENSION = 40


@dataclass(frozen=True)
class History:
    """Everybody's folders, and the studies in them by how they stand."""

    laid: LaidOut
    finished: Study
    running: Study
    aborted: Study
    offered: Study

    @property
    def operator(self) -> Path:
        return self.laid.server.parent

    @property
    def hospital(self) -> Path:
        return self.laid.sites[HOSPITAL].parent

    def copied(self, folder: Path) -> History:
        """Return a copy of all folders, to do something to."""
        shutil.copytree(self.laid.folder, folder, dirs_exist_ok=True)
        there = {site: folder / path.relative_to(self.laid.folder) for site, path in self.laid.sites.items()}
        server = folder / self.laid.server.relative_to(self.laid.folder)
        return replace(self, laid=replace(self.laid, folder=folder, server=server, sites=there))

    @contextmanager
    def held(self) -> Iterator[SqlJournal]:
        """Hold every store as running daemons do; yields the operator's journal."""
        site = SiteConfig.load(self.laid.sites[HOSPITAL])
        with ExitStack() as stack:
            journal = stack.enter_context(SqlJournal(ServerConfig.load(self.laid.server).journal_url))
            stack.enter_context(SqliteLedger(site.ledger_file, site.ledger.anchor))
            stack.enter_context(EgressLog(site.egress_file))
            yield journal


def history(folder: Path, *, title: str = "Discharge letters, 2027") -> History:
    """Make the folders; ``title`` is that of the study that is offered."""
    laid = lay_out(
        folder,
        SITES,
        port=9443,
        health=None,
        passphrase=_PASSPHRASE,
        account=Account(Unit.RECORD, 6.0, 1e-3),
        deadline=60.0,
        data=dict.fromkeys(SITES, NO_DATA),
        backbone="",
    )
    made = History(
        laid,
        _study(laid, "Triage notes: urgent or not", rounds=12),
        _study(laid, "Radiology reports: follow-up needed", rounds=20),
        _study(laid, "Referral letters by department", rounds=8),
        _study(laid, title, rounds=10),
    )
    for name, study in (("1-triage", made.finished), ("2-referrals", made.aborted), ("3-radiology", made.running)):
        publish(laid, study, name)
    _offer(made)
    clock = _Clock(NOW - timedelta(hours=9))
    with SqlJournal(ServerConfig.load(laid.server).journal_url, clock=clock) as journal:
        _finish(journal, made)
        _abort(journal, made)
        _run(journal, made, 7)
    _called(ServerConfig.load(laid.server).state / "audit.jsonl")
    _spent(made)
    return made


def files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Return every file below a folder with its bytes and its time."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


class _Clock:
    """Shows four minutes more whenever it is looked at."""

    def __init__(self, at: datetime) -> None:
        self._at = at

    def __call__(self) -> datetime:
        self._at += timedelta(minutes=4)
        return self._at


def _study(laid: LaidOut, title: str, *, rounds: int) -> Study:
    raw, _, _ = fields(
        kind="deployment",
        title=title,
        operator=laid.keys.operator.public_key.hex(),
        created=f"{NOW - timedelta(days=2):%Y-%m-%dT%H:%M:%SZ}",
        expires=f"{NOW + timedelta(days=300):%Y-%m-%dT%H:%M:%SZ}",
        purpose={"duo": ["DUO:0000006"], "statement": "Sort incoming texts, so that urgent ones are read first."},
        training={"rounds": rounds},
        privacy={"max_charges": rounds + 2, "noise_multiplier": 2.5, "sampling_rate": 0.05},
        evaluation={"noise_multiplier": 5.0},
        roster=[{"site": site, "key": laid.keys.sites[site].public_key.hex(), "band": 800} for site in sorted(SITES)],
    )
    return Study.from_fields(raw)


def _offer(made: History) -> None:
    """Publish a study that two sites have approved, and let it lie with the hospital for review."""
    study, operator = made.offered, made.laid.keys.operator
    signed: SignedStudy = sign(study, operator)
    given = tuple(approve(signed, site, made.laid.keys.sites[site], operator.public_key) for site in SITES[:2])
    agreements.write(made.operator / "offers" / "4-letters", signed, given)
    agreements.write(made.hospital / "offers" / study.digest[:16], signed, ())


def _rounds(study: StudyJournal, count: int) -> None:
    for number in range(count):
        survivors = tuple(
            site for site in SITES if (number, site) not in ((3, "coast"), (4, "coast"), (5, "northgate"))
        )
        vector = np.full(_DIMENSION, number, dtype=np.float32)
        norm = 2.6 * math.exp(-number / 6) + 0.25 * math.sin(3 * number) ** 2
        up, down = (size * len(survivors) for size in (61_400, 148_200))
        record = RoundRecord(number, int(number == 3), survivors, norm, up, down)
        study.keep(Progress(number + 1, 0, number + 1, under_way=False, vector=vector), record)


def _enqueued(journal: SqlJournal, made: History, study: Study) -> StudyJournal:
    folders = {path.name[0]: path for path in (made.operator / "studies").iterdir()}
    order = {made.finished.digest: "1", made.aborted.digest: "2", made.running.digest: "3"}
    journal.enqueue(*agreements.read(folders[order[study.digest]]))
    journal.enter(study.digest, State.RUNNING)
    return journal.of(study.digest)


def _finish(journal: SqlJournal, made: History) -> None:
    record = _enqueued(journal, made, made.finished)
    _rounds(record, 12)
    counts = np.array([612 * EVALUATION_SCALE, 521 * EVALUATION_SCALE], dtype=np.int64)
    record.end(Ending(counts, SITES, instance=13))
    journal.enter(made.finished.digest, State.FINISHED)
    (made.operator / "state" / "releases" / made.finished.digest[:16]).mkdir(parents=True)


def _abort(journal: SqlJournal, made: History) -> None:
    record = _enqueued(journal, made, made.aborted)
    _rounds(record, 2)
    journal.enter(made.aborted.digest, State.ABORTED, "CSL-602 coordinator: too few sites answered: 3 of 4")


def _run(journal: SqlJournal, made: History, rounds: int) -> None:
    _rounds(_enqueued(journal, made, made.running), rounds)


def _called(path: Path) -> None:
    """Write the calls of two days, of which yesterday's is not of the last day."""
    at = NOW.timestamp()
    kinds = (
        (900, "/v1/fleet/pull-messages", 200, 310, 900),
        (420, "/v1/fleet/send-node-heartbeat", 200, 180, 40),
        (130, "/v1/fleet/push-messages", 200, 61_400, 60),
        (24, "/v1/fleet/activate-node", 200, 200, 80),
        (9, "/v1/fleet/pull-messages", 401, 310, 30),
        (5, "/" + HOSTILE, 404, 0, 22),
        (3, "/v1/fleet/push-messages", 413, 0, 40),
    )
    with AuditLog(path) as log:
        log(Call(at - 40 * 3600, "192.0.2.9", "/v1/fleet/push-object", 1, 200, 10, 10, 0.1))
        made = [(at - 60 * number, kind) for kind in kinds for number in range(kind[0])]
        for when, (_, name, status, received, sent) in sorted(made):
            log(Call(when, "192.0.2.7", name, 1, status, received, sent, 0.01))


def _spent(made: History) -> None:
    """Have the hospital's ledger and egress log say what it did in the studies that ran."""
    site = SiteConfig.load(made.laid.sites[HOSPITAL])
    clock = _Clock(NOW - timedelta(hours=30))
    with (
        SqliteLedger(site.ledger_file, site.ledger.anchor, clock=clock) as ledger,
        EgressLog(site.egress_file, clock=clock) as log,
    ):
        number = 0
        for study, rounds in ((made.finished, 12), (made.aborted, 2), (made.running, 7)):
            ledger.join("default", study.digest, PrivacyPlan.for_site(study, HOSPITAL))
            for instance in range(1, rounds + 1):
                ledger.charge(ChargeKey("default", study.digest, Stage.FIT, instance, 0, bytes(32), SITES))
                for stage, size, guarantee in _REPLIES:
                    number += 1
                    log.payload(
                        EgressEntry(
                            number,
                            study.digest,
                            OPERATOR,
                            stage,
                            instance,
                            0,
                            {"secagg": size},
                            size + 300,
                            hashlib.sha256(bytes([number])).hexdigest(),
                            guarantee,
                        )
                    )
                    log.control("push-messages", size + 700, "127.0.0.1:9443")
                log.control("pull-messages", 310, "127.0.0.1:9443")


_REPLIES = (
    (Stage.PREPARE, 2_900, "public mask key; shares encrypted to peers"),
    (Stage.FIT, 58_000, "differentially private update, masked: only the sum over the cohort can be read"),
    (Stage.UNMASK, 700, "shares that open the sum and nothing else"),
)
