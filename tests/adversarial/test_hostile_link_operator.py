"""An operator that asks over the link for what was not agreed: the daemon is unavailable, charges and logs nothing.

The operator here holds its own key, so that what it swaps is signed by it where a signature is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from client.config import SiteConfig
from client.daemon import Daemon
from client.egress_log import EgressLog
from client.ledger import SqliteLedger
from common.identity import Identity, Signature, SiteId
from common.link.records import from_records, to_records
from common.link.relay import FleetGrid
from common.messages import ANYONE, OPERATOR, Envelope, Sealed, Stage, seal
from common.parts import Digest
from common.payloads import dump_round, dump_vector
from common.study import Kind, Study, Unit
from simulations.network.consortium import Account, LaidOut, lay_out, publish
from simulations.network.rehearsal import Rehearsed, rehearsal
from tests.links import Link, Member, ask, echo, linked

SITES = [SiteId(f"site-{number}") for number in range(5)]
DIMENSION, ROUNDS = 10, 2
NONCE = bytes(range(32))
DATA = '[data]\nfolder="data"\nquery="SELECT 1"\n[data.columns]\ntext="t"\nlabel="l"\n'


@dataclass
class Scene:
    """One site's daemon behind its link, and an operator that says what it likes."""

    link: Link
    grid: FleetGrid
    member: Member
    laid: LaidOut
    study: Study
    ledger: SqliteLedger
    record: Path

    def envelope(self, stage: Stage = Stage.IDENTIFY, **changes: Any) -> Envelope:
        recipient = ANYONE if stage is Stage.IDENTIFY else SITES[0]
        made = Envelope(self.study.digest, stage, 1, 0, OPERATOR, recipient, {"nonce": NONCE})
        return replace(made, **changes)

    def sealed(self, envelope: Envelope, by: Identity | None = None) -> Sealed:
        return seal(envelope, by or self.laid.keys.operator)

    def say(self, content: RecordDict, kind: str = Stage.IDENTIFY.value) -> Message | None:
        """Ask, and return the reply unless it is the one error that the operator may see."""
        replies = list(self.grid.send_and_receive([Message(content, self.member.node, kind)], timeout=20.0))
        assert len(replies) == 1
        if not replies[0].has_error():
            return replies[0]
        assert replies[0].error.reason == "CSL-600 site: unavailable. Mend: ask the site"
        return None

    def payloads(self) -> int:
        """Return how many replies the egress log has."""
        return self.record.read_bytes().count(b'"kind":"payload"')


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("operator")
    laid = lay_out(
        folder / "consortium",
        SITES,
        port=1,
        health=None,
        passphrase="a passphrase for tests",
        account=Account(Unit.RECORD, 200.0, 1e-3),
        deadline=60.0,
        data=dict.fromkeys(SITES, DATA),
        backbone="",
    )
    study = rehearsal(laid.keys, SITES, rounds=ROUNDS, dimension=DIMENSION)
    publish(laid, study)
    config = SiteConfig.load(laid.sites[SITES[0]])
    with (
        linked(folder) as link,
        link.relay.run() as grid,
        SqliteLedger(config.ledger_file, config.ledger.anchor) as ledger,
        EgressLog(folder / "egress.log") as egress,
    ):
        identity = laid.keys.sites[SITES[0]]
        daemon = Daemon(
            config, identity, lambda _: Rehearsed(DIMENSION), ledger, record=egress.payload, kind=Kind.SIMULATION
        )
        member = link.admitted(SITES[0])
        with link.serving(member, daemon):
            yield Scene(link, grid, member, laid, study, ledger, folder / "egress.log")
        daemon.close()


def answered(scene: Scene) -> bytes:
    """Return what the site says to the one request that is as agreed."""
    reply = scene.say(to_records(scene.sealed(scene.envelope())))
    assert reply is not None
    sealed = from_records(reply.content)
    assert sealed.parts["nonce"] == NONCE
    return sealed.header + bytes(sealed.signature)


Content = Callable[[Scene], RecordDict]


def fit(**changes: bytes) -> Content:
    def content(scene: Scene) -> RecordDict:
        parts = {"secagg": b"{}", "vector": dump_vector(np.zeros(DIMENSION, np.float32)), "round": dump_round(0)}
        return to_records(scene.sealed(scene.envelope(Stage.FIT, parts={**parts, **changes})))

    return content


def changed(**fields: Any) -> Content:
    return lambda scene: to_records(scene.sealed(scene.envelope(**fields)))


def swapped_study(scene: Scene) -> RecordDict:
    other = rehearsal(scene.laid.keys, SITES, rounds=ROUNDS + 1, dimension=DIMENSION)
    return to_records(scene.sealed(scene.envelope(study=other.digest)))


def swapped_roster(scene: Scene) -> RecordDict:
    other = rehearsal(scene.laid.keys, SITES[:4], rounds=ROUNDS, dimension=DIMENSION)
    return to_records(scene.sealed(scene.envelope(study=other.digest)))


def unsigned(scene: Scene) -> RecordDict:
    return to_records(replace(scene.sealed(scene.envelope()), signature=Signature(bytes(64))))


def another_key(scene: Scene) -> RecordDict:
    return to_records(scene.sealed(scene.envelope(), Identity.generate()))


def another_sites_key(scene: Scene) -> RecordDict:
    return to_records(scene.sealed(scene.envelope(), scene.laid.keys.sites[SITES[1]]))


def swapped_part(scene: Scene) -> RecordDict:
    return to_records(replace(scene.sealed(scene.envelope()), parts={"nonce": bytes(32)}))


def with_code(scene: Scene) -> RecordDict:
    content = to_records(scene.sealed(scene.envelope()))
    content["fab"] = ConfigRecord({"hash": "0" * 64, "content": b"PK\x03\x04"})
    return content


def with_metrics(scene: Scene) -> RecordDict:
    content = to_records(scene.sealed(scene.envelope()))
    content["parts"] = MetricRecord({"loss": 1.0})
    return content


def with_a_pickle(scene: Scene) -> RecordDict:
    content = to_records(scene.sealed(scene.envelope()))
    pickled = b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(128) + b"cos\n."
    content["parts"] = ArrayRecord({"vector": Array("object", (1,), "numpy.ndarray", pickled)})
    return content


def with_another_field(scene: Scene) -> RecordDict:
    content = to_records(scene.sealed(scene.envelope()))
    envelope = content["consilium"]
    assert isinstance(envelope, ConfigRecord)
    envelope["command"] = "export"
    return content


REQUESTS: dict[str, Content] = {
    "nothing": lambda _scene: RecordDict(),
    "a study that was not approved": swapped_study,
    "another roster": swapped_roster,
    "a digest of nothing": changed(study=Digest("0" * 64)),
    "unsigned": unsigned,
    "signed by a stranger": another_key,
    "signed by another site": another_sites_key,
    "a part that was not signed": swapped_part,
    "as another sender": changed(sender="site-1"),
    "for another site": changed(recipient="site-1"),
    "code beside the request": with_code,
    "metrics beside the request": with_metrics,
    "a pickle beside the request": with_a_pickle,
    "a field beside the request": with_another_field,
}
FITS: dict[str, Content] = {
    "no epoch": fit(),
    "another model": fit(vector=dump_vector(np.zeros(DIMENSION + 1, np.float32))),
    "not finite": fit(vector=np.full(DIMENSION, np.nan, "<f4").tobytes()),
    "a round after the last": fit(round=dump_round(ROUNDS)),
    "a round that is no number": fit(round=b"first"),
}


@pytest.mark.parametrize(
    ("content", "kind"),
    [(content, Stage.IDENTIFY.value) for content in REQUESTS.values()]
    + [(content, Stage.FIT.value) for content in FITS.values()]
    + [(changed(), Stage.FIT.value), (fit(), Stage.COUNTS.value), (fit(), Stage.IDENTIFY.value)],
    ids=[*REQUESTS, *FITS, "identify as fit", "fit as counts", "fit as identify"],
)
def test_what_was_not_agreed_is_unavailable_and_nothing_is_charged_or_logged(
    scene: Scene, content: Content, kind: str
) -> None:
    answered(scene)
    before = scene.payloads(), scene.ledger.charges(scene.study.digest), scene.ledger.head()
    assert scene.say(content(scene), kind) is None
    assert (scene.payloads(), scene.ledger.charges(scene.study.digest), scene.ledger.head()) == before


@pytest.mark.parametrize("kind", ["query", "query.run", "train", "train.shell", "evaluate"])
def test_a_kind_of_message_that_no_stage_has_is_unavailable(scene: Scene, kind: str) -> None:
    before = scene.payloads(), scene.ledger.head()
    assert scene.say(to_records(scene.sealed(scene.envelope())), kind) is None
    assert (scene.payloads(), scene.ledger.head()) == before


def test_an_old_request_is_answered_with_the_very_same_bytes_and_no_second_line(scene: Scene) -> None:
    first = answered(scene)
    lines = scene.payloads()
    assert answered(scene) == first
    assert scene.payloads() == lines


def test_a_run_with_code_ships_none(tmp_path: Path) -> None:
    with linked(tmp_path) as link, link.relay.run() as grid:
        run = link.relay.state.run_ids[grid.run.run_id].run
        run.fab_id, run.fab_hash, run.override_config = "evil/app", "0" * 64, {"command": "export"}
        north = link.admitted("north")
        with link.serving(north, echo("north")):
            assert ask(grid, [north.node], "here?") == {north.node: "north: here?"}
        assert not {call.path for call in link.calls} & {"/v1/fleet/get-run", "/v1/fleet/get-fab"}
        assert {call.status for call in link.calls} == {200}
