"""A TLS listener in a thread of its own, whose connections have limits before anything is parsed.

uvicorn speaks HTTP. What it has no limit for is added here: how long a handshake and the head of a request may take,
and how many connections one address may hold, from before the handshake on.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from common import errors
from common.errors import ConsiliumError

_HEAD_SECONDS = 10.0
_HANDSHAKE_SECONDS = 10.0
_IDLE_SECONDS = 30
_HEAD_BYTES = 16 << 10
_CONNECTIONS = 1000
_CONNECTIONS_OF_ONE = 256
_START_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; port 0 lets the system choose."""

    host: str
    port: int


def tls_context(certificate: str, key: str, client_ca: str | None, passphrase: bytes | None = None) -> ssl.SSLContext:
    """Return a server's TLS context; with ``client_ca`` whoever has no certificate of it is cut off in the handshake.

    passphrase  of the key, if it is encrypted
    Raises CSL-643 for files that are no certificate and key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        # Without one, OpenSSL would ask whoever sits at the terminal.
        context.load_cert_chain(certificate, key, password=passphrase or b"none")
        if client_ca is not None:
            context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise ConsiliumError(errors.LINK_TLS, f"{certificate}: {error}") from error
    return context


@contextlib.contextmanager
def listening(
    app: ASGIApp, address: Address, tls: ssl.SSLContext | None, *, head_seconds: float = _HEAD_SECONDS
) -> Iterator[int]:
    """Serve an app until the context is left; yields the port.

    head_seconds  how long the head of a request may take
    Raises CSL-644 where the address cannot be listened on.
    """
    sock = _bound(address)
    protocol = type("LimitedProtocol", (_Limited,), {"head_seconds": head_seconds})
    config = uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE_SECONDS,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=_HEAD_BYTES,
    )
    config.load()
    config.ssl = tls
    server = uvicorn.Server(config)
    failed: list[BaseException] = []

    def serve() -> None:
        try:
            with asyncio.Runner(loop_factory=_Loop) as runner:
                runner.run(server.serve(sockets=[sock]))
        except BaseException as error:  # told to whoever waits for the start
            failed.append(error)

    thread = threading.Thread(target=serve, name="listener", daemon=True)
    thread.start()
    try:
        waited = threading.Event()
        for _ in range(int(_START_SECONDS / 0.01)):
            if server.started or failed:
                break
            waited.wait(0.01)
        if not server.started:
            raise ConsiliumError(errors.LINK_LISTEN, f"{address.host}:{address.port}: {failed or 'no start'}")
        yield int(sock.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(10.0)
        sock.close()


def _bound(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = _Door(family)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address.host, address.port))
        sock.set_inheritable(False)
    except OSError as error:
        sock.close()
        raise ConsiliumError(errors.LINK_LISTEN, f"{address.host}:{address.port}: {error.strerror}") from error
    return sock


class _Door(socket.socket):
    """A listening socket that turns away whoever holds too many connections already, even without a word of TLS."""

    def __init__(self, family: socket.AddressFamily) -> None:
        # With the protocol named, or asyncio leaves Nagle's delay on: 40 ms for every response.
        super().__init__(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._open: Counter[str] = Counter()

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept one connection; raises what asyncio takes for a peer that went away."""
        accepted, address = super().accept()
        open_, peer = self._open, str(address[0])
        if open_[peer] >= _CONNECTIONS_OF_ONE or open_.total() >= _CONNECTIONS:
            accepted.close()
            raise ConnectionAbortedError
        open_[peer] += 1
        return _Passage(accepted, open_, peer), address


class _Passage(socket.socket):
    """An accepted connection, counted until it is closed."""

    def __init__(self, accepted: socket.socket, open_: Counter[str], peer: str) -> None:
        self._counted: Counter[str] | None = open_
        self._peer = peer
        super().__init__(fileno=accepted.detach())

    def close(self) -> None:
        """Close it, and count it no longer."""
        super().close()
        counted, self._counted = self._counted, None
        if counted is not None:
            counted[self._peer] -= 1
            if not counted[self._peer]:
                del counted[self._peer]


class _Loop(asyncio.SelectorEventLoop):
    """An event loop whose TLS handshakes have a deadline; uvicorn has no setting for it."""

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = _HANDSHAKE_SECONDS
        return await super().create_server(*args, **options)


class _Limited(H11Protocol):
    """HTTP/1.1 whose requests' heads have a deadline."""

    head_seconds = _HEAD_SECONDS

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late: asyncio.TimerHandle | None = None
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._got_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._got_head()
        elif self._late is None:
            self._expect_head()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # What follows on a connection that is kept has the idle time that uvicorn gives, and then its own deadline.
        self._got_head()

    def _expect_head(self) -> None:
        self._late = self.loop.call_later(self.head_seconds, self.transport.abort)

    def _got_head(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None
