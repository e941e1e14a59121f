"""The guard counts and limits requests before the app sees a byte, and tells the audit log of every one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from starlette.types import Message, Receive, Scope, Send

from common.link.fleet_app import NODE_HEADER
from server.guard import Call, Guard, Limits

PATH = "/v1/fleet/pull-messages"


@dataclass
class App:
    """Reads the whole body, and answers that a node was authenticated, or not."""

    node: int = 0
    status: int = 200
    read: list[bytes] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        self.read.append(body)
        headers = [(NODE_HEADER.encode(), json.dumps(self.node).encode()), (b"x-other", b"1")]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"answer"})


@dataclass
class Desk:
    """A guard with an app behind it, a clock that stands, and what became of each request."""

    limits: Limits
    app: App = field(default_factory=App)
    now: float = 0.0
    calls: list[Call] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.guard = Guard(self.app, audit=self.calls.append, limits=self.limits, clock=lambda: self.now)

    def ask(
        self,
        chunks: Iterable[bytes] = (b"body",),
        *,
        length: str | None = None,
        path: str = PATH,
        method: str = "POST",
        key: str = "",
        peer: str = "10.0.0.1",
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> int:
        parts = list(chunks)
        size = str(sum(map(len, parts))) if length is None else length
        known = [(b"flwr-public-key", key.encode()), *([(b"content-length", size.encode())] if size else []), *headers]
        scope = {"type": "http", "path": path, "method": method, "headers": known, "client": (peer, 1)}
        waiting = [
            {"type": "http.request", "body": part, "more_body": number < len(parts)}
            for number, part in enumerate(parts, 1)
        ]

        async def receive() -> Message:
            if not waiting:
                await asyncio.Event().wait()
            return waiting.pop(0)

        async def send(message: Message) -> None:
            self.sent.append(message)

        self.sent.clear()
        asyncio.run(self.guard(scope, receive, send))
        return int(self.sent[0]["status"])


def test_what_is_in_bounds_passes_whole_and_the_nodes_name_goes_to_the_log_alone() -> None:
    desk = Desk(Limits(), App(node=7))
    assert desk.ask([b"ab", b"cd"], key="north") == 200
    assert desk.app.read == [b"abcd"]
    assert [name for name, _ in desk.sent[0]["headers"]] == [b"x-other"]
    (call,) = desk.calls
    assert (call.node, call.peer, call.path, call.status, call.received, call.sent) == (7, "10.0.0.1", PATH, 200, 4, 6)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"path": "/v1/control/start-run"}, 404),
        ({"method": "GET"}, 405),
        ({"length": ""}, 411),
        ({"length": "-1"}, 411),
        ({"length": "1e3"}, 411),
        ({"length": "9" * 30}, 411),
        ({"length": "101"}, 413),
        ({"headers": ((b"transfer-encoding", b"chunked"),)}, 411),
    ],
)
def test_what_is_out_of_bounds_is_refused_before_a_byte_is_read(request_: dict[str, str], status: int) -> None:
    desk = Desk(Limits(body_bytes=100))
    assert desk.ask(**request_) == status  # type: ignore[arg-type]
    assert desk.app.read == []
    assert [(call.status, call.received) for call in desk.calls] == [(status, 0)]
    assert (b"connection", b"close") in desk.sent[0]["headers"]


def test_a_body_that_is_longer_than_it_said_is_cut_off() -> None:
    desk = Desk(Limits())
    assert desk.ask([b"ab", b"cdef"], length="3") == 413
    assert desk.app.read == []


def test_a_body_that_does_not_come_is_given_up() -> None:
    desk = Desk(Limits(patience_seconds=0.01, slowest_rate=1e9))
    assert desk.ask([], length="3") == 408


def test_refusals_are_forgiven_with_time_and_others_never_pay_for_them() -> None:
    desk = Desk(Limits(refusals=2, refusal_seconds=10.0))
    assert [desk.ask(path="/x") for _ in range(3)] == [404, 404, 429]
    assert desk.ask() == 429
    assert desk.ask(peer="10.0.0.2") == 200
    desk.now += 5.0
    assert desk.ask() == 200


@pytest.mark.parametrize("status", [409, 429])
def test_what_says_nothing_against_a_peer_is_no_refusal(status: int) -> None:
    desk = Desk(Limits(refusals=1), App(node=7, status=status))
    assert [desk.ask(key="north") for _ in range(5)] == [status] * 5


def test_calls_have_a_rate_over_a_burst() -> None:
    desk = Desk(Limits(calls_per_second=2.0, calls_burst=3))
    assert [desk.ask() for _ in range(5)] == [200, 200, 200, 429, 429]
    desk.now += 1.0
    assert [desk.ask() for _ in range(3)] == [200, 200, 429]


def test_a_node_that_has_proven_its_key_has_limits_of_its_own_and_nobody_else_can_spend_them() -> None:
    desk = Desk(Limits(refusals=2, refusal_seconds=1e9), App(node=7))
    assert desk.ask(key="north") == 200
    desk.app.node, desk.app.status = 0, 401
    assert [desk.ask(key="north") for _ in range(3)] == [401, 401, 401]
    assert [desk.ask(key=f"guess-{number}") for number in range(3)] == [429] * 3
    desk.app.node, desk.app.status = 7, 200
    assert desk.ask(key="north") == 200
    desk.app.status = 403
    assert [desk.ask(key="north") for _ in range(3)] == [403, 403, 429]


def test_names_are_forgotten_that_were_not_used_for_longest() -> None:
    desk = Desk(Limits(peers=3), App(node=7))
    for number in range(50):
        assert desk.ask(key=f"key-{number}", peer=f"10.0.1.{number}") == 200
    assert len(desk.guard._calls._left) == len(desk.guard._proven) == 3
    assert not desk.guard._reading


def test_an_app_that_fails_is_in_the_log_too() -> None:
    async def failing(scope: Scope, receive: Receive, send: Send) -> None:
        raise LookupError

    calls: list[Call] = []

    async def nothing() -> Message:
        return {"type": "http.request"}

    async def send(_message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "path": PATH, "method": "POST", "headers": [(b"content-length", b"0")], "client": None}
    with pytest.raises(LookupError):
        asyncio.run(Guard(failing, audit=calls.append)(scope, nothing, send))
    assert [(call.status, call.peer) for call in calls] == [(0, "")]
