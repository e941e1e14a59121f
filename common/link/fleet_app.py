"""The operator's listener as an ASGI app: what a site must be able to call of Flower's Fleet API, and nothing else.

Flower's own handlers answer, behind Flower's own check of who signed. What that leaves open is closed here: a node may
speak, reply and push for itself alone, once and in bounds, and there is no registration, no run, no code bundle, and
neither the Control nor the Runtime API. A node that asks for messages is kept waiting until there is one.

Flower's own app has a routing framework and four layers around each handler, which cost more than the handler.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

from fastapi import HTTPException
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import PullObjectRequest, PushObjectRequest
from flwr.supercore.error import FlowerError
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.superlink.routers.fleet.node_auth import authenticate_node
from flwr.superlink.servicer.fleet import fleet_handlers
from google.protobuf.message import DecodeError, Message
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from common.link.parts import MAX_MESSAGE, MAX_PARTS
from common.link.relay import Relay

HOLD_SECONDS = 10.0
NODE_HEADER = "x-consilium-node"
"""Set on the response for whoever keeps the audit log in front of this app, which removes it again."""
_NAME = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger("consilium.link")
_CALLS: dict[str, type[Message]] = {
    "/v1/fleet/activate-node": ActivateNodeRequest,
    "/v1/fleet/deactivate-node": DeactivateNodeRequest,
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatRequest,
    "/v1/fleet/pull-messages": PullMessagesRequest,
    "/v1/fleet/push-messages": PushMessagesRequest,
    "/v1/fleet/pull-object": PullObjectRequest,
    "/v1/fleet/push-object": PushObjectRequest,
}
PATHS = frozenset(_CALLS)
"""What a site calls. Everything else is not there."""


def fleet_app(relay: Relay, *, hold_seconds: float = HOLD_SECONDS) -> ASGIApp:
    """Return the app; it answers for the nodes that the relay has admitted, and for no others.

    hold_seconds  how long an answer that would be empty is held back
    """
    return _Fleet(relay, hold_seconds)


@dataclass(frozen=True, slots=True)
class _RefusedError(Exception):
    status: int
    reason: str


class _Fleet:
    def __init__(self, relay: Relay, hold_seconds: float) -> None:
        self._relay, self._hold_seconds = relay, hold_seconds
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}
        self._pushed: dict[int, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        # Where Flower's check looks for the link state.
        self._app = SimpleNamespace(state=SimpleNamespace(linkstate_factory=relay.factory))
        state, store = relay.state, relay.state.object_store
        self._handlers: dict[type[Message], Callable[[Message], Message]] = {
            ActivateNodeRequest: lambda asked: fleet_handlers.activate_node(asked, state),
            DeactivateNodeRequest: lambda asked: fleet_handlers.deactivate_node(asked, state),
            SendNodeHeartbeatRequest: lambda asked: fleet_handlers.send_node_heartbeat(asked, state),
            PullMessagesRequest: lambda asked: fleet_handlers.pull_messages(asked, state, store),
            PushMessagesRequest: lambda asked: fleet_handlers.push_messages(asked, state),
            PullObjectRequest: lambda asked: fleet_handlers.pull_object(asked, state),
            PushObjectRequest: lambda asked: fleet_handlers.push_object(asked, state),
        }
        relay.on_mail(self._mail)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        scope["app"] = self._app
        request, node = Request(scope, receive), 0
        try:
            asked = await self._parsed(request)
            node = await run_in_threadpool(self._authenticated, request, asked)
            if isinstance(asked, PullMessagesRequest) and not await self._hold(node):
                raise _RefusedError(409, "another connection took over")
            answer = await run_in_threadpool(self._answer, asked)
            response = Response(answer.SerializeToString(), media_type=PROTOBUF_MEDIA_TYPE)
        except ClientDisconnect:
            return
        except _RefusedError as error:
            response = JSONResponse({"detail": error.reason}, status_code=error.status)
        except HTTPException as error:
            response = JSONResponse({"detail": error.detail}, status_code=error.status_code)
        except FlowerError as error:
            response = JSONResponse({"detail": str(error.code)}, status_code=409)
        response.headers[NODE_HEADER] = json.dumps(node)
        await response(scope, receive, send)

    async def _parsed(self, request: Request) -> Message:
        kind = _CALLS.get(request.url.path)
        if kind is None or request.method != "POST":
            raise _RefusedError(404, "not found")
        if request.headers.get("content-type", "") != PROTOBUF_MEDIA_TYPE:
            raise _RefusedError(415, "not protobuf")
        asked = kind()
        try:
            asked.ParseFromString(await request.body())
        except DecodeError as error:
            raise _RefusedError(400, "not readable") from error
        return asked

    def _authenticated(self, request: Request, asked: Message) -> int:
        """Return which node asks, once Flower has compared it with the key that signed and it asks for itself alone."""
        request.state.protobuf_request = asked
        authenticate_node(request)
        node = _node_of(self._relay, asked)
        if not node:
            raise _RefusedError(403, "not admitted")
        if not self._may(node, asked):
            raise _RefusedError(403, "not this node's")
        if isinstance(asked, ActivateNodeRequest):
            # A site that was cut off, or killed, connects anew: Flower would turn it away until its heartbeats are due.
            self._relay.state.deactivate_node(node)
        return node

    def _answer(self, asked: Message) -> Message:
        if isinstance(asked, PushMessagesRequest) and not self._is_awaited(asked):
            # Late, for a message that was given up. Flower would begin a session that nothing ends.
            return PushMessagesResponse()
        try:
            answer = self._handlers[type(asked)](asked)
        except FlowerError:
            raise
        except Exception as error:  # a node can send anything: Flower's handlers do not expect all of it
            _log.warning("a request that Flower could not handle: %s", type(error).__name__)
            raise _RefusedError(400, "not readable") from error
        if not isinstance(asked, PullMessagesRequest | PullObjectRequest | SendNodeHeartbeatRequest):
            self._relay.news()
        return answer

    def _may(self, node: int, asked: Message) -> bool:
        """Return whether a node that is who it says may ask this. Flower compares the node's key and number alone."""
        if isinstance(asked, PushMessagesRequest):
            may = self._may_reply(node, asked)
            if may:
                self._pushed[node] = 0
            return may
        if isinstance(asked, PushObjectRequest):
            # Flower accepts an object without a session from anyone, and as much as is announced.
            self._pushed[node] = self._pushed.get(node, 0) + len(asked.object_content)
            return bool(asked.session_id) and self._pushed[node] <= MAX_MESSAGE
        if isinstance(asked, PullObjectRequest):
            return self._relay.connection(node) is not None
        return True

    def _may_reply(self, node: int, asked: PushMessagesRequest) -> bool:
        """Return whether this is one reply of the node itself, the first, to what it was asked, of parts with names."""
        state = self._relay.state
        if not len(asked.messages_list) == len(asked.message_object_trees) == 1:
            return False
        metadata, tree = asked.messages_list[0].metadata, asked.message_object_trees[0]
        if metadata.src_node_id != node or not metadata.reply_to_message_id or metadata.message_id != tree.object_id:
            return False
        for count, part in enumerate(iterate_object_tree(tree), 1):
            if count > MAX_PARTS or not _NAME.fullmatch(part.object_id):
                return False
        with state.lock:
            message = state.message_ins_store.get(metadata.reply_to_message_id)
            answered = metadata.reply_to_message_id in state.message_ins_id_to_message_res_id
        return message is None or (message.metadata.dst_node_id == node and not answered)

    def _is_awaited(self, asked: PushMessagesRequest) -> bool:
        return asked.messages_list[0].metadata.reply_to_message_id in self._relay.state.message_ins_store

    async def _hold(self, node: int) -> bool:
        """Wait for a message, as long as this connection is the node's own; whoever is replaced gets nothing."""
        self._loop = asyncio.get_running_loop()
        connection = self._relay.connection(node)
        end = self._loop.time() + self._hold_seconds
        while connection is not None and (left := end - self._loop.time()) > 0:
            woken = self._loop.create_future()
            waiting = self._waiting.setdefault(node, set())
            waiting.add(woken)
            try:
                if self._relay.has_mail(node) or self._relay.closed:
                    break
                await asyncio.wait_for(woken, left)
            except TimeoutError:
                break
            finally:
                waiting.discard(woken)
        return connection is not None and self._relay.connection(node) == connection

    def _mail(self, node: int | None) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(self._wake, node)

    def _wake(self, node: int | None) -> None:
        nodes = self._waiting if node is None else (node,)
        for woken in [found for name in nodes for found in self._waiting.get(name, ())]:
            if not woken.done():
                woken.set_result(None)


def _node_of(relay: Relay, asked: Message) -> int:
    """Return which node asks."""
    if isinstance(asked, ActivateNodeRequest):
        return relay.state.get_node_id_by_public_key(asked.public_key) or 0
    node = getattr(asked, "node", None)
    number = getattr(asked, "node_id", 0) if node is None else node.node_id
    return int(number)
