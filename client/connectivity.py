"""Whether this hospital reaches its operator, looked at step by step, so that the first thing wrong is named.

Name, port, proxy, what speaks there, TLS and its certificates, clocks, and whether the node key is admitted. Nothing of
the hospital's is sent but what its daemon sends to connect.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from client.config import SiteConfig
from common import errors
from common.errors import ConsiliumError
from common.link.node import NodeLink, Server, client_tls

_SECONDS = 10.0
_SKEW_SECONDS = 120.0
_RENEW_DAYS = 30
_FLOWER_SKEW = 300.0
"""Flower refuses a call that was signed so long ago, or ahead."""


class UnreachableError(ConsiliumError):
    """A fault after which nothing further can be looked at."""


def looks(
    config: SiteConfig, node_key: ec.EllipticCurvePrivateKey, passphrase: bytes, *, is_running: bool
) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield each thing to look at, in order: its name, and what looks.

    is_running  whether the daemon runs: then it holds the connection, and a second one would take it away
    Each raises a coded error for what is wrong; after an :class:`UnreachableError` the rest has no meaning.
    """
    yield "certificate", lambda: _certificate(config)
    yield "address", lambda: _address(config)
    yield "server", lambda: _speaks_tls(config, passphrase)
    yield "clock", lambda: _clock(config, passphrase)
    if is_running:
        yield "admission", lambda: "the daemon runs and holds the connection: see its log"
    else:
        yield "admission", lambda: _admitted(config, node_key, passphrase)


def _certificate(config: SiteConfig) -> str:
    """Look at the dates of this hospital's own certificate."""
    path = config.link.certificate
    if path is None:
        return "none: the server may ask for one"
    now = datetime.datetime.now(datetime.UTC)
    try:
        found = x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise ConsiliumError(errors.LINK_CERTIFICATE, f"{path}: {error.strerror}: install the admission") from error
    except ValueError as error:
        raise ConsiliumError(errors.LINK_CERTIFICATE, f"{path}: it is no certificate") from error
    if now > found.not_valid_after_utc:
        raise ConsiliumError(errors.LINK_CERTIFICATE, f"{path}: expired {found.not_valid_after_utc:%Y-%m-%d}")
    if now < found.not_valid_before_utc:
        raise ConsiliumError(errors.LINK_CERTIFICATE, f"{path}: not valid before {found.not_valid_before_utc:%Y-%m-%d}")
    left = (found.not_valid_after_utc - now).days
    soon = "; renew it now" if left < _RENEW_DAYS else ""
    return f"holds for {left} days{soon}"


def _address(config: SiteConfig) -> str:
    """Open a TCP connection, through the proxy where there is one."""
    target = config.link.server if config.link.proxy is None else config.link.proxy.removeprefix("http://")
    host, _, port = target.rpartition(":")
    host = host.strip("[]")
    what = "proxy" if config.link.proxy else "server"
    try:
        addresses = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise UnreachableError(errors.LINK_DOWN, f"{what} {host}: the name is not known here") from error
    try:
        with socket.create_connection((host, int(port)), timeout=_SECONDS):
            return f"{what} {target} answers at {addresses[0][4][0]}"
    except OSError as error:
        raise UnreachableError(
            errors.LINK_DOWN, f"{what} {target}: {error.strerror or type(error).__name__}"
        ) from error


def _speaks_tls(config: SiteConfig, passphrase: bytes) -> str:
    """Make a TLS connection; where that fails, say whether it speaks clear text, or whose certificate is wrong."""
    try:
        response = _get(config, passphrase)
    except httpx.HTTPError as error:
        if config.link.proxy is None and _speaks_clear_text(config.link.server):
            raise UnreachableError(
                errors.LINK_CLEAR_TEXT, f"{config.link.server} answers without TLS: nothing is sent there"
            ) from error
        raise UnreachableError(errors.LINK_TLS, f"{config.link.server}: {_said(error)}") from error
    return f"{config.link.server} speaks TLS, certified by the consortium's authority (status {response.status_code})"


def _clock(config: SiteConfig, passphrase: bytes) -> str:
    try:
        said = _get(config, passphrase).headers.get("date", "")
        there = email.utils.parsedate_to_datetime(said)
    except (httpx.HTTPError, ValueError, TypeError) as error:
        raise ConsiliumError(errors.LINK_DOWN, "the server does not say what time it is") from error
    off = (datetime.datetime.now(datetime.UTC) - there).total_seconds()
    if abs(off) > _FLOWER_SKEW:
        raise ConsiliumError(errors.LINK_CLOCK, f"this clock is {off:+.0f} s off the server's: it will be refused")
    return f"{off:+.0f} s from the server's" + ("; set it" if abs(off) > _SKEW_SECONDS else "")


def _admitted(config: SiteConfig, node_key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> str:
    """Connect as the daemon does, and part again."""
    link = NodeLink(
        Server(config.link.server, _tls(config, passphrase), config.link.proxy),
        node_key,
        lambda message, _context: message,
        write=lambda *_: None,
    )
    number = link.connect_once()
    return f"the node key is admitted, as node {number}"


def _get(config: SiteConfig, passphrase: bytes) -> httpx.Response:
    with httpx.Client(
        verify=_tls(config, passphrase), proxy=config.link.proxy, trust_env=False, timeout=_SECONDS
    ) as client:
        return client.get(f"https://{config.link.server}/")


def _tls(config: SiteConfig, passphrase: bytes) -> ssl.SSLContext:
    link = config.link
    # Without a pair the server's own certificate can still be looked at.
    there = link.certificate is not None and link.certificate.is_file()
    pair = (_text(link.certificate), _text(link.key)) if there else (None, None)
    return client_tls(_text(link.ca), *pair, passphrase)


def _text(place: Path | None) -> str | None:
    return None if place is None else str(place)


def _speaks_clear_text(server: str) -> bool:
    host, _, port = server.rpartition(":")
    with contextlib.suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), _SECONDS) as plain:
        plain.settimeout(_SECONDS)
        plain.sendall(b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n")
        return plain.recv(5) == b"HTTP/"
    return False


def _said(error: Exception) -> str:
    text = str(error)
    if "certificate verify failed" in text:
        return "its certificate is not this consortium's, or is not valid now: " + text.rpartition("failed: ")[2]
    return text or type(error).__name__
