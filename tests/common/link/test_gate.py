"""The second gate of a site's egress lets through what the protocol has, by name and field, and writes it down."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    RegisterNodeFleetRequest,
)
from flwr.proto.message_pb2 import Message as FlowerMessage
from flwr.proto.message_pb2 import Metadata, ObjectTree, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.protobuf.client import ProtobufRequestContext
from google.protobuf.message import Message

from common import errors
from common.errors import ConsiliumError
from common.link.gate import Gate, sent_bytes

NODE = 7
A, B = "a" * 64, "b" * 64


class Wire:
    """A gate, and what went through it."""

    def __init__(self, write: Callable[[str, int, str], None] | None = None) -> None:
        self.written: list[tuple[str, int, str]] = []
        self.sent: list[Message] = []
        self.gate = Gate("operator:1", write or (lambda *line: self.written.append(line)))
        self.gate.node = NODE

    def send(self, message: Message, headers: dict[str, str] | None = None, query: str = "") -> None:
        url = f"https://operator/v1/fleet/call{query}"
        request = httpx.Request("POST", url, content=message.SerializeToString(), headers=headers)
        context = ProtobufRequestContext("/flwr.proto.Fleet/Call", message, request)

        def on(passed: ProtobufRequestContext) -> httpx.Response:
            self.sent.append(passed.message)
            return httpx.Response(200)

        self.gate.intercept(context, on)

    def refuses(self, message: Message, headers: dict[str, str] | None = None, query: str = "") -> None:
        with pytest.raises(ConsiliumError) as raised:
            self.send(message, headers, query)
        assert raised.value.fault is errors.EGRESS_REFUSED
        assert (self.sent, self.written) == ([], [])


def reply(**changes: object) -> PushMessagesRequest:
    metadata = Metadata(src_node_id=NODE, reply_to_message_id="asked", message_id=A, message_type="query.say")
    made = PushMessagesRequest(
        node=Node(node_id=NODE),
        messages_list=[FlowerMessage(metadata=metadata)],
        message_object_trees=[ObjectTree(object_id=A, children=[ObjectTree(object_id=B)])],
    )
    for name, value in changes.items():
        setattr(made.messages_list[0].metadata, name, value)
    return made


def test_what_passes_is_written_down_before_with_its_bytes_and_its_peer() -> None:
    wire = Wire()
    wire.send(PullMessagesRequest(node=Node(node_id=NODE)))
    ((method, size, peer),) = wire.written
    assert (method, peer) == ("Call", "operator:1")
    assert size > 80
    assert len(wire.sent) == 1


def test_what_cannot_be_written_down_is_not_sent() -> None:
    def full(*_line: object) -> None:
        raise ConsiliumError(errors.EGRESS_LOG, "the disk is full")

    wire = Wire(full)
    with pytest.raises(ConsiliumError):
        wire.send(PullMessagesRequest(node=Node(node_id=NODE)))
    assert wire.sent == []


@pytest.mark.parametrize(
    "message",
    [
        GetRunRequest(),
        RegisterNodeFleetRequest(public_key=b"k"),
        PullMessagesRequest(node=Node(node_id=NODE + 1)),
        PullMessagesRequest(node=Node(node_id=NODE), message_ids=["x"]),
        reply(),
        PushObjectRequest(node=Node(node_id=NODE), object_id=A, object_content=b"a"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_call_that_a_site_has_no_reason_for_stops_here(message: Message) -> None:
    Wire().refuses(message)


def test_what_connects_and_disconnects_passes() -> None:
    wire = Wire()
    wire.send(ActivateNodeRequest(public_key=b"k", heartbeat_interval=10.0))
    wire.send(PullObjectRequest(node=Node(node_id=NODE), run_id=1, object_id=A))
    wire.send(DeactivateNodeRequest(node_id=NODE))
    assert len(wire.sent) == 3


def test_a_reply_in_hand_passes_with_exactly_its_own_parts_and_nothing_afterwards() -> None:
    wire = Wire()
    push = PushObjectRequest(node=Node(node_id=NODE), object_id=B, object_content=b"b")
    with wire.gate.reply("asked", {A: b"a", B: b"b"}):
        wire.send(reply())
        wire.send(push)
    sent = len(wire.sent)
    with pytest.raises(ConsiliumError):
        wire.send(push)
    assert len(wire.sent) == sent == 2


CHANGES: dict[str, Callable[[PushMessagesRequest], object]] = {
    "another node": lambda made: setattr(made.messages_list[0].metadata, "src_node_id", NODE + 1),
    "to another message": lambda made: setattr(made.messages_list[0].metadata, "reply_to_message_id", "other"),
    "a part more": lambda made: made.message_object_trees[0].children.append(ObjectTree(object_id="c" * 64)),
    "a part less": lambda made: made.message_object_trees[0].ClearField("children"),
    "two replies": lambda made: made.messages_list.append(made.messages_list[0]),
    "a time of the app": lambda made: made.clientapp_runtime_list.append(1.0),
    "content in the head": lambda made: made.messages_list[0].content.items.add(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_reply_that_is_not_the_one_in_hand_stops_here(change: Callable[[PushMessagesRequest], object]) -> None:
    wire, made = Wire(), reply()
    change(made)
    with wire.gate.reply("asked", {A: b"a", B: b"b"}):
        wire.refuses(made)


@pytest.mark.parametrize("content", [b"", b"bb", b"a"])
def test_a_part_under_anothers_name_stops_here(content: bytes) -> None:
    wire = Wire()
    with wire.gate.reply("asked", {A: b"a", B: b"b"}):
        wire.refuses(PushObjectRequest(node=Node(node_id=NODE), object_id=B, object_content=content))


@pytest.mark.parametrize("name", ["cookie", "authorization", "x-forwarded-for", "referer"])
def test_a_header_that_says_more_stops_here(name: str) -> None:
    Wire().refuses(PullMessagesRequest(node=Node(node_id=NODE)), {name: "x"})


def test_a_query_stops_here() -> None:
    Wire().refuses(PullMessagesRequest(node=Node(node_id=NODE)), query="?site=north")


def test_bytes_are_counted_as_they_stand_on_the_wire() -> None:
    request = httpx.Request("POST", "https://operator/a", headers={"host": "h"}, content=b"xyz")
    lines = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in request.headers.raw)
    assert sent_bytes(request) == len(f"POST /a HTTP/1.1\r\n{lines}\r\nxyz")
