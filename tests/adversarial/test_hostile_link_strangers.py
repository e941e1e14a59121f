"""Who is no admitted site gets nothing from the operator's listener: not in TLS, not by a key, not by a path."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest, StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    RegisterNodeFleetRequest,
    UnregisterNodeFleetRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from flwr.proto.runtime_pb2 import AcquireTaskRequest, GetNodesRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.date import now
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from google.protobuf.message import Message as Protobuf

from common import errors
from common.errors import ConsiliumError
from common.keystore import generate_node_key
from common.link.fleet_app import PATHS
from common.link.node import NodeLink, Server
from common.link.nodes import node_key_bytes
from server.guard import Limits
from tests.links import HOST, Issuer, Link, Member, Speaker, ask, asking, echo, linked, signed

PATIENT = Limits(refusals=10_000)
"""Strangers are told the real reason here; how many refusals there are is another test's matter."""


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    with linked(tmp_path, limits=PATIENT) as made:
        yield made


def state_of(link: Link) -> tuple[object, ...]:
    """Return all that a stranger might have changed."""
    state = link.relay.state
    return (
        {node: (info.status, info.last_activated_at) for node, info in state.nodes.items()},
        set(state.run_ids),
        {run: state.get_run_info(run_ids=[run])[0].status.status for run in state.run_ids},
        set(state.task_store),
        set(state.message_ins_store),
        set(state.message_res_store),
        len(state.object_store),
    )


@pytest.mark.parametrize("kind", ["no certificate", "of another CA", "of a server", "expired"])
def test_a_client_without_a_site_certificate_of_this_ca_is_cut_off_in_the_handshake(link: Link, kind: str) -> None:
    issued = {
        "no certificate": None,
        "of another CA": Issuer("tests").site("north"),
        "of a server": link.authority.server(HOST),
        "expired": link.authority.site("north", days=0),
    }[kind]
    client = httpx.Client(verify=link.tls(issued), base_url=link.url, trust_env=False)
    with client, pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError, httpx.WriteError)):
        client.post("/v1/fleet/activate-node", content=b"")
    assert link.calls == []


def test_a_site_tells_no_server_of_another_ca_anything(link: Link) -> None:
    site = link.authority.site("north")
    tls = link.tls(site, Issuer("tests").certificate)
    told: list[ConsiliumError | None] = []

    def tell(error: ConsiliumError | None) -> None:
        told.append(error)
        node.stop()

    server = Server(f"{HOST}:{link.port}", tls)
    node = NodeLink(server, generate_node_key(), echo("north"), write=lambda *_: None, tell=tell)
    node.serve()
    assert [error.fault for error in told if error is not None] == [errors.LINK_TLS]
    assert link.calls == []


def test_tls_before_1_3_is_not_spoken(link: Link) -> None:
    context = link.admitted("north").tls
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(verify=context, base_url=link.url, trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get("/")


def activation(member: Member) -> ActivateNodeRequest:
    return ActivateNodeRequest(public_key=node_key_bytes(member.key.public_key()), heartbeat_interval=10.0)


def test_a_node_key_that_is_not_admitted_connects_nothing(link: Link) -> None:
    link.admitted("north")
    stranger = Member(0, generate_node_key(), link.tls(link.authority.site("stranger")))
    before = state_of(link)
    with Speaker(link, stranger) as speaker:
        assert 400 <= speaker.post("activate-node", activation(stranger)).status_code < 500
        assert speaker.post("pull-messages", PullMessagesRequest(node=speaker.node)).status_code == 401
    assert state_of(link) == before


Forgery = Callable[[Member, Member], dict[str, str]]
FORGERIES: dict[str, Forgery] = {
    "no headers": lambda north, south: {},
    "another's key, own signature": lambda north, south: signed(south.key, public=public(north)),
    "own key and signature": lambda north, south: signed(south.key),
    "no signature": lambda north, south: {**signed(north.key), "flwr-signature": ""},
    "a signature of other words": lambda north, south: {**signed(north.key), "flwr-timestamp": now().isoformat()},
    "after the window": lambda north, south: signed(north.key, at=shifted(-3600)),
    "before the window": lambda north, south: signed(north.key, at=shifted(3600)),
    "no time": lambda north, south: signed(north.key, at="yesterday"),
    "a time without a zone": lambda north, south: signed(north.key, at="2026-11-25T00:00:00"),
    "no key at all": lambda north, south: {**signed(north.key), "flwr-public-key": "AAAA"},
}


def public(member: Member) -> bytes:
    return node_key_bytes(member.key.public_key())


def shifted(seconds: float) -> str:
    return (now() + datetime.timedelta(seconds=seconds)).isoformat()


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
def test_nobody_speaks_as_a_node_without_its_own_fresh_signature(link: Link, forgery: Forgery) -> None:
    north, south = link.admitted("north"), link.admitted("south")
    with Speaker(link, Member(north.node, south.key, south.tls)) as speaker:
        before = state_of(link)
        headers = forgery(north, south)
        activated = speaker.post("activate-node", activation(north), headers)
        assert activated.status_code == 401, activated.text
        assert speaker.post("pull-messages", PullMessagesRequest(node=speaker.node), headers).status_code == 401
    assert state_of(link) == before


def test_headers_that_were_overheard_are_worth_nothing_after_the_window(link: Link) -> None:
    north = link.admitted("north")
    heard = signed(north.key, at=shifted(-(TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE + 1)))
    with Speaker(link, north) as speaker:
        assert speaker.post("activate-node", activation(north), heard).status_code == 401
        assert speaker.post("activate-node", activation(north)).status_code == 200


ABSENT: dict[str, Protobuf] = {
    "/v1/fleet/register-node": RegisterNodeFleetRequest(public_key=b"mine"),
    "/v1/fleet/unregister-node": UnregisterNodeFleetRequest(),
    "/v1/fleet/get-run": GetRunRequest(),
    "/v1/fleet/get-fab": GetFabRequest(),
    "/v1/control/list-nodes": ListNodesRequest(),
    "/v1/control/list-runs": ListRunsRequest(),
    "/v1/control/start-run": StartRunRequest(),
    "/v1/control/stop-run": StopRunRequest(),
    "/v1/runtime/acquire-task": AcquireTaskRequest(supported_task_types=["flwr-serverapp"]),
    "/v1/runtime/pull-task-input": PullTaskInputRequest(),
    "/v1/runtime/push-task-output": PushTaskOutputRequest(),
    "/v1/runtime/get-nodes": GetNodesRequest(),
}


@pytest.mark.parametrize("who", ["admitted", "stranger"])
def test_there_is_no_call_but_those_that_a_site_needs(link: Link, who: str) -> None:
    north = link.admitted("north")
    member = north if who == "admitted" else Member(0, generate_node_key(), link.tls(link.authority.site("stranger")))
    others = {path for _, path in PROTOBUF_REQUEST_TYPES} - PATHS
    assert ABSENT.keys() <= others
    paths = [
        *sorted(others),
        "/",
        "/docs",
        "/openapi.json",
        "/metrics",
        "/status",
        "/healthz",
        "/v1/fleet",
        "/v1/fleet/",
    ]
    variants = ["//v1/fleet/pull-messages", "/v1/fleet/pull-messages/", "/V1/FLEET/PULL-MESSAGES", "/v1/fleet/../fleet"]
    with link.relay.run() as _grid, Speaker(link, member) as speaker:
        before = state_of(link)
        for path in [*paths, *variants]:
            message = ABSENT.get(path, PullMessagesRequest(node=speaker.node))
            assert speaker.post("", message, path=path).status_code == 404, path
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
            assert speaker.client.request(method, "/v1/fleet/pull-messages").status_code == 405
        assert state_of(link) == before


def test_a_node_that_is_dismissed_is_cut_off_and_may_be_admitted_again(link: Link) -> None:
    north, idle = link.admitted("north"), link.admitted("idle")
    key, idle_key = public(north), public(idle)
    with Speaker(link, north) as speaker:
        speaker.activate()
        link.relay.dismiss(key)
        link.relay.dismiss(idle_key)
        assert speaker.post("pull-messages", PullMessagesRequest(node=speaker.node)).status_code == 401
        assert 400 <= speaker.post("activate-node", activation(north)).status_code < 500
        again = link.relay.admit(key, "north")
        assert again != north.node
        assert link.relay.admit(idle_key, "idle") != idle.node
        assert speaker.activate() == again


def test_all_of_it_at_once_leaves_an_honest_node_served(link: Link) -> None:
    north = link.admitted("north")
    stranger = Member(north.node, generate_node_key(), link.tls(link.authority.site("stranger")))

    def attack() -> None:
        with Speaker(link, stranger) as speaker:
            for path, message in ABSENT.items():
                speaker.post("", message, path=path)
            for _ in range(50):
                speaker.post("activate-node", activation(north))

    with link.relay.run() as grid, asking(attack), link.serving(north, echo("north")):
        assert ask(grid, [north.node], "here?") == {north.node: "north: here?"}
