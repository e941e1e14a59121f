"""A site behind an HTTP proxy: the TLS connection is tunnelled, and the proxy sees an address and nothing else."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.link.node import NodeLink, Server
from tests.links import HOST, Link, ask, echo, linked


class Tunnels:
    """An HTTP proxy that knows CONNECT alone, and remembers what it was told."""

    def __init__(self) -> None:
        self._listener = socket.create_server((HOST, 0))
        self.port = self._listener.getsockname()[1]
        self.heads: list[bytes] = []
        self.seen = bytearray()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += near.recv(4096)
        self.heads.append(head)
        host, _, port = head.split()[1].decode().rpartition(":")
        far = socket.create_connection((host, int(port)), 10)
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=self._pipe, args=(far, near, None), daemon=True)
        back.start()
        self._pipe(near, far, self.seen)
        back.join(10)

    def _pipe(self, source: socket.socket, target: socket.socket, into: bytearray | None) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 16):
                if into is not None:
                    into += chunk
                target.sendall(chunk)
            target.shutdown(socket.SHUT_WR)


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    with linked(tmp_path) as made:
        yield made


def test_a_site_reaches_its_operator_through_a_proxy_that_learns_the_address_alone(link: Link) -> None:
    member, tunnels = link.admitted("north"), Tunnels()
    server = Server(f"{HOST}:{link.port}", member.tls, f"http://{HOST}:{tunnels.port}")
    node = NodeLink(server, member.key, echo("north"), write=lambda *_: None)
    thread = threading.Thread(target=node.serve, daemon=True)
    thread.start()
    try:
        with link.relay.run() as grid:
            assert ask(grid, [member.node], "a word that nobody else reads", 30.0)
    finally:
        node.stop()
        link.relay.close()
        thread.join(20)
        tunnels.close()
    assert tunnels.heads
    for head in tunnels.heads:
        assert head.startswith(f"CONNECT {HOST}:{link.port} HTTP/1.1".encode())
        assert b"flwr" not in head
    # From the first byte on it is TLS: a handshake record, and never a word in clear.
    assert tunnels.seen[:1] == b"\x16"
    assert b"a word that nobody else reads" not in tunnels.seen
    assert b"flwr-public-key" not in tunnels.seen


def test_no_proxy_is_taken_from_the_environment(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{HOST}:9")
    member = link.admitted("north")
    with link.relay.run() as grid, link.serving(member, echo("north")):
        assert ask(grid, [member.node], "here?", 30.0)
