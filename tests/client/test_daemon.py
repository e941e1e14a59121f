"""A daemon answers for what was approved there and nothing else: one study at a time, one process a state."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.config import SiteConfig
from client.daemon import Daemon, alone
from client.egress import EgressEntry
from client.ledger import SqliteLedger
from client.site import Workload
from common import errors
from common.agreement import Agreement
from common.errors import ConsiliumError
from common.identity import SiteId
from common.link.inprocess import OPERATOR_NODE, RUN
from common.link.records import from_records, to_records
from common.messages import ANYONE, OPERATOR, Envelope, Stage, seal
from common.study import Kind, Study, Unit
from simulations.network.consortium import Account, LaidOut, lay_out, publish
from simulations.network.rehearsal import Rehearsed, dimension_of, rehearsal

SITES = [SiteId(f"site-{number}") for number in range(5)]
DATA = '[data]\nfolder="data"\nquery="SELECT 1"\n[data.columns]\ntext="t"\nlabel="l"\n'
NONCE = bytes(32)


@dataclass
class Hospital:
    """One site's daemon, what it made and what it let out."""

    laid: LaidOut
    config: SiteConfig
    ledger: SqliteLedger
    made: list[str] = field(default_factory=list)
    out: list[EgressEntry] = field(default_factory=list)
    failing: type[Exception] | None = None

    def daemon(self, kind: Kind = Kind.SIMULATION) -> Daemon:
        def make(agreed: Agreement) -> Workload:
            if self.failing is not None:
                raise self.failing
            self.made.append(agreed.study.title)
            return Rehearsed(dimension_of(agreed.study))

        identity = self.laid.keys.sites[SITES[0]]
        return Daemon(self.config, identity, make, self.ledger, record=self.out.append, kind=kind)

    def study(self, title: str, *, published: bool = True) -> Study:
        study = rehearsal(self.laid.keys, SITES, rounds=1, dimension=10, title=title)
        if published:
            publish(self.laid, study, title)
        return study

    def ask(self, daemon: Callable[[Message, Context], Message], study: Study) -> bool:
        """Ask who is there under a study; returns whether the site said so."""
        envelope = Envelope(study.digest, Stage.IDENTIFY, 0, 0, OPERATOR, ANYONE, {"nonce": NONCE})
        sealed = seal(envelope, self.laid.keys.operator)
        reply = daemon(message(to_records(sealed)), Context(RUN, 5, {}, RecordDict(), {}))
        if reply.has_error():
            assert reply.error.reason == "CSL-600 site: unavailable. Mend: ask the site"
            return False
        return from_records(reply.content).parts["nonce"] == NONCE


def message(content: RecordDict, kind: str = Stage.IDENTIFY.value) -> Message:
    made = Message(content, 5, kind)
    made.metadata.__dict__["_message_id"] = "asked"
    return made


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> LaidOut:
    """Return a consortium to copy: its keys take seconds to encrypt."""
    return lay_out(
        tmp_path_factory.mktemp("pattern") / "consortium",
        SITES,
        port=1,
        health=None,
        passphrase="a passphrase for tests",
        account=Account(Unit.RECORD, 500.0, 1e-3),
        deadline=60.0,
        data=dict.fromkeys(SITES, DATA),
        backbone="",
    )


@pytest.fixture
def hospital(pattern: LaidOut, tmp_path: Path) -> Iterator[Hospital]:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = RUN, RUN, OPERATOR_NODE
    folder = tmp_path / "consortium"
    shutil.copytree(pattern.folder, folder)
    laid = replace(
        pattern,
        folder=folder,
        server=folder / pattern.server.relative_to(pattern.folder),
        sites={site: folder / file.relative_to(pattern.folder) for site, file in pattern.sites.items()},
    )
    config = SiteConfig.load(laid.sites[SITES[0]])
    with SqliteLedger(config.ledger_file, config.ledger.anchor) as ledger:
        yield Hospital(laid, config, ledger)


def test_a_study_that_was_approved_is_opened_once_and_answered(hospital: Hospital) -> None:
    study, daemon = hospital.study("one"), hospital.daemon()
    assert hospital.ask(daemon, study)
    assert hospital.ask(daemon, study)
    assert hospital.made == ["one"]
    assert len(hospital.out) == 1
    daemon.close()


def test_a_study_that_was_not_approved_makes_no_model(hospital: Hospital) -> None:
    study, daemon = hospital.study("one", published=False), hospital.daemon()
    assert not hospital.ask(daemon, study)
    assert (hospital.made, hospital.out) == ([], [])


def test_a_hospitals_own_daemon_refuses_a_simulation(hospital: Hospital) -> None:
    study, daemon = hospital.study("one"), hospital.daemon(Kind.DEPLOYMENT)
    assert not hospital.ask(daemon, study)
    assert (hospital.made, hospital.out) == ([], [])


def test_an_approval_that_is_missing_is_enough_to_refuse(hospital: Hospital) -> None:
    study, daemon = hospital.study("one"), hospital.daemon()
    file = hospital.config.studies / study.digest[:16] / "signatures.json"
    file.write_text(file.read_text().replace("site-3", "site-9"))
    assert not hospital.ask(daemon, study)
    assert hospital.made == []


def test_another_study_takes_the_place_of_the_one_in_work_and_gives_it_back(hospital: Hospital) -> None:
    first, second, daemon = hospital.study("first"), hospital.study("second"), hospital.daemon()
    for study in (first, second, first):
        assert hospital.ask(daemon, study)
    # What was answered before is answered from the files, though the model is made again.
    assert hospital.made == ["first", "second", "first"]
    assert len(hospital.out) == 2
    daemon.close()
    assert {path.name.split(".", 1)[1] for path in hospital.config.state.glob("*.sqlite")} >= {
        "journal.sqlite",
        "outbox.sqlite",
    }


def test_a_folder_that_is_no_study_keeps_no_other_from_running(hospital: Hospital) -> None:
    study, daemon = hospital.study("zebra"), hospital.daemon()
    for name, content in (("!a", b"{"), ("!b", b""), ("!c", b"\xff" * 100)):
        broken = hospital.config.studies / name
        shutil.copytree(hospital.config.studies / study.digest[:16], broken)
        (broken / "study.json").write_bytes(content)
    assert hospital.ask(daemon, study)
    daemon.close()


@pytest.mark.parametrize("failure", [RuntimeError, LookupError, MemoryError])
def test_a_model_that_cannot_be_made_is_unavailable_and_may_be_made_later(
    hospital: Hospital, failure: type[Exception]
) -> None:
    study, daemon = hospital.study("one"), hospital.daemon()
    hospital.failing = failure
    assert not hospital.ask(daemon, study)
    hospital.failing = None
    assert hospital.ask(daemon, study)
    daemon.close()


@pytest.mark.parametrize("kind", ["query.identify", "query.run", "train", "evaluate.anything"])
def test_what_cannot_be_read_or_has_no_stage_is_unavailable(hospital: Hospital, kind: str) -> None:
    study, daemon = hospital.study("one"), hospital.daemon()
    envelope = Envelope(study.digest, Stage.IDENTIFY, 0, 0, OPERATOR, ANYONE, {"nonce": NONCE})
    content = to_records(seal(envelope, hospital.laid.keys.operator)) if kind != "query.identify" else RecordDict()
    reply = daemon(message(content, kind), Context(RUN, 5, {}, RecordDict(), {}))
    assert reply.has_error()
    assert hospital.out == []
    daemon.close()


def test_the_study_that_was_made_last_is_opened_before_it_is_asked_for(hospital: Hospital) -> None:
    hospital.study("one")
    daemon = hospital.daemon()
    daemon.warm()
    assert hospital.made == ["one"]
    daemon.close()


def test_a_daemon_without_a_study_is_warm_at_once(hospital: Hospital) -> None:
    hospital.daemon().warm()
    shutil.rmtree(hospital.config.studies)
    hospital.daemon().warm()
    assert hospital.made == []


def test_a_state_folder_has_one_process(tmp_path: Path) -> None:
    with alone(tmp_path / "state"):
        with pytest.raises(ConsiliumError) as raised, alone(tmp_path / "state"):
            pass
        assert raised.value.fault is errors.SITE_RUNNING
    with alone(tmp_path / "state"):
        pass
