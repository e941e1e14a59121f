"""Sites that lack the backbone get it from the operator, each at its own pace, and nothing but what the study names."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from client.config import SiteConfig
from client.daemon import Daemon
from client.fetching import cache_folder
from client.ledger import MemoryLedger
from common import agreement as agreements
from common import errors
from common.backbone import load
from common.chunks import CHUNK, CHUNK_BYTES, NEED, PLACE, SIZE, Place, dump_size
from common.errors import ConsiliumError
from common.identity import SiteId, fingerprint
from common.link.inprocess import OPERATOR_NODE, RUN, InProcessGrid
from common.link.records import from_records, to_records
from common.messages import OPERATOR, Envelope, Stage, seal
from common.payloads import LEDGER_BYTES, LEDGER_PART
from common.study import Kind
from server.attendance import Deadline, Everyone
from server.conduct import Conduct
from server.coordinator import Coordinator
from server.correspondence import Correspondence
from server.distribution import Distribution, Turn
from server.witnesses import MemoryWitnesses
from tests.encoders import write_encoder
from tests.federations import DIMENSION, KnownWorkload
from tests.policies import OPEN
from tests.sitefile import opening
from tests.studies import NOW, Signed, signed_study

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * (CHUNK_BYTES // 100), "tokenizer.json": b"[]"}
WEIGHTS = 1
SITES = [SiteId(f"site-{number:03d}") for number in range(4)]
TURN = Turn(instance=1, attempt=0, seconds=60.0, timeout=60.0)
Answer = Callable[[Mapping[str, bytes]], Mapping[str, bytes] | None]
"""From a request's parts to the reply's; None refuses."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "backbone"
    made.mkdir()
    for name, content in FILES.items():
        (made / name).write_bytes(content)
    return made


@pytest.fixture(scope="module")
def signed() -> Signed:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    return signed_study(backbone={"files": digests}, training={"rounds": 1})


def daemon_of(signed: Signed, site: SiteId, home: Path, source: str, made: list[SiteId]) -> Daemon:
    """Return a hospital's daemon that approved the study; ``made`` grows when its workload is."""
    agreements.write(home / "studies" / "one", signed.signed, signed.approvals)
    peers = "\n".join(
        f'{other} = "{fingerprint(identity.public_key)}"' for other, identity in signed.sites.items() if other != site
    )
    (home / "site.toml").write_text(f"""{opening(site, signed.operator.public_key.hex())}[data]
folder = "data"
query = "SELECT 1"
columns = {{ text = "t", label = "l" }}
[backbone]
{source}
{OPEN}
[verified]
{peers}
""")

    def make(_: object) -> KnownWorkload:
        made.append(site)
        return KnownWorkload(np.full(DIMENSION, 0.01, dtype=np.float32), np.array([3, 2], dtype=np.int64))

    return Daemon(
        SiteConfig.load(home / "site.toml"),
        signed.sites[site],
        make,
        MemoryLedger(),
        record=lambda _: None,
        kind=Kind.SIMULATION,
        clock=lambda: NOW,
    )


def test_sites_without_a_backbone_are_in_the_first_epoch(folder: Path, signed: Signed, tmp_path: Path) -> None:
    made: list[SiteId] = []
    sources = [f'folder = "{folder}"', "from_operator = true", "from_operator = true", "from_operator = true"]
    daemons = [
        daemon_of(signed, site, tmp_path / site, source, made) for site, source in zip(SITES, sources, strict=True)
    ]
    for daemon in daemons:
        daemon.warm()
    assert made == SITES[:1]
    coordinator = Coordinator(
        signed.agreement,
        signed.operator,
        np.zeros(DIMENSION, dtype=np.float32),
        witnesses=MemoryWitnesses(),
        conduct=Conduct(deadline=Deadline(600.0), backbone=lambda: folder),
    )
    # A daemon stands where Flower would put a ClientApp, as it does behind a link.
    outcome = coordinator.run(
        InProcessGrid({OPERATOR_NODE + 1 + place: cast(ClientApp, daemon) for place, daemon in enumerate(daemons)})
    )
    assert [record.survivors for record in outcome.rounds] == [tuple(SITES)]
    assert outcome.counts is not None
    assert sorted(made) == SITES
    for site in SITES[1:]:
        cache = cache_folder(tmp_path / site / "state" / "backbones", signed.study.backbone)
        assert {path.name: path.read_bytes() for path in cache.iterdir()} == FILES
    for daemon in daemons:
        daemon.close()


def test_a_backbone_without_a_tokeniser_arrives_too_and_can_be_loaded(tmp_path: Path) -> None:
    manifest = write_encoder(tmp_path / "backbone", "vit", layers=2)
    assert "preprocessor_config.json" in manifest.files
    signed = signed_study(backbone=manifest.model_dump(mode="json"), training={"rounds": 1})
    made: list[SiteId] = []
    daemons = [daemon_of(signed, site, tmp_path / site, "from_operator = true", made) for site in SITES]
    coordinator = Coordinator(
        signed.agreement,
        signed.operator,
        np.zeros(DIMENSION, dtype=np.float32),
        witnesses=MemoryWitnesses(),
        conduct=Conduct(deadline=Deadline(600.0), backbone=lambda: tmp_path / "backbone"),
    )
    coordinator.run(
        InProcessGrid({OPERATOR_NODE + 1 + place: cast(ClientApp, daemon) for place, daemon in enumerate(daemons)})
    )
    assert sorted(made) == SITES
    for site in SITES:
        cache = cache_folder(tmp_path / site / "state" / "backbones", manifest)
        assert load(cache, manifest).tokenizer is None
    for daemon in daemons:
        daemon.close()


class Late(Everyone):
    """Everyone but one site, which connects when it is told to."""

    def __init__(self, node: int) -> None:
        self.node, self.is_here = node, False

    def connection(self, node: int) -> str | None:
        return None if node == self.node and not self.is_here else super().connection(node)


def test_a_site_that_is_late_gets_its_backbone_before_its_first_epoch(folder: Path, tmp_path: Path) -> None:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}
    signed = signed_study(5, backbone={"files": digests}, training={"rounds": 2})
    *others, late = sorted(signed.sites)
    made: list[SiteId] = []
    sources = dict.fromkeys(others, f'folder = "{folder}"') | {late: "from_operator = true"}
    daemons = [daemon_of(signed, site, tmp_path / site, source, made) for site, source in sources.items()]
    attendance = Late(OPERATOR_NODE + len(daemons))

    def after_a_round(_record: object, _vector: object) -> None:
        assert (late in made) is attendance.is_here
        attendance.is_here = True

    coordinator = Coordinator(
        signed.agreement,
        signed.operator,
        np.zeros(DIMENSION, dtype=np.float32),
        witnesses=MemoryWitnesses(),
        on_round=after_a_round,
        conduct=Conduct(deadline=Deadline(600.0), attendance=attendance, backbone=lambda: folder),
    )
    outcome = coordinator.run(
        InProcessGrid({OPERATOR_NODE + 1 + place: cast(ClientApp, daemon) for place, daemon in enumerate(daemons)})
    )
    assert [record.survivors for record in outcome.rounds] == [tuple(others), (*others, late)]
    for daemon in daemons:
        daemon.close()


class Sites:
    """Sites that answer as they are told to, and what they were asked."""

    def __init__(self, signed: Signed, answers: Mapping[SiteId, Answer]) -> None:
        self.signed = signed
        self.asked: list[tuple[SiteId, Mapping[str, bytes]]] = []
        self.nodes = {site: OPERATOR_NODE + 1 + place for place, site in enumerate(answers)}
        self.grid = InProcessGrid({self.nodes[site]: self._app(site, answer) for site, answer in answers.items()})
        self.witnesses = MemoryWitnesses()
        self.letters = Correspondence(signed.study, signed.study.digest, signed.operator, self.witnesses)

    def distribution(self, source: Callable[[], Path], needs: Mapping[SiteId, Place]) -> Distribution:
        made = Distribution(self.signed.study.backbone, self.letters, source)
        for site, place in needs.items():
            made.learn(site, place.dump())
        return made

    def _app(self, site: SiteId, answer: Answer) -> ClientApp:
        app = ClientApp()

        @app.query("backbone")
        def chunk(message: Message, context: Context) -> Message:
            del context
            request = from_records(message.content)
            self.asked.append((site, request.parts))
            parts = answer(request.parts)
            if parts is None:
                return Message(Error(600, "unavailable"), reply_to=message)
            envelope = Envelope(
                self.signed.study.digest,
                Stage.BACKBONE,
                TURN.instance,
                TURN.attempt,
                site,
                OPERATOR,
                {**parts, LEDGER_PART: bytes(LEDGER_BYTES)},
            )
            return Message(to_records(seal(envelope, self.signed.sites[site])), reply_to=message)

        return app


def wanting(*places: Place) -> Answer:
    """Return an answer that wants one place after the other, and then nothing more."""
    left = [*places]
    return lambda _: {NEED: left.pop(0).dump()} if left else {}


def nothing_more(_: Mapping[str, bytes]) -> Mapping[str, bytes]:
    return {}


def test_the_bytes_are_those_at_the_place_that_was_asked_for(folder: Path, signed: Signed) -> None:
    size, site = len(FILES["model.safetensors"]), SITES[0]
    places = [Place(WEIGHTS, 0), Place(WEIGHTS, 12345), Place(WEIGHTS, size - 7), Place(WEIGHTS, size), Place(2, 0)]
    beyond = Place(WEIGHTS, size + 1)
    sites = Sites(signed, {site: wanting(*places[1:], beyond)})
    distribution = sites.distribution(lambda: folder, {site: places[0]})
    assert distribution.feed(sites.grid, sites.nodes, TURN)
    assert not distribution.lacks(site)
    assert [parts[PLACE] for _, parts in sites.asked] == [place.dump() for place in [*places, beyond]]
    for (_, parts), place in zip(sites.asked, [*places, beyond], strict=True):
        content = FILES[sorted(FILES)[place.file]]
        assert parts[CHUNK] == content[place.offset : place.offset + CHUNK_BYTES]
        assert parts[SIZE] == dump_size(len(content))


def test_bytes_that_are_not_the_manifests_stop_the_study_before_any_is_sent(folder: Path, signed: Signed) -> None:
    (folder / "tokenizer.json").write_bytes(b"[0]")
    sites = Sites(signed, {SITES[0]: nothing_more})
    distribution = sites.distribution(lambda: folder, {SITES[0]: Place(0, 0)})
    with pytest.raises(ConsiliumError) as caught:
        distribution.feed(sites.grid, sites.nodes, TURN)
    assert caught.value.code == "CSL-302"
    assert sites.asked == []


def test_an_operator_without_a_backbone_is_asked_for_it_only_when_a_site_lacks_it(signed: Signed) -> None:
    def nowhere() -> Path:
        raise ConsiliumError(errors.BACKBONE_MISSING, "none")

    sites = Sites(signed, {SITES[0]: nothing_more})
    assert not sites.distribution(nowhere, {}).feed(sites.grid, sites.nodes, TURN)
    with pytest.raises(ConsiliumError) as caught:
        sites.distribution(nowhere, {SITES[0]: Place(0, 0)}).feed(sites.grid, sites.nodes, TURN)
    assert caught.value.code == "CSL-301"


@pytest.mark.parametrize("need", [b"", bytes(15), bytes(17), bytes(7) + b"\x03" + bytes(8), b"\xff" * 16])
def test_what_is_no_place_in_the_manifest_is_not_learnt(folder: Path, signed: Signed, need: bytes) -> None:
    answer: Answer = lambda _: {NEED: need}  # noqa: E731
    sites = Sites(signed, {SITES[0]: answer})
    distribution = sites.distribution(lambda: folder, {})
    with pytest.raises(ConsiliumError) as caught:
        distribution.learn(SITES[0], need)
    assert caught.value.code == "CSL-130"
    assert not distribution.lacks(SITES[0])
    distribution.learn(SITES[0], Place(0, 0).dump())
    assert not distribution.feed(sites.grid, sites.nodes, TURN)
    assert len(sites.asked) == 1


def test_a_site_that_is_slow_holds_no_other_back(folder: Path, signed: Signed) -> None:
    others_are_done = threading.Event()

    def slow(_: Mapping[str, bytes]) -> Mapping[str, bytes]:
        assert others_are_done.wait(60.0)
        return {}

    others = wanting(*(Place(WEIGHTS, offset) for offset in range(20)))

    def quick(parts: Mapping[str, bytes]) -> Mapping[str, bytes] | None:
        answer = others(parts)
        if not answer:
            others_are_done.set()
        return answer

    sites = Sites(signed, {SITES[0]: slow, SITES[1]: quick})
    distribution = sites.distribution(lambda: folder, dict.fromkeys(SITES[:2], Place(0, 0)))
    assert distribution.feed(sites.grid, sites.nodes, TURN)
    assert not any(distribution.lacks(site) for site in SITES)


def test_a_site_that_refuses_is_let_alone_for_a_while_and_the_rest_is_served(folder: Path, signed: Signed) -> None:
    sites = Sites(signed, {SITES[0]: lambda _: None, SITES[1]: wanting(Place(0, 1))})
    distribution = sites.distribution(lambda: folder, dict.fromkeys(SITES[:2], Place(0, 0)))
    assert distribution.feed(sites.grid, sites.nodes, TURN)
    assert not distribution.feed(sites.grid, sites.nodes, TURN)
    assert [site for site, _ in sites.asked].count(SITES[0]) == 1
    assert [distribution.lacks(site) for site in SITES[:2]] == [True, False]


def test_nothing_is_sent_to_who_is_not_connected_or_lacks_nothing_or_when_there_is_no_time(
    folder: Path, signed: Signed
) -> None:
    sites = Sites(signed, dict.fromkeys(SITES[:2], nothing_more))
    distribution = sites.distribution(lambda: folder, {SITES[0]: Place(0, 0)})
    only_the_other = {SITES[1]: sites.nodes[SITES[1]]}
    assert not distribution.feed(sites.grid, only_the_other, TURN)
    assert not distribution.feed(sites.grid, sites.nodes, Turn(1, 0, seconds=0.0, timeout=60.0))
    assert sites.asked == []


def test_a_site_that_has_not_seen_its_ledgers_witness_yet_does_not_replace_it(folder: Path, signed: Signed) -> None:
    """As it fetches, a site has shown nothing yet: a ledger put back from a copy must still be found out (RULES 18)."""
    sites, key = Sites(signed, {SITES[0]: nothing_more}), signed.sites[SITES[0]].public_key
    sites.witnesses.keep({key: b"w" * LEDGER_BYTES})
    assert sites.distribution(lambda: folder, {SITES[0]: Place(0, 0)}).feed(sites.grid, sites.nodes, TURN)
    assert sites.witnesses.of(key) == b"w" * LEDGER_BYTES


def test_a_site_answers_a_last_chunk_that_comes_again(folder: Path, signed: Signed, tmp_path: Path) -> None:
    daemon = daemon_of(signed, SITES[0], tmp_path / "home", f'folder = "{folder}"', [])
    envelope = Envelope(
        signed.study.digest,
        Stage.BACKBONE,
        1,
        0,
        OPERATOR,
        SITES[0],
        {CHUNK: b"[]", PLACE: Place(2, 0).dump(), SIZE: dump_size(2)},
    )
    message = Message(to_records(seal(envelope, signed.operator)), OPERATOR_NODE + 1, Stage.BACKBONE.value)
    context = Context(run_id=RUN, node_id=OPERATOR_NODE + 1, node_config={}, state=RecordDict(), run_config={})
    message.metadata.__dict__["_message_id"] = "one"
    assert from_records(daemon(message, context).content).parts.keys() == {LEDGER_PART}
    daemon.close()
