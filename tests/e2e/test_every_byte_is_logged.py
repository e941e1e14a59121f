"""Whatever leaves a hospital's machine stands in its egress log: every request, byte for byte, and no other connection.

The site's only way out is a recorder that the test holds the operator's certificate for: it opens the TLS connection,
keeps what the site said, and says it to the operator. Where the test may make one, the site has a network of its own,
in which nothing but the recorder can be reached; the system's counters say how many connections were opened there.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Self, TypeVar

import pytest

from client.egress_log import Control, Payload, read
from common.identity import SiteId
from common.messages import Stage
from simulations.network.consortium import HOST, LaidOut
from simulations.network.processes import free_port
from tests.e2e.network import PASSPHRASE, Network, network, until

SITE = SiteId("site-02")
HANDSHAKE_BYTES = 4096
"""What a handshake with two certificates takes of a site at most; measured: 1.6 kB."""
RECORD_BYTES = 5 + 1 + 16
"""TLS 1.3 adds to each record a header, the content's type and an authentication tag."""
APPLICATION_DATA = 23
NEW_NETWORK = 0x40000000
Got = TypeVar("Got")


@dataclass
class Heard:
    """What came on one connection.

    raw    as it was on the wire
    plain  what it was in clear
    """

    raw: bytearray = field(default_factory=bytearray)
    plain: bytearray = field(default_factory=bytearray)

    def records(self) -> Iterator[tuple[int, int]]:
        """Yield type and length of each TLS record."""
        place = 0
        while place < len(self.raw):
            kind, _, length = struct.unpack_from("!BHH", self.raw, place)
            yield kind, length
            place += 5 + length
        assert place == len(self.raw)

    def requests(self) -> Iterator[tuple[str, int]]:
        """Yield each HTTP request's call, as the egress log names it, and its size."""
        place = 0
        while place < len(self.plain):
            end = self.plain.index(b"\r\n\r\n", place) + 4
            line, *headers = bytes(self.plain[place:end]).decode().split("\r\n")
            (length,) = (int(header[16:]) for header in headers if header.lower().startswith("content-length: "))
            call = line.split(" ")[1].removeprefix("/v1/fleet/")
            yield "".join(word.capitalize() for word in call.split("-")), end - place + length
            place = end + length


class Recorder:
    """Answers in the operator's name on a listener that is handed over, and passes everything on."""

    def __init__(self, laid: LaidOut, listener: socket.socket, target: int) -> None:
        tls, site = laid.server.parent / "tls", laid.sites[SITE].parent / "tls"
        self._near = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._near.minimum_version = ssl.TLSVersion.TLSv1_3
        self._near.load_cert_chain(tls / "server.pem", tls / "server.key", PASSPHRASE)
        self._near.load_verify_locations(tls / "ca.pem")
        self._near.verify_mode = ssl.CERT_REQUIRED
        self._far = ssl.create_default_context(cafile=str(tls / "ca.pem"))
        self._far.load_cert_chain(site / "site.pem", site / "site.key", PASSPHRASE)
        self._listener, self._target = listener, target
        self._threads: list[threading.Thread] = []
        self.heard: list[Heard] = []

    def __enter__(self) -> Self:
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join(10)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                thread = threading.Thread(target=self._pass, args=(near,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass(self, near: socket.socket) -> None:
        heard = Heard()
        self.heard.append(heard)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._near.wrap_bio(incoming, outgoing, server_side=True)
        plain_far = socket.create_connection((HOST, self._target))
        with near, self._far.wrap_socket(plain_far, server_hostname=HOST) as far:
            while True:
                ready, _, _ = select.select([near, far], [], [])
                if near in ready:
                    piece = near.recv(1 << 16)
                    heard.raw += piece
                    incoming.write(piece) if piece else incoming.write_eof()
                    said = _said(tls)
                    heard.plain += said
                    if said:
                        far.sendall(said)
                    if outgoing.pending:
                        near.sendall(outgoing.read())
                    if not piece:
                        return
                if far in ready:
                    answer, over = _answered(far)
                    if answer:
                        tls.write(answer)
                        near.sendall(outgoing.read())
                    if over:
                        return


def _said(tls: ssl.SSLObject) -> bytes:
    """Return what can be read in clear now; the first calls are the handshake."""
    said = bytearray()
    with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
        tls.do_handshake()
        while piece := tls.read(1 << 16):
            said += piece
    return bytes(said)


def _answered(far: ssl.SSLSocket) -> tuple[bytes, bool]:
    """Return what has come from the operator, and whether nothing will any more; TLS has messages of its own."""
    answer = bytearray()
    far.setblocking(False)
    try:
        while piece := far.recv(1 << 16):
            answer += piece
        return bytes(answer), True
    except ssl.SSLWantReadError:
        return bytes(answer), False
    finally:
        far.setblocking(True)


@pytest.fixture
def may_divide() -> None:
    """Skip where no network of its own can be given to a process."""
    if os.geteuid() != 0 or shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"]).returncode:
        pytest.skip("only root can give a process a network of its own")


def alone(folder: Path) -> None:
    """Give the daemon's process a network with nothing but loopback, and wait for the test to listen in it."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.unshare(NEW_NETWORK) == 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as interface:
        fcntl.ioctl(interface, 0x8914, struct.pack("16sH14x", b"lo", 0x1 | 0x40))  # SIOCSIFFLAGS: up, running
    (folder / "divided").touch()
    until((folder / "listening").exists, "the test listens")


def inside(network_of: int, do: Callable[[], Got]) -> Got:
    """Do something in a thread that is in another process's network."""
    got: list[Got] = []

    def there() -> None:
        assert ctypes.CDLL(None, use_errno=True).setns(network_of, NEW_NETWORK) == 0
        got.append(do())

    thread = threading.Thread(target=there)
    thread.start()
    thread.join()
    return got[0]


def counters() -> dict[str, int]:
    """Return how many connections were opened, and datagrams sent, in the network of this thread."""
    found: dict[str, int] = {}
    lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        found |= {names[0] + name: int(value) for name, value in zip(names[1:], values[1:], strict=True)}
    return {name: found[name] for name in ("Tcp:ActiveOpens", "Udp:OutDatagrams")}


def ended(net: Network) -> None:
    """Wait for the release, then have the site end as it does on SIGTERM."""
    until(lambda: net.happened("operator", "released") == 1, "a release")
    net.signal(SITE, signal.SIGTERM)
    net.processes[SITE].join(60)
    assert net.processes[SITE].exitcode == 0


def check(net: Network, heard: list[Heard]) -> None:
    entries = read(net.place(SITE) / "state" / "egress.jsonl")
    calls = [entry for entry in entries if isinstance(entry, Control)]
    payloads = [entry for entry in entries if isinstance(entry, Payload)]
    assert {entry.peer for entry in calls} == {net.laid.sites[SITE].read_text().split('server = "')[1].split('"')[0]}

    # In clear: exactly the requests that are written down, and nothing between them.
    said = Counter(request for connection in heard for request in connection.requests())
    assert said == Counter((entry.method, entry.sent) for entry in calls)
    in_clear = sum(len(connection.plain) for connection in heard)
    assert in_clear == sum(entry.sent for entry in calls)

    # What is sent of a study is what the log's payloads say, and the form that Flower gives it.
    assert sum(entry.stage is Stage.FIT for entry in payloads) == net.study.training.rounds
    carried = sum(entry.total_bytes for entry in payloads)
    pushed = [entry.sent for entry in calls if entry.method in ("PushMessages", "PushObject")]
    assert carried < sum(pushed) < carried + 4096 * len(pushed)

    # On the wire: that, one envelope for each record, and a handshake for each connection.
    on_wire = sum(len(connection.raw) for connection in heard)
    records = sum(kind == APPLICATION_DATA for connection in heard for kind, _ in connection.records())
    assert 0 < on_wire - in_clear - RECORD_BYTES * records < HANDSHAKE_BYTES * len(heard)


def test_every_byte_that_a_site_sends_is_in_its_egress_log(tmp_path: Path) -> None:
    port, listener = free_port(), socket.create_server((HOST, 0))
    address = f"{HOST}:{listener.getsockname()[1]}"
    with network(tmp_path, rounds=2, port=port, through={SITE: address}) as net:
        net.stays = True
        net.start("operator")
        until(lambda: net.happened("operator", "listening") == 1, "an operator")
        with Recorder(net.laid, listener, port) as recorder:
            net.start(*net.sites)
            ended(net)
        net.end()
        check(net, recorder.heard)


def test_a_site_opens_no_connection_but_those_to_its_operator(tmp_path: Path, may_divide: None) -> None:
    port, inner = free_port(), free_port()
    with network(tmp_path, rounds=2, port=port, through={SITE: f"{HOST}:{inner}"}, dimension=100) as net:
        net.stays = True
        net.faults[SITE] = partial(alone, tmp_path)
        net.start("operator", SITE)
        until(lambda: net.happened("operator", "listening") == 1, "an operator")
        until((tmp_path / "divided").exists, "a network of its own")
        own = os.open(f"/proc/{net.processes[SITE].pid}/ns/net", os.O_RDONLY)
        try:
            listener = inside(own, lambda: socket.create_server((HOST, inner)))
            with Recorder(net.laid, listener, port) as recorder:
                (tmp_path / "listening").touch()
                net.start(*(site for site in net.sites if site != SITE))
                ended(net)
            assert inside(own, counters) == {"Tcp:ActiveOpens": len(recorder.heard), "Udp:OutDatagrams": 0}
        finally:
            os.close(own)
        net.end()
        check(net, recorder.heard)
