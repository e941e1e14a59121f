"""The operator's listener as an ASGI app: Flower's Fleet routes and nothing else, for admitted nodes only.

Flower's own middleware parses and authenticates. What it leaves open is closed here: a node may speak, reply and
confirm for itself alone, once and in bounds, and only the calls that a site needs are there: no registration, no run,
no code bundle, and neither the Control nor the Runtime API. A node that asks for messages is kept waiting until there
is one.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.supercore.error import http_error_translator
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.routers.fleet.router import router
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp

from common.link.parts import MAX_MESSAGE, MAX_PARTS
from common.link.relay import Relay

PATHS = frozenset(
    f"/v1/fleet/{call}"
    for call in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "pull-object",
        "push-object",
        "confirm-message-received",
    )
)
"""What a site calls. Everything else is not there."""
HOLD_SECONDS = 10.0
_NAME = re.compile(r"[0-9a-f]{64}")
NODE_HEADER = "x-consilium-node"
"""Set on the response for whoever keeps the audit log in front of this app, which removes it again."""
Next = Callable[[Request], Awaitable[Response]]


def fleet_app(relay: Relay, *, hold_seconds: float = HOLD_SECONDS) -> ASGIApp:
    """Return the app; it answers for the nodes that the relay has admitted, and for no others."""
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        middleware=[
            Middleware(BaseHTTPMiddleware, dispatch=http_error_translator),
            Middleware(ProtobufTranslationMiddleware),
            Middleware(NodeAuthMiddleware),
            Middleware(BaseHTTPMiddleware, dispatch=_Claims(relay, hold_seconds)),
        ],
    )
    app.state.linkstate_factory = relay.factory
    app.state.enable_supernode_auth = True
    app.include_router(router)
    return app


class _Claims:
    """Lets a node act for itself alone, and holds back an answer that would be empty."""

    def __init__(self, relay: Relay, hold_seconds: float) -> None:
        self._relay, self._hold_seconds = relay, hold_seconds
        self._waiting: dict[int, set[asyncio.Future[None]]] = {}
        self._pushed: dict[int, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        relay.on_mail(self._mail)

    async def __call__(self, request: Request, call_next: Next) -> Response:
        asked = getattr(request.state, "protobuf_request", None)
        if request.url.path not in PATHS or asked is None:
            return JSONResponse({"detail": "not found"}, status_code=404)
        node = _node_of(self._relay, asked)
        if not await run_in_threadpool(self._may, node, asked):
            return _marked(JSONResponse({"detail": "not this node's"}, status_code=403), node)
        if (over := self._over(asked)) is not None:
            request.state.protobuf_response = over
            return _marked(Response(), node)
        if isinstance(asked, ActivateNodeRequest):
            # A site that was cut off, or killed, connects anew: Flower would turn it away until its heartbeats are due.
            self._relay.state.deactivate_node(node)
        if isinstance(asked, PullMessagesRequest) and not await self._hold(node):
            return _marked(JSONResponse({"detail": "another connection took over"}, status_code=409), node)
        response = await call_next(request)
        if not isinstance(asked, PullMessagesRequest):
            self._relay.news()
        return _marked(response, node)

    def _may(self, node: int, asked: object) -> bool:
        """Return whether a node that is who it says may ask this. Flower compares the node's key and number alone."""
        if isinstance(asked, PushMessagesRequest):
            may = self._may_reply(node, asked)
            if may:
                self._pushed[node] = 0
            return may
        if isinstance(asked, ConfirmMessageReceivedRequest):
            message = self._relay.state.message_ins_store.get(asked.message_object_id)
            return message is None or message.metadata.dst_node_id == node
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

    def _over(self, asked: object) -> PushMessagesResponse | ConfirmMessageReceivedResponse | None:
        """Return the empty answer to whoever is late, for a message that is waited for no longer.

        Flower would begin a session, which nothing ends, or drop whatever else has the name.
        """
        messages = self._relay.state.message_ins_store
        if isinstance(asked, PushMessagesRequest):
            known = asked.messages_list[0].metadata.reply_to_message_id in messages
            return None if known else PushMessagesResponse()
        if isinstance(asked, ConfirmMessageReceivedRequest):
            return None if asked.message_object_id in messages else ConfirmMessageReceivedResponse()
        return None

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


def _node_of(relay: Relay, asked: object) -> int:
    """Return which node asks; Flower has compared it with the key that signed."""
    if isinstance(asked, ActivateNodeRequest):
        return relay.state.get_node_id_by_public_key(asked.public_key) or 0
    node = getattr(asked, "node", None)
    number = getattr(asked, "node_id", 0) if node is None else node.node_id
    return int(number)


def _marked(response: Response, node: int) -> Response:
    response.headers[NODE_HEADER] = json.dumps(node)
    return response
