"""What stands before the Fleet app: no byte is parsed for whoever asks too much, too fast, too slowly or elsewhere.

Limits are of requests, not of studies: how large a body may be, how long it may take, how often one peer may be refused
and one node may call. Each request, let through or not, leaves a line in the audit log.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.link.fleet_app import NODE_HEADER, PATHS

_KEY_HEADER = b"flwr-public-key"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request and one peer may ask for.

    body_bytes       largest body; a vector travels in pieces of 5 MiB, whatever its length
    calls_per_second of one peer, over a burst of ``calls_burst``
    refusals         of one peer within ``refusal_seconds``, after which it is turned away unread
    slowest_rate     bytes a second that a body must come with, after ``patience_seconds``
    open_bytes       of all bodies of one peer that are being read at once
    peers            that are told apart: an address, or a node that has shown itself to hold its key, at an address
    """

    body_bytes: int = 8 << 20
    calls_per_second: float = 200.0
    calls_burst: float = 2000.0
    refusals: int = 20
    refusal_seconds: float = 60.0
    slowest_rate: float = 64 << 10
    patience_seconds: float = 10.0
    open_bytes: int = 32 << 20
    peers: int = 10_000


@dataclass(frozen=True, slots=True)
class Call:
    """One request as the audit log has it.

    node   the node that Flower authenticated, 0 for none
    """

    at: float
    peer: str
    path: str
    node: int
    status: int
    received: int
    sent: int
    seconds: float


class Guard:
    """An ASGI app in front of another. ``audit`` is called once for each request, when its response is out."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        audit: Callable[[Call], None],
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._audit, self._limits, self._clock = app, audit, limits, clock
        self._calls = _Buckets(limits.calls_per_second, limits.calls_burst, limits.peers)
        self._refusals = _Buckets(limits.refusals / limits.refusal_seconds, limits.refusals, limits.peers)
        self._proven: OrderedDict[str, None] = OrderedDict()
        self._reading: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        start = self._clock()
        # Anybody can name a key: a site behind the same address as an attacker is apart from it once it has proven its
        # own, and whoever names many has no more for it.
        key = f"{exchange.peer} {exchange.key}"
        name = key if key in self._proven else exchange.peer
        refusal = self._refused(scope, exchange, name, start) if scope["type"] == "http" else (404, "not found")
        reading = 0 if refusal is not None else exchange.length or 0
        self._reading[name] += reading
        try:
            if refusal is not None:
                await exchange.refuse(*refusal)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except _TooMuchError as error:
            await exchange.refuse(error.status, str(error))
        finally:
            self._reading[name] -= reading
            if not self._reading[name]:
                del self._reading[name]
            if exchange.node:
                self._prove(key)
            if 400 <= exchange.status < 500 and exchange.status not in (409, 429):
                # Whoever names a node's key and cannot sign with it takes nothing from that node.
                self._refusals.take(name if exchange.node else exchange.peer, start)
            self._audit(
                Call(
                    at=time.time(),
                    peer=exchange.peer,
                    path=str(scope.get("path", ""))[:100],
                    node=exchange.node,
                    status=exchange.status,
                    received=exchange.received,
                    sent=exchange.sent,
                    seconds=self._clock() - start,
                )
            )

    def _prove(self, key: str) -> None:
        self._proven[key] = None
        self._proven.move_to_end(key)
        while len(self._proven) > self._limits.peers:
            self._proven.popitem(last=False)

    def _refused(self, scope: Scope, exchange: _Exchange, name: str, now: float) -> tuple[int, str] | None:
        """Return why a request is refused before a byte of its body is read; None lets it through."""
        if not self._refusals.has(name, now):
            return 429, "refused too often"
        if not self._calls.take(name, now):
            return 429, "too many calls"
        if scope["path"] not in PATHS:
            return 404, "not found"
        if scope["method"] != "POST":
            return 405, "POST only"
        if exchange.length is None:
            return 411, "a length is needed"
        if exchange.length > self._limits.body_bytes:
            return 413, "the body is too large"
        if self._reading[name] + exchange.length > self._limits.open_bytes:
            return 429, "too much at once"
        return None


class _TooMuchError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class _Exchange:
    """One request and its response, counted and limited."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        headers: Mapping[bytes, bytes] = dict(scope.get("headers", ()))
        client = scope.get("client")
        self.peer = str(client[0]) if client else ""
        self.key = headers.get(_KEY_HEADER, b"")[:512].decode("ascii", "replace")
        # With both, two readers could find two ends of one body.
        length = b"" if b"transfer-encoding" in headers else headers.get(b"content-length", b"")
        self.length = int(length) if length.isdigit() and len(length) < 16 else None
        self.status = self.received = self.sent = self.node = 0
        allowed = limits.patience_seconds + (self.length or 0) / limits.slowest_rate
        self._end = time.monotonic() + allowed
        self._whole = False
        self._stop = 0

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._end - time.monotonic()))
        except TimeoutError as error:
            raise self._stopped(408, "the body is too slow") from error
        self.received += len(message.get("body", b""))
        if self.length is not None and self.received > self.length:
            raise self._stopped(413, "the body is longer than its length")
        self._whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            # The app may have made something else of what stopped it.
            self.status = self._stop or message["status"]
            kept = []
            for name, value in message.get("headers", ()):
                if name.decode("ascii").lower() == NODE_HEADER:
                    self.node = json.loads(value)
                else:
                    kept.append((name, value))
            message = {**message, "status": self.status, "headers": kept}
        elif message["type"] == "http.response.body":
            self.sent += len(message.get("body", b""))
        await self._send(message)

    async def refuse(self, status: int, reason: str) -> None:
        """Answer with an error and have the connection closed; nothing more of it is read."""
        if self.status:
            return
        response = JSONResponse({"detail": reason}, status_code=status, headers={"connection": "close"})
        await response(self._scope, self._receive, self.send)

    def _stopped(self, status: int, reason: str) -> _TooMuchError:
        self._stop = status
        return _TooMuchError(status, reason)


class _Buckets:
    """A token bucket a name; the names used longest ago are forgotten first."""

    def __init__(self, rate: float, burst: float, names: int) -> None:
        self._rate, self._burst, self._names = rate, burst, names
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def has(self, name: str, now: float) -> bool:
        """Return whether a token is left."""
        return self._now(name, now) >= 1.0

    def take(self, name: str, now: float) -> bool:
        """Take a token; returns whether there was one."""
        left = self._now(name, now)
        taken = left >= 1.0
        self._left[name] = (left - taken, now)
        self._left.move_to_end(name)
        while len(self._left) > self._names:
            self._left.popitem(last=False)
        return taken

    def _now(self, name: str, now: float) -> float:
        left, at = self._left.get(name, (self._burst, now))
        return min(self._burst, left + (now - at) * self._rate)
