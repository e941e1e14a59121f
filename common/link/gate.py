"""The second gate of a site's egress: the link's own traffic has a fixed form, and every byte of it is written down.

The first gate signs what leaves for a study. This one sees each HTTP request as it is about to be sent: a call that is
not listed, a field that a site has no reason to fill, or a part that is not of the reply in hand stops here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import httpx
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from google.protobuf.message import Message

from common import errors
from common.errors import ConsiliumError

Write = Callable[[str, int, str], None]
"""Is told a call's name, how many bytes of HTTP are sent for it, and to whom, before the first of them is."""

_FIELDS: Mapping[type[Message], frozenset[str]] = {
    ActivateNodeRequest: frozenset({"public_key", "heartbeat_interval"}),
    DeactivateNodeRequest: frozenset({"node_id"}),
    SendNodeHeartbeatRequest: frozenset({"node", "heartbeat_interval"}),
    PullMessagesRequest: frozenset({"node"}),
    PullObjectRequest: frozenset({"node", "run_id", "object_id"}),
    PushMessagesRequest: frozenset({"node", "messages_list", "message_object_trees"}),
    PushObjectRequest: frozenset({"node", "run_id", "session_id", "object_id", "object_content"}),
}
_METADATA = frozenset(
    {
        "run_id",
        "message_id",
        "src_node_id",
        "dst_node_id",
        "dst_task_id",
        "reply_to_message_id",
        "group_id",
        "ttl",
        "message_type",
        "created_at",
    }
)
_HEADERS = frozenset(
    {
        "host",
        "accept",
        "accept-encoding",
        "connection",
        "user-agent",
        "content-type",
        "content-length",
        "flwr-public-key",
        "flwr-timestamp",
        "flwr-signature",
    }
)
_USER_AGENT = "consilium"


class Gate:
    """An interceptor of Flower's client, the last before the wire. Raises CSL-601 and lets nothing out.

    peer   who the requests go to
    write  is told of each request before it is sent; what it raises stops the request
    """

    def __init__(self, peer: str, write: Write) -> None:
        self._peer, self._write = peer, write
        self._open: tuple[str, Mapping[str, bytes]] | None = None
        self.node = 0

    @contextlib.contextmanager
    def reply(self, to: str, contents: Mapping[str, bytes]) -> Iterator[None]:
        """Let one reply's parts through while the context lasts; ``contents`` by the hash that names each."""
        self._open = (to, contents)
        try:
            yield
        finally:
            self._open = None

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Check a request, write it down and let it go."""
        request = context.request
        request.headers["user-agent"] = _USER_AGENT
        self._check(context.message)
        strange = {name.lower() for name in request.headers} - _HEADERS
        if strange or request.url.query:
            raise _refused(f"headers {sorted(strange)}")
        self._write(context.rpc_method.rpartition("/")[2], sent_bytes(request), self._peer)
        return call_next(context)

    def _check(self, message: Message) -> None:
        allowed = _FIELDS.get(type(message))
        if allowed is None:
            raise _refused(type(message).__name__)
        strange = {field.name for field, _ in message.ListFields()} - allowed
        if strange:
            raise _refused(f"{type(message).__name__}: fields {sorted(strange)}")
        node = getattr(message, "node", None)
        if node is not None and node.node_id != self.node:
            raise _refused("another node")
        if isinstance(message, PushMessagesRequest):
            self._check_reply(message)
        if isinstance(message, PushObjectRequest):
            _, contents = self._opened()
            if contents.get(message.object_id) != message.object_content:
                raise _refused("a part that is not of the reply in hand")

    def _check_reply(self, message: PushMessagesRequest) -> None:
        to, contents = self._opened()
        if len(message.messages_list) != 1 or len(message.message_object_trees) != 1:
            raise _refused("not one reply")
        (head,) = message.messages_list
        strange = {field.name for field, _ in head.metadata.ListFields()} - _METADATA
        # The reply itself travels as parts, each of which is checked.
        if strange or head.content.ByteSize():
            raise _refused(f"metadata {sorted(strange)}")
        if head.metadata.reply_to_message_id != to or head.metadata.src_node_id != self.node:
            raise _refused("not this node's reply")
        parts = {part.object_id for part in iterate_object_tree(message.message_object_trees[0])}
        if parts != contents.keys():
            raise _refused("a part that is not of the reply in hand")

    def _opened(self) -> tuple[str, Mapping[str, bytes]]:
        if self._open is None:
            raise _refused("no reply is in hand")
        return self._open


def sent_bytes(request: httpx.Request) -> int:
    """Return how many bytes an HTTP/1.1 request takes: request line, headers, blank line and body."""
    line = len(request.method) + len(request.url.raw_path) + len("  HTTP/1.1\r\n")
    headers = sum(len(name) + len(value) + len(": \r\n") for name, value in request.headers.raw)
    return line + headers + len("\r\n") + len(request.content)


def _refused(detail: str) -> ConsiliumError:
    return ConsiliumError(errors.EGRESS_REFUSED, f"link: {detail}")
