"""Bytes that no site sends: too many, too few, too slow, unreadable. They are refused or cut off; sites are served."""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest

from common.keystore import generate_node_key
from common.link.nodes import node_key_bytes
from server import listener
from server.guard import Limits
from tests.links import ELSEWHERE, HOST, PROTOBUF, Link, Member, Speaker, ask, echo, linked, signed

PATH = "/v1/fleet/pull-messages"
QUICK = Limits(patience_seconds=0.3, slowest_rate=1e9, refusals=10_000)
MIB = 1 << 20


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    with linked(tmp_path, limits=QUICK, head_seconds=0.3) as made:
        yield made


def served(link: Link) -> None:
    """Have an honest site connect and answer."""
    north = link.admitted(f"north-{len(link.relay.state.nodes)}")
    with link.relay.run() as grid, link.serving(north, echo("north")):
        assert ask(grid, [north.node], "here?") == {north.node: "north: here?"}


def head(*lines: str, path: str = PATH, method: str = "POST", connection: str = "close") -> bytes:
    first = [f"{method} {path} HTTP/1.1", f"host: {HOST}", f"connection: {connection}"]
    return "\r\n".join([*first, *lines, "", ""]).encode()


def answer(connection: socket.socket) -> bytes:
    """Return all that comes until the other side ends it."""
    found = b""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while chunk := connection.recv(1 << 16):
            found += chunk
    return found


def status(answered: bytes) -> int:
    return int(answered.split(b" ", 2)[1]) if answered.startswith(b"HTTP/1.1 ") else 0


def said_to(link: Link, sent: bytes) -> bytes:
    with link.raw(link.admitted(f"sender-{len(link.relay.state.nodes)}")) as connection:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            connection.sendall(sent)
        return answer(connection)


STRANGE: dict[str, tuple[bytes, set[int]]] = {
    "declared too long": (head("content-length: 8388609"), {413}),
    "declared absurdly": (head("content-length: 99999999999999999999"), {400, 411}),
    "declared negative": (head("content-length: -1"), {400}),
    "no length": (head(), {411}),
    "chunked": (head("transfer-encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n", {411}),
    "chunked for ever": (head("transfer-encoding: chunked") + b"fffff\r\n" + bytes(2 * MIB), {411}),
    "chunked and a length": (head("transfer-encoding: chunked", "content-length: 3") + b"0\r\n\r\n", {400, 411}),
    "a length and chunked": (head("content-length: 3", "transfer-encoding: chunked") + b"0\r\n\r\n", {400, 411}),
    "another coding": (head("transfer-encoding: gzip, chunked", "content-length: 3") + b"abc", {400, 411, 501}),
    "two lengths": (head("content-length: 3", "content-length: 4") + b"abcd", {400}),
    "two lengths in one": (head("content-length: 3, 4") + b"abcd", {400}),
    "a space before the colon": (head("content-length : 3") + b"abc", {400}),
    "a folded header": (head("x: 1\r\n content-length: 9", "content-length: 3") + b"abc", {400, 415}),
    "a bare line feed": (
        b"POST /v1/fleet/pull-messages HTTP/1.1\nhost: x\nconnection: close\ncontent-length: 3\n\nabc",
        {400, 415},
    ),
    "a null in a header": (head("x: a\x00b", "content-length: 0"), {400}),
    "no host": (b"POST /v1/fleet/pull-messages HTTP/1.1\r\ncontent-length: 0\r\n\r\n", {400}),
    "another type": (head("content-type: text/plain", "content-length: 3") + b"abc", {415}),
    "no type": (head("content-length: 3") + b"abc", {415}),
    "no protobuf": (head(f"content-type: {PROTOBUF}", "content-length: 3") + b"\xff\xff\xff", {400}),
    "a header of a megabyte": (head("x: " + "a" * MIB, "content-length: 0"), {400, 431}),
    "a hundred thousand headers": (head(*(f"x{n}: 1" for n in range(100_000)), "content-length: 0"), {400, 431}),
    "a path of a megabyte": (head("content-length: 0", path="/" + "a" * MIB), {400, 414}),
    "a whole address": (head("content-length: 0", path="http://elsewhere/v1/fleet/pull-messages"), {400, 404}),
    "a tunnel": (head(path="elsewhere:443", method="CONNECT"), {400, 404, 405}),
    "an upgrade": (head("upgrade: websocket", "content-length: 0", connection="upgrade, close"), {400, 415}),
    "another protocol": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 404, 505}),
    "bytes": (bytes(range(256)) * 300, {400}),
}


@pytest.mark.parametrize(("sent", "expected"), STRANGE.values(), ids=STRANGE)
def test_a_strange_request_is_answered_once_with_an_error_and_cut_off(
    link: Link, sent: bytes, expected: set[int]
) -> None:
    # What follows an error must not be taken for another request.
    answered = said_to(link, sent)
    if answered:
        assert status(answered) in expected, answered[:200]
    else:
        # The other side was gone before all of it was sent.
        assert len(sent) > MIB // 4
    assert answered.count(b"HTTP/1.1 ") <= 1


def test_a_second_request_hidden_in_a_body_that_is_too_long_is_never_answered_as_another_nodes(link: Link) -> None:
    hidden = head("content-length: 0", path="/v1/fleet/activate-node")
    answered = said_to(link, head(f"content-type: {PROTOBUF}", "content-length: 0", connection="keep-alive") + hidden)
    # Two requests in a row on one connection are two requests, each of which must be signed for itself.
    served(link)
    assert [call.status for call in link.calls[:2]] == [401, 415]
    assert answered.count(b"HTTP/1.1 4") == 2


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"\x16\x03\x01\xff\xff" + bytes(4000)])
def test_what_is_no_tls_is_cut_off_and_nobody_is_told_anything(link: Link, garbage: bytes) -> None:
    with link.plain() as connection:
        connection.sendall(garbage)
        answered = answer(connection)
    assert b"HTTP" not in answered
    assert len(answered) < 100
    assert link.calls == []
    served(link)


SLOW: dict[str, tuple[bytes, int]] = {
    "no byte": (b"", 0),
    "half a head": (b"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost:", 0),
    "half a body": (head(f"content-type: {PROTOBUF}", "content-length: 100") + b"half", 408),
}


@pytest.mark.parametrize(("sent", "expected"), SLOW.values(), ids=SLOW)
def test_whoever_does_not_finish_is_cut_off_in_time_and_others_are_served_meanwhile(
    link: Link, sent: bytes, expected: int
) -> None:
    slow = [link.raw(link.admitted(f"slow-{number}")) for number in range(5)]
    for connection in slow:
        connection.sendall(sent)
    served(link)
    assert {status(answer(connection)) for connection in slow} == {expected}
    for connection in slow:
        connection.close()


def test_a_head_that_comes_byte_by_byte_has_no_more_time_for_it(link: Link) -> None:
    with link.raw(link.admitted("slow")) as connection, contextlib.suppress(ConnectionError, ssl.SSLError):
        connection.settimeout(0.05)
        for _ in range(200):
            connection.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    break
        else:
            pytest.fail("the connection was held for longer than a head may take")


def test_one_address_holds_so_many_connections_even_before_tls_and_no_more(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_CONNECTIONS_OF_ONE", 8)
    held = [link.plain() for _ in range(8)]
    refused = [link.plain() for _ in range(20)]
    for connection in refused:
        assert answer(connection) == b""
    served(link)
    for connection in [*held, *refused]:
        connection.close()
    # Whoever lets go may come again.
    cheat = link.admitted("elsewhere")
    for _ in range(50):
        try:
            with link.raw(cheat) as connection:
                connection.sendall(head())
                assert status(answer(connection)) == 411
                break
        except (ConnectionError, ssl.SSLError):
            continue
    else:
        pytest.fail("the address is not let in again")


def from_elsewhere(link: Link, member: Member) -> httpx.Client:
    transport = httpx.HTTPTransport(verify=member.tls, local_address=ELSEWHERE)
    return httpx.Client(transport=transport, base_url=link.url, timeout=20)


def call(client: httpx.Client, headers: dict[str, str], body: bytes = b"") -> int:
    return client.post(PATH, content=body, headers={"content-type": PROTOBUF, **headers}).status_code


Headers = Callable[[Member, int], dict[str, str]]
FLOODS: dict[str, Headers] = {
    "no key": lambda _north, _number: {},
    "another key each time": lambda _north, number: {"flwr-public-key": f"key-{number}"},
    "an honest key": lambda north, _number: signed(generate_node_key(), public=node_key_bytes(north.key.public_key())),
}


@pytest.mark.parametrize("headers", FLOODS.values(), ids=FLOODS)
def test_who_is_refused_too_often_is_turned_away_unread_whatever_key_it_names(tmp_path: Path, headers: Headers) -> None:
    with linked(tmp_path, limits=Limits(refusals=5)) as link:
        north, stranger = link.admitted("north"), link.admitted("stranger")
        with from_elsewhere(link, stranger) as client:
            found = [call(client, headers(north, number)) for number in range(12)]
        assert found == [401] * 5 + [429] * 7
        served(link)


@pytest.mark.parametrize("headers", FLOODS.values(), ids=FLOODS)
def test_a_site_that_has_proven_its_key_is_served_beside_an_attacker_at_its_own_address(
    tmp_path: Path, headers: Headers
) -> None:
    with linked(tmp_path, limits=Limits(refusals=5)) as link:
        north, stranger = link.admitted("north"), link.admitted("stranger")
        with Speaker(link, north) as honest, Speaker(link, stranger) as cheat:
            honest.activate()
            for number in range(12):
                call(cheat.client, headers(north, number))
            honest.activate()
            assert honest.post("pull-messages", PullMessagesRequest(node=honest.node)).status_code == 200


def test_who_calls_too_often_is_turned_away_and_others_are_served(tmp_path: Path) -> None:
    limits = Limits(calls_per_second=0.001, calls_burst=20)
    with linked(tmp_path, limits=limits) as link:
        busy = link.admitted("busy")
        request = ActivateNodeRequest(public_key=node_key_bytes(busy.key.public_key()), heartbeat_interval=10.0)
        with from_elsewhere(link, busy) as client:
            found = [
                client.post(
                    "/v1/fleet/activate-node",
                    content=request.SerializeToString(),
                    headers={"content-type": PROTOBUF, **signed(busy.key)},
                ).status_code
                for _ in range(30)
            ]
        # The first is the address's, those that follow the proven key's.
        assert found == [200] * 21 + [429] * 9
        served(link)


def test_bodies_that_are_held_open_at_once_have_a_limit_together(tmp_path: Path) -> None:
    limits = Limits(body_bytes=MIB, open_bytes=3 * MIB)
    with linked(tmp_path, limits=limits) as link:
        holder = link.admitted("holder")
        open_ = head(f"content-type: {PROTOBUF}", f"content-length: {MIB}") + bytes(1000)
        held = [link.raw(holder) for _ in range(3)]
        for connection in held:
            connection.sendall(open_)
        # Three bodies are being read as soon as the fourth is refused; one before that would have been let in.
        for _ in range(50):
            with link.raw(holder) as connection:
                connection.settimeout(0.2)
                connection.sendall(open_)
                with contextlib.suppress(TimeoutError):
                    if status(answer(connection)) == 429:
                        break
        else:
            pytest.fail("a fourth body was read")
        served(link)
        for connection in held:
            connection.close()
