"""`consilium-server doctor`: whether the server could run, looked at without touching what a running one holds."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from common import errors
from common.errors import ConsiliumError
from common.findings import Finding, finding
from common.identity import fingerprint
from common.keystore import read_identity
from server import enrolment
from server.config import ServerConfig
from server.journal import SqlJournal
from server.listener import tls_context
from server.offering import offers
from server.product import locate

_SPACE = 1 << 30
_RENEW_DAYS = 30


def examine(home: Path, passphrase: bytes) -> Iterator[Finding]:
    """Yield one finding after the other; raises CSL-540 or CSL-541 for a file that cannot be read."""
    config = ServerConfig.load(home / enrolment.FILE)
    yield finding("keys", lambda: _keys(config, passphrase))
    yield finding("certificate", lambda: _certificate(config, passphrase))
    yield finding("address", lambda: _address(config))
    yield finding("journal", lambda: _journal(config))
    yield finding("disk", lambda: _disk(config))
    yield finding("backbone", lambda: f"in {locate(config.backbone)}")
    yield _sites(home)
    yield finding("offers", lambda: _offers(config, passphrase))


def _keys(config: ServerConfig, passphrase: bytes) -> str:
    identity = read_identity(config.keys.identity, passphrase)
    return f"this operator is {fingerprint(identity.public_key)}"


def _certificate(config: ServerConfig, passphrase: bytes) -> str:
    ca = config.tls.client_ca
    tls_context(str(config.tls.certificate), str(config.tls.key), None if ca is None else str(ca), passphrase)
    found = x509.load_pem_x509_certificate(config.tls.certificate.read_bytes())
    left = (found.not_valid_after_utc - datetime.now(UTC)).days
    if left < 0:
        raise ConsiliumError(errors.LINK_TLS, f"it expired {found.not_valid_after_utc:%Y-%m-%d}")
    clients = "only sites with a certificate can speak" if ca else "no certificate is asked of sites"
    return f"holds for {left} days{'; renew it now' if left < _RENEW_DAYS else ''}; {clients}"


def _address(config: ServerConfig) -> str:
    address = config.listen_address
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address.host, address.port))
        except OSError as error:
            raise ConsiliumError(
                errors.LINK_LISTEN, f"{config.listen}: {error.strerror}; it is so while the server runs"
            ) from error
    return f"{config.listen} is free"


def _journal(config: ServerConfig) -> str:
    try:
        with SqlJournal(config.journal_url) as journal:
            queue = journal.queue()
    except ConsiliumError as error:
        if error.fault is errors.OPERATOR_LOCKED:
            return "the running server has it open"
        raise
    return f"sound: {len(queue)} studies" + (f", the last {queue[-1].state.value}" if queue else "")


def _disk(config: ServerConfig) -> str:
    free = shutil.disk_usage(config.state if config.state.is_dir() else config.state.parent).free
    if free < _SPACE:
        raise ConsiliumError(errors.OPERATOR_UNWRITABLE, f"{free >> 20} MiB are free")
    return f"{free >> 30} GiB are free"


def _sites(home: Path) -> Finding:
    try:
        found = enrolment.admitted(home)
    except ConsiliumError as error:
        return Finding(name="sites", verdict="wrong", said=str(error))
    now = datetime.now(UTC)
    due = [
        site.site
        for site in found
        if site.certificate_until is not None and (site.certificate_until - now).days < _RENEW_DAYS
    ]
    said = f"{len(found)} are admitted" + (f"; certificates end soon: {', '.join(due)}" if due else "")
    return Finding(name="sites", verdict="heed" if due or len(found) < 4 else "right", said=said + _few(len(found)))


def _few(count: int) -> str:
    return "; a study needs four, and one more for each that may be lost" if count < 4 else ""


def _offers(config: ServerConfig, passphrase: bytes) -> str:
    identity = read_identity(config.keys.identity, passphrase)
    waiting = list(offers(config.offers, identity.public_key))
    if not waiting:
        return "none waits for approvals"
    return "; ".join(f"{offer.study.title} waits for {', '.join(offer.missing)}" for offer in waiting)
