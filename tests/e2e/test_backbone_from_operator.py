"""90 MB of backbone reach a hospital over a link that breaks three times, and one whose daemon is killed on the way.

Real daemons over TLS that rehearse a study. The hospital in question knows no other source of the bytes, begins with
nothing less than all of them, and connects through a proxy that counts them and does the damage.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from client.egress_log import Payload, read
from client.fetching import cache_folder
from common.chunks import CHUNK_BYTES, NEED_BYTES
from common.identity import SiteId
from common.messages import Stage
from common.study import Unit
from simulations.network.consortium import HOST, Account, LaidOut, lay_out, publish
from simulations.network.processes import REHEARSED_OPERATOR, REHEARSED_SITE, free_port, running, start
from simulations.network.rehearsal import STEP, rehearsal

pytestmark = pytest.mark.slow

PASSPHRASE = "correct horse battery"
SITES = [SiteId(f"s{number}") for number in range(4)]
"""A private sum among four needs all four: what arrives, arrives before the first epoch."""
FAR = SITES[0]
ROUNDS, DIMENSION = 2, 1000
OVERHEAD = 2_000_000
"""Bytes of everything else that the far site is sent: TLS, calls of the link, and the rounds."""
LIMIT = 300.0
DATA = '[data]\nfolder = "data"\nquery = "SELECT 1"\n[data.columns]\ntext = "t"\nlabel = "l"\n'


class Proxy:
    """Passes TCP on to the operator; at given counts of bytes that came from there, something happens.

    at  counts, ascending, and what happens at each
    """

    def __init__(self, port: int, at: Sequence[tuple[int, Callable[[], None]]]) -> None:
        self._upstream, self._at = port, list(at)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((HOST, 0))
        self.port = int(self._listener.getsockname()[1])
        self.down = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def happened(self) -> bool:
        """Whether everything has happened."""
        return not self._at

    def cut(self) -> None:
        """Break every connection there is; new ones are made as before."""
        with self._lock:
            cut, self._open = self._open, set()
        for end in cut:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                site, _ = self._listener.accept()
                try:
                    operator = socket.create_connection((HOST, self._upstream))
                except OSError:
                    site.close()
                    continue
                with self._lock:
                    self._open |= {site, operator}
                threading.Thread(target=self._pass_on, args=(site, operator, False), daemon=True).start()
                threading.Thread(target=self._pass_on, args=(operator, site, True), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, down: bool) -> None:
        with contextlib.suppress(OSError):
            while passed := source.recv(1 << 16):
                if down:
                    self._count(len(passed))
                target.sendall(passed)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _count(self, passed: int) -> None:
        with self._lock:
            self.down += passed
            happens = self._at.pop(0)[1] if self._at and self.down >= self._at[0][0] else None
        if happens is not None:
            happens()


def write_backbone(folder: Path, size: int) -> dict[str, str]:
    """Write a backbone of random bytes whose weights have a size; returns its files' digests."""
    folder.mkdir()
    contents = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors": os.urandom(size)}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


@contextlib.contextmanager
def consortium(
    folder: Path, size: int, cuts: Callable[[Proxy], Sequence[tuple[int, Callable[[], None]]]]
) -> Iterator[tuple[LaidOut, Proxy, Path]]:
    """Lay out a consortium whose far site has no backbone; yields its cache too."""
    files = write_backbone(folder / "backbone", size)
    port = free_port()
    proxy = Proxy(port, [])
    proxy._at.extend(cuts(proxy))
    laid = lay_out(
        folder / "consortium",
        SITES,
        port=port,
        health=None,
        passphrase=PASSPHRASE,
        account=Account(Unit.RECORD, 200.0, 1e-3),
        deadline=120.0,
        data=dict.fromkeys(SITES, DATA),
        backbone=f'[backbone]\nfolder = "{folder / "backbone"}"\n',
        through={FAR: f"{HOST}:{proxy.port}"},
        fetching={FAR},
    )
    study = rehearsal(laid.keys, SITES, rounds=ROUNDS, dimension=DIMENSION, files=files)
    publish(laid, study)
    try:
        yield laid, proxy, cache_folder(laid.sites[FAR].parent / "state" / "backbones", study.backbone)
    finally:
        proxy.close()


def check_study(laid: LaidOut) -> None:
    """Check that the study came to its end with the far site in every round."""
    assert len(replies(laid, Stage.FIT)) == ROUNDS
    (release,) = (laid.server.parent / "state" / "releases").glob("[0-9a-f]*")
    assert np.allclose(np.load(release / "vector.npy"), ROUNDS * STEP, atol=1e-3)


def check_cache(cache: Path, source: Path) -> None:
    assert {path.name for path in cache.iterdir()} == {path.name for path in source.iterdir()}
    for path in source.iterdir():
        assert (cache / path.name).read_bytes() == path.read_bytes()


def replies(laid: LaidOut, stage: Stage) -> list[Payload]:
    """Return what left the far site at a stage."""
    entries = read(laid.sites[FAR].parent / "state" / "egress.jsonl")
    return [entry for entry in entries if isinstance(entry, Payload) and entry.stage is stage]


def test_90_mb_arrive_over_a_link_that_breaks_three_times(tmp_path: Path) -> None:
    size = 90_000_000
    with (
        consortium(
            tmp_path, size, lambda proxy: [(count, proxy.cut) for count in (20_000_000, 41_000_000, 77_000_000)]
        ) as (laid, proxy, cache),
        running({}) as processes,
    ):
        operator = processes["operator"] = start(REHEARSED_OPERATOR, laid.server, PASSPHRASE)
        for site, config in laid.sites.items():
            processes[site] = start(REHEARSED_SITE, config, PASSPHRASE)
        assert operator.wait(LIMIT) == 0, laid.server.with_suffix(".log").read_text()[-3000:]
        assert proxy.happened
        resent = proxy.down - size
        print(f"\n{resent:,} bytes beside the backbone's own, with three cuts")
        assert resent <= 3 * CHUNK_BYTES + OVERHEAD
    check_study(laid)
    check_cache(cache, tmp_path / "backbone")
    entries = replies(laid, Stage.BACKBONE)
    assert len(entries) >= size // CHUNK_BYTES
    assert all(entry.part_bytes.get("need", 0) in (0, NEED_BYTES) for entry in entries)


def test_a_site_that_is_killed_on_the_way_goes_on_where_its_disk_is(tmp_path: Path) -> None:
    size = 30_000_000
    reached = threading.Event()
    with (
        consortium(tmp_path, size, lambda _: [(17_000_000, reached.set)]) as (laid, proxy, cache),
        running({}) as processes,
    ):
        operator = processes["operator"] = start(REHEARSED_OPERATOR, laid.server, PASSPHRASE)
        for site, config in laid.sites.items():
            processes[site] = start(REHEARSED_SITE, config, PASSPHRASE)
        assert reached.wait(LIMIT)
        processes[FAR].kill()
        processes[FAR].wait()
        on_disk = sum(path.stat().st_size for path in cache.iterdir())
        assert 0 < on_disk < size
        processes["again"] = start(REHEARSED_SITE, laid.sites[FAR], PASSPHRASE)
        assert operator.wait(LIMIT) == 0, laid.server.with_suffix(".log").read_text()[-3000:]
        assert proxy.down - size <= CHUNK_BYTES + OVERHEAD
    check_study(laid)
    check_cache(cache, tmp_path / "backbone")
