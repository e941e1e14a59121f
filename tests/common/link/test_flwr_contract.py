"""What the link relies on in flwr 1.41 beyond its public API: whoever brings another reads here what is amiss."""

from __future__ import annotations

import inspect
import socket
import threading
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.clientapp import ClientApp
from flwr.common.constant import HEARTBEAT_MIN_INTERVAL, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, SUPERLINK_NODE_ID, Status
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from flwr.supercore.constant import NodeStatus
from flwr.supercore.date import now
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_children_ids_from_object_content,
    get_object_id,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, public_key_to_bytes, verify_signature
from flwr.supercore.protobuf.client import ProtobufClient, ProtobufRequestContext
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from common import errors
from common.errors import ConsiliumError
from common.keystore import generate_node_key
from common.link import pinned
from common.link.gate import Gate
from common.link.inprocess import OPERATOR_NODE
from common.link.nodes import node_key_bytes
from common.link.relay import FleetGrid, Relay
from tests.links import said, words

NAMES: list[tuple[Callable[..., object], str]] = [
    (InMemoryLinkState.create_node, "(self, owner_aid, owner_name, public_key, heartbeat_interval, *, location, name)"),
    (InMemoryLinkState.delete_node, "(self, owner_aid, node_id)"),
    (InMemoryLinkState.activate_node, "(self, node_id, heartbeat_interval)"),
    (InMemoryLinkState.deactivate_node, "(self, node_id)"),
    (InMemoryLinkState.get_node_info, "(self, *, node_ids, owner_aids, statuses)"),
    (InMemoryLinkState.get_node_id_by_public_key, "(self, public_key)"),
    (InMemoryLinkState.get_nodes, "(self, run_id)"),
    (
        InMemoryLinkState.get_run_info,
        "(self, *, run_ids, statuses, flwr_aids, federation_ids, order_by, ascending, limit, skip)",
    ),
    (InMemoryLinkState.start_session, "(self, run_id)"),
    (InMemoryLinkState.store_message_and_object_tree, "(self, message, object_tree, session_id)"),
    (InMemoryLinkState.store_object, "(self, run_id, session_id, object_id, object_content)"),
    (InMemoryLinkState.delete_messages, "(self, message_ins_ids)"),
    (InMemoryLinkState.cleanup_run, "(self, run_id)"),
    (InMemoryLinkState.claim_task, "(self, task_id)"),
    (InMemoryLinkState.activate_task, "(self, task_id)"),
    (InMemoryLinkState.finish_task, "(self, task_id, sub_status, details)"),
    (InMemoryLinkState.acknowledge_task_heartbeat, "(self, task_id)"),
    (InMemoryObjectStore.get, "(self, object_id)"),
    (InMemoryObjectStore.delete, "(self, object_id)"),
    (authenticate_node, "(request)"),
    (fleet_handlers.activate_node, "(request, state)"),
    (fleet_handlers.deactivate_node, "(request, state)"),
    (fleet_handlers.send_node_heartbeat, "(request, state)"),
    (fleet_handlers.pull_messages, "(request, state, store)"),
    (fleet_handlers.push_messages, "(request, state)"),
    (fleet_handlers.pull_object, "(request, state)"),
    (fleet_handlers.push_object, "(request, state)"),
    (inflate_object_from_contents, "(object_id, object_contents, *, keep_object_contents, objects)"),
    (remove_content_from_message, "(message)"),
]


@pytest.mark.parametrize(("found", "wanted"), NAMES, ids=lambda value: getattr(value, "__qualname__", ""))
def test_a_name_takes_what_the_link_gives_it(found: Callable[..., object], wanted: str) -> None:
    names: list[str] = []
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(parameter.name)
    assert f"({', '.join(names)})" == wanted, f"{found.__qualname__} of this flwr is not the one that the link calls"


@pytest.mark.parametrize("version", ["1.40.9", "1.42.0", "1.410.0", "2.0", "1.41"])
def test_another_flwr_is_refused_by_its_number_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setattr(pinned, "version", lambda _name: version)
    with pytest.raises(ConsiliumError) as raised:
        Relay()
    assert raised.value.fault is errors.LINK_FLWR
    assert version in str(raised.value)


def test_this_flwr_is_the_one_that_is_known() -> None:
    pinned.check_flwr()


@pytest.fixture
def relay() -> Relay:
    return Relay()


@pytest.fixture
def grid(relay: Relay) -> Iterator[FleetGrid]:
    with relay.run() as made:
        yield made


def connected(relay: Relay) -> int:
    node = relay.admit(node_key_bytes(generate_node_key().public_key()), "north")
    assert relay.state.activate_node(node, 10.0)
    return node


def answer(relay: Relay, node: int, text: str = "reply") -> tuple[Message, str]:
    """Answer the one message that waits as Flower's own handlers would take it; returns it and the session."""
    (asked,) = relay.state.get_message_ins(node, 1)
    run = asked.metadata.run_id
    asked.content = RecordDict()
    reply = Message(words(text), reply_to=asked)
    reply.metadata.__dict__["_src_node_id"] = node
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        tree, objects = get_object_tree(reply), get_all_nested_objects(reply)
        session = relay.state.start_session(run)
        head = remove_content_from_message(reply)
        stored, missing = relay.state.store_message_and_object_tree(head, tree, session)
        assert stored
        for name in missing:
            assert relay.state.store_object(run, session, name, objects[name].deflate())
    return reply, session


def test_a_message_is_delivered_once_and_its_delivery_is_noted(relay: Relay, grid: FleetGrid) -> None:
    node = connected(relay)
    grid.push_messages([Message(words("hello"), node, "query.say")])
    assert relay.has_mail(node)
    (message,) = relay.state.get_message_ins(node, 1)
    assert message.metadata.delivered_at != ""
    assert not relay.has_mail(node)
    assert relay.state.get_message_ins(node, 1) == []


def test_a_reply_is_found_by_the_name_of_what_it_replies_to(relay: Relay, grid: FleetGrid) -> None:
    node = connected(relay)
    (name,) = grid.push_messages([Message(words("hello"), node, "query.say")])
    assert name in relay.state.message_ins_store
    reply, _ = answer(relay, node)
    assert relay.state.message_ins_id_to_message_res_id == {name: reply.metadata.message_id}
    (heard,) = grid.pull_messages([name])
    assert said(heard) == "reply"
    assert heard.metadata.reply_to_message_id == name


def test_a_message_that_is_deleted_takes_its_reply_along_and_its_objects_are_deleted_by_their_root(
    relay: Relay, grid: FleetGrid
) -> None:
    node = connected(relay)
    (name,) = grid.push_messages([Message(words("hello"), node, "query.say")])
    reply, _ = answer(relay, node)
    relay.state.delete_messages({name})
    assert (relay.state.message_ins_store, relay.state.message_res_store) == ({}, {})
    assert len(relay.state.object_store) > 0
    for root in (name, reply.metadata.message_id):
        relay.state.object_store.delete(root)
    assert len(relay.state.object_store) == 0


def test_an_object_of_two_messages_stays_until_both_are_gone(relay: Relay, grid: FleetGrid) -> None:
    array = Array("uint8", (3,), "numpy.ndarray", b"abc")
    nodes = [connected(relay), connected(relay)]
    contents = [RecordDict({"v": ArrayRecord({"v": array})}) for _ in nodes]
    names = list(
        grid.push_messages([Message(content, node, "query.say") for content, node in zip(contents, nodes, strict=True)])
    )
    store = relay.state.object_store
    store.delete(names[0])
    assert store.get(array.object_id)
    store.delete(names[1])
    assert store.get(array.object_id) is None


def test_a_node_that_connects_anew_has_another_name_for_its_connection(relay: Relay) -> None:
    node = connected(relay)
    first = relay.connection(node)
    assert not relay.state.activate_node(node, 10.0), "an ONLINE node activates: the link need not deactivate it first"
    assert relay.state.deactivate_node(node)
    assert relay.connection(node) is None
    assert relay.state.activate_node(node, 10.0)
    assert relay.connection(node) not in (None, first)


def test_a_node_that_is_not_heard_of_is_offline(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    node = connected(relay)
    info = relay.state.nodes[node]
    assert info.online_until is not None
    info.online_until -= 3600
    assert relay.connection(node) is None
    assert info.status == NodeStatus.OFFLINE


def test_the_heartbeat_of_the_link_is_one_that_flower_allows() -> None:
    assert HEARTBEAT_MIN_INTERVAL == 10.0


def test_the_operator_is_the_node_that_flower_takes_for_its_own() -> None:
    assert OPERATOR_NODE == SUPERLINK_NODE_ID


def test_a_key_of_a_node_that_was_deleted_is_held_which_is_why_the_link_lets_it_go(relay: Relay) -> None:
    node = relay.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key", 10.0)
    relay.state.delete_node(NOOP_FLWR_AID, node)
    assert relay.state.get_node_id_by_public_key(b"key") is None
    with pytest.raises(ValueError, match="already in use"):
        relay.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key", 10.0)
    del relay.state.node_public_key_to_node_id[b"key"]
    assert relay.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, b"key", 10.0) != node


def test_a_run_whose_task_is_not_heard_of_ends_which_is_why_the_link_beats(
    relay: Relay, grid: FleetGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = grid.run.run_id
    assert relay.state.get_run_info(run_ids=[run])[0].status.status == Status.RUNNING
    monkeypatch.setattr("flwr.supercore.corestate.in_memory_corestate.now", lambda: now() + timedelta(hours=1))
    assert relay.state.get_run_info(run_ids=[run])[0].status.status == Status.FINISHED


def test_messages_take_their_identity_from_the_process(grid: FleetGrid) -> None:
    assert TaskIdentity.node_id == SUPERLINK_NODE_ID
    message = Message(words("hello"), 5, "query.say")
    assert message.metadata.run_id == grid.run.run_id
    assert message.metadata.src_node_id == SUPERLINK_NODE_ID


def test_an_object_is_named_by_its_sha256_and_names_its_children() -> None:
    content = RecordDict({"v": ArrayRecord({"v": Array("uint8", (3,), "numpy.ndarray", b"abc")}), **words("hello")})
    objects = get_all_nested_objects(content)
    for name, part in objects.items():
        assert get_object_id(part.deflate()) == name == part.object_id
        assert set(get_object_children_ids_from_object_content(part.deflate())) <= objects.keys()
    tree = get_object_tree(content)
    assert {node.object_id for node in iterate_object_tree(tree)} == objects.keys()
    assert list(iterate_object_tree(tree))[-1].object_id == content.object_id


@pytest.mark.parametrize("content", [b"RecordDict  2\x00{}", b"x"])
def test_the_store_takes_only_what_was_announced_under_its_own_name(content: bytes) -> None:
    store, name = InMemoryObjectStore(), get_object_id(content)
    with pytest.raises(Exception, match=r"pre-registered|Unexpected|split"):
        store.put(name, content)
    store.preregister(1, ObjectTree(object_id="a" * 64))
    with pytest.raises(ValueError, match="does not match"):
        store.put("a" * 64, content)


def test_an_app_without_the_stage_raises_which_is_why_the_daemon_catches(grid: FleetGrid) -> None:
    message = Message(words("hello"), 5, "query.say")
    with pytest.raises(ValueError, match="query"):
        ClientApp()(message, Context(1, 5, {}, RecordDict(), {}))


def test_the_node_signs_the_time_alone_and_says_which_key_it_holds() -> None:
    key = generate_node_key()
    request = httpx.Request("POST", "https://operator/v1/fleet/pull-messages")
    context = ProtobufRequestContext("/flwr.proto.Fleet/PullMessages", PushMessagesRequest(), request)
    NodeAuthHttpInterceptor(key, key.public_key()).intercept(context, lambda _context: httpx.Response(200))
    public = b64decode(request.headers["flwr-public-key"])
    assert public == node_key_bytes(key.public_key()) == public_key_to_bytes(key.public_key())
    stamp, signature = request.headers["flwr-timestamp"], b64decode(request.headers["flwr-signature"])
    assert datetime.fromisoformat(stamp).tzinfo is not None
    assert verify_signature(bytes_to_public_key(public), stamp.encode(), signature)


def test_the_client_holds_one_httpx_client_under_the_name_that_the_link_replaces() -> None:
    with FleetHttpClient("https://operator") as client:
        assert isinstance(client._client, httpx.Client)
        assert client._client.follow_redirects, "flwr follows no redirects any more: the link need not replace it"
        assert client._retry_invoker is None


def test_the_first_interceptor_is_the_outermost_so_that_the_gate_sees_what_the_others_added() -> None:
    seen: list[str] = []

    class Named:
        def __init__(self, name: str) -> None:
            self._name = name

        def intercept(
            self, context: ProtobufRequestContext, call_next: Callable[[ProtobufRequestContext], httpx.Response]
        ) -> httpx.Response:
            seen.append(self._name)
            return call_next(context)

    client = ProtobufClient("https://operator", interceptors=[Named("auth"), Named("gate")])
    client._client = httpx.Client(transport=httpx.MockTransport(lambda _request: httpx.Response(200)))
    context = ProtobufRequestContext("x", PushMessagesRequest(), httpx.Request("POST", "https://operator/"))
    client._send(context)
    assert seen == ["auth", "gate"]


def listener() -> tuple[socket.socket, list[bytes], threading.Thread]:
    """Return a socket that notes the bytes of one request at a time, and answers with an empty response."""
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(20)
    received: list[bytes] = []

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(20)
            while True:
                data = b""
                while b"\r\n\r\n" not in data:
                    chunk = connection.recv(1 << 16)
                    if not chunk:
                        return
                    data += chunk
                head, _, body = data.partition(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                while len(body) < length:
                    body += connection.recv(1 << 16)
                received.append(head + b"\r\n\r\n" + body)
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return server, received, thread


def test_the_gate_writes_down_exactly_the_bytes_that_arrive_and_nothing_else_is_sent() -> None:
    server, received, thread = listener()
    key: ec.EllipticCurvePrivateKey = generate_node_key()
    written: list[tuple[str, int]] = []
    gate = Gate("operator:1", lambda method, size, _peer: written.append((method, size)))
    port = server.getsockname()[1]
    auth = NodeAuthHttpInterceptor(key, key.public_key())
    with server, FleetHttpClient(f"http://127.0.0.1:{port}", interceptors=[auth, gate]) as client:
        client.ActivateNode(ActivateNodeRequest(public_key=node_key_bytes(key.public_key()), heartbeat_interval=10.0))
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest(heartbeat_interval=10.0))
        client.PullObject(PullObjectRequest(run_id=1 << 60, object_id="a" * 64))
        content = b"x" * 3_000_000
        with gate.reply("asked", {"b" * 64: content}):
            client.PushObject(PushObjectRequest(run_id=3, session_id="s", object_id="b" * 64, object_content=content))
    thread.join(20)
    assert [method for method, _ in written] == ["ActivateNode", "SendNodeHeartbeat", "PullObject", "PushObject"]
    assert [size for _, size in written] == [len(request) for request in received]
    assert b"user-agent: consilium\r\n" in received[0].lower()


def test_what_the_gate_refuses_sends_no_byte() -> None:
    server, received, thread = listener()
    gate = Gate("operator:1", lambda *_: None)
    port = server.getsockname()[1]
    with server, FleetHttpClient(f"http://127.0.0.1:{port}", interceptors=[gate]) as client:
        with pytest.raises(ConsiliumError):
            client.PushObject(PushObjectRequest(run_id=3, session_id="s", object_id="b" * 64, object_content=b"x"))
        client.PullObject(PullObjectRequest(object_id="a" * 64))
    thread.join(20)
    assert len(received) == 1
