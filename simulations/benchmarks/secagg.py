"""Secure aggregation beside Flower's SecAgg+: CPU of one client and of the server, and bytes up, in one run.

Each cell takes one sum in the steady state: n sites, d coordinates, some of them lost after the masked inputs. Ours
runs every site; of Flower's clients three are run and timed, and the others are stand-ins with valid keys and shares,
because the time of a client and of the server does not depend on whose numbers they are. Both encode, and both sums are
checked: ours in every cell, Flower's in the tests of :mod:`common.link.secaggplus`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common.identity import Identity, SiteId
from common.link import secaggplus
from common.secagg import Encoding, Phase, ServerSession, SiteSession
from common.study import MAX_SITES, Study

T = TypeVar("T")
Row = dict[str, float | int | None]
OUT = Path("runs/bench/secagg.json")
_BITS, _TIMED, _DIGEST = 16, 3, bytes(32)


class Meter:
    """Adds up the CPU seconds of this process, all threads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside."""
        start = time.process_time()
        try:
            yield
        finally:
            self.seconds += time.process_time() - start

    def of(self, call: Callable[[], T]) -> T:
        """Return what a call returns, counted."""
        with self.running():
            return call()


def study_of(sites: int) -> tuple[Study, dict[SiteId, Identity]]:
    """Return a simulation's study of so many equal sites, 16 bits, and their identities."""
    keys = {SiteId(f"site-{at:04d}"): Identity.generate() for at in range(sites)}
    fields: dict[str, object] = {
        "kind": "simulation",
        "title": "A benchmark of secure aggregation",
        "operator": Identity.generate().public_key.hex(),
        "created": "2026-11-24T00:00:00Z",
        "expires": "2099-11-24T00:00:00Z",
        "stream": "5a" * 32,
        "purpose": {"duo": ["DUO:0000007"], "statement": "benchmark"},
        "backbone": {
            "name": "none",
            "source": "none",
            "revision": "none",
            "licence": "Apache-2.0",
            "training_data": "none",
            "files": {"none": "0" * 64},
        },
        "task": {"labels": ["no", "yes"]},
        "adapter": {},
        "training": {"rounds": 1, "steps_per_round": 1, "learning_rate": 0.1},
        "privacy": {
            "epsilon": 8.0,
            "delta": 1e-5,
            "sampling_rate": 0.1,
            "noise_multiplier": 1.0,
            "clip_norm": 1.0,
            "max_charges": 1,
        },
        "evaluation": {},
        "aggregation": {"clamp": 0.05, "bits": _BITS},
        "roster": [{"site": site, "key": key.public_key.hex(), "band": 100} for site, key in keys.items()],
    }
    if sites > MAX_SITES:
        fields["neighbourhoods"] = {}
    return Study.from_fields(fields), keys


def update(dimension: int) -> NDArray[np.float32]:
    """Return numbers of an update's size, within what both clip to."""
    drawn = np.random.default_rng(7).standard_normal(dimension) * 1e-3
    return drawn.astype(np.float32)


class Ours:
    """One epoch of our protocol between real sessions."""

    def __init__(self, sites: int, dimension: int) -> None:
        study, keys = study_of(sites)
        self.server = ServerSession.for_study(study)
        known = frozenset(keys)
        self.sites = {site: SiteSession.for_study(study, key, site, verified=known) for site, key in keys.items()}
        self.encoding = Encoding.vector(study, dimension)
        self.values = update(dimension)
        self.server.open_epoch(sorted(self.sites))
        while self.server.phase is not Phase.READY:
            for site, request in self.server.requests().items():
                self.server.receive(site, self._answer(site, self.server.phase, request))
            self.server.advance()

    def take_sum(self, lost: int) -> tuple[float, float, float]:
        """Take one sum; returns a client's median CPU seconds, the server's, and a client's median bytes up."""
        clients = {site: Meter() for site in self.sites}
        sent = dict.fromkeys(self.sites, 0)
        server, gone = Meter(), set(sorted(self.sites)[1 :: max(1, len(self.sites) // max(1, lost))][:lost])
        with server.running():
            self.server.begin(stage="fit", input_digest=_DIGEST, encoding=self.encoding)
        while self.server.phase in (Phase.INPUT, Phase.VIEW, Phase.UNMASK):
            phase = self.server.phase
            for site, request in server.of(self.server.requests).items():
                with clients[site].running():
                    reply = self._answer(site, phase, request)
                sent[site] += len(reply)
                if site not in gone:
                    with server.running():
                        self.server.receive(site, reply)
                del reply
            server.of(self.server.advance)
        self._check()
        there = [site for site in self.sites if site not in gone]
        return (
            statistics.median(clients[site].seconds for site in there),
            server.seconds,
            statistics.median(sent[site] for site in there),
        )

    def _answer(self, site: SiteId, phase: Phase, request: bytes) -> bytes:
        session = self.sites[site]
        if phase is Phase.INPUT:
            ticket = session.open_input(request, input_digest=_DIGEST, stage="fit", encoding=self.encoding)
            return session.mask(ticket, self.values)
        steps: dict[Phase, Callable[[bytes], bytes]] = {
            Phase.HELLO: session.hello,
            Phase.PREPARE: session.prepare,
            Phase.ACKNOWLEDGE: session.acknowledge,
            Phase.VIEW: session.view,
            Phase.UNMASK: session.unmask,
        }
        return steps[phase](request)

    def _check(self) -> None:
        found = np.asarray(self.server.result().values, dtype=np.float64)
        worst = float(np.max(np.abs(found - self.values)))
        # Every site gave the same numbers: each rotated coordinate is off by less than two steps.
        if worst > 40 * self.encoding.step:
            raise RuntimeError(f"a wrong sum: off by {worst:g}")


def flower(clients: int, dimension: int, lost: int) -> tuple[float, float, float]:
    """Take one sum by SecAgg+; returns a client's median CPU seconds, the server's, and a client's bytes up."""
    secaggplus.check_version()
    threshold = 2 * clients // 3 + 1
    everybody = list(range(1, clients + 1))
    stand_in = secaggplus.Client(0, clients, threshold)
    stand_in.setup()
    seed, private = os.urandom(32), stand_in.state.sk1
    shares = secaggplus.shares_of(seed, threshold, clients), secaggplus.shares_of(private, threshold, clients)
    timed = {node: secaggplus.Client(node, clients, threshold) for node in everybody[:_TIMED]}
    meters = {node: Meter() for node in timed}
    keys = dict.fromkeys(everybody, (b"", b""))
    for node in everybody:
        if node in timed:
            keys[node] = meters[node].of(timed[node].setup)
        else:
            other = secaggplus.Client(node, clients, threshold)
            keys[node] = other.setup()
    values = update(dimension)
    active, dead = everybody[: clients - lost], everybody[clients - lost :]
    masked: list[bytes] = []
    sent = []
    for node, client in timed.items():
        with meters[node].running():
            sealed = client.share(keys)
        pair = (shares[0][node - 1], shares[1][node - 1])
        # What a peer sealed for this client can be opened with the key that the client agreed on with it.
        received = {peer: secaggplus.sealed_with(client, peer, pair) for peer in everybody if peer != node}
        with meters[node].running():
            masked = client.mask(received, values)
            revealed = client.unmask(active, dead)
        sent.append(sum(map(len, [*sealed.values(), *masked, *revealed.values(), *keys[node]])))
    server = Meter()
    total = None
    for _ in active:
        with server.running():
            total = secaggplus.collect(masked, total)
    assert total is not None
    collected = {owner: list(shares[0 if owner in active else 1][: len(active)]) for owner in everybody}
    with server.running():
        secaggplus.open_total(total, collected, active, {node: pair[0] for node, pair in keys.items()})
    return statistics.median(meter.seconds for meter in meters.values()), server.seconds, statistics.median(sent)


def measure(sites: int, dimension: int, lost_percent: int, *, beside: bool = True) -> Row:
    """Return one cell's row; ``beside`` runs Flower's too."""
    lost = sites * lost_percent // 100
    client, server, sent = Ours(sites, dimension).take_sum(lost)
    row: Row = {"n": sites, "d": dimension, "lost": lost_percent}
    row |= {"client_ms": client * 1e3, "server_s": server, "bytes_up": int(sent)}
    theirs = flower(sites, dimension, lost) if beside else None
    row["flwr_client_ms"] = None if theirs is None else theirs[0] * 1e3
    row["flwr_server_s"] = None if theirs is None else theirs[1]
    row["flwr_bytes_up"] = None if theirs is None else int(theirs[2])
    return row


def cells(*, full: bool) -> list[tuple[int, int, int]]:
    """Return (n, d, lost percent) of every cell."""
    dimensions = (100_000, 1_000_000, 10_000_000) if full else (100_000, 1_000_000)
    found = [(n, d, lost) for n in (10, 30, 100) for d in dimensions for lost in (0, 10, 30)]
    return [*found, (1000, 1_000_000, 10)]


def table(rows: Sequence[Row]) -> str:
    """Return the rows with what ours costs and how many times as much Flower's does."""
    head = f"{'n':>5} {'d':>9} {'lost':>5} {'client ms':>10} {'server s':>9} {'MB up':>7}"
    lines = [head + f"   {'flwr: client x':>14} {'server x':>9} {'bytes x':>8}"]
    for row in rows:
        mine = [row[key] or 0.0 for key in ("client_ms", "server_s", "bytes_up")]
        line = f"{row['n']:>5} {row['d']:>9,} {row['lost']:>4}% {mine[0]:>10.1f} {mine[1]:>9.3f} {mine[2] / 1e6:>7.2f}"
        theirs = [row[key] for key in ("flwr_client_ms", "flwr_server_s", "flwr_bytes_up")]
        ratios = [None if other is None else other / own for own, other in zip(mine, theirs, strict=True)]
        shown = ["-" if ratio is None else f"{ratio:.1f}" for ratio in ratios]
        lines.append(f"{line}   {shown[0]:>14} {shown[1]:>9} {shown[2]:>8}")
    return "\n".join(lines)


def load(out: Path) -> list[Row]:
    """Return the rows of an earlier run."""
    return list(json.loads(out.read_text())) if out.exists() else []


def save(out: Path, rows: Sequence[Row]) -> None:
    """Write the rows, and beside them where and when they were measured; whole or not at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    meta = {
        "command": "make bench NAME=secagg",
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: version(name) for name in ("flwr", "numpy", "cryptography")},
        "bits": _BITS,
    }
    for path, content in ((out, list(rows)), (out.with_suffix(".meta.json"), meta)):
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(content, indent=1) + "\n")
        fresh.replace(path)


def main(argv: Sequence[str]) -> int:
    """Run the cells that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=secagg")
    parser.add_argument("--full", action="store_true", help="10 million coordinates too")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--sites", type=int, nargs="+", help="only cells of so many sites")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    rows = [] if chosen.fresh else load(chosen.out)
    done = {(row["n"], row["d"], row["lost"]) for row in rows}
    for sites, dimension, lost in cells(full=chosen.full):
        if (sites, dimension, lost) in done or (chosen.sites and sites not in chosen.sites):
            continue
        rows.append(measure(sites, dimension, lost, beside=sites <= MAX_SITES))
        rows.sort(key=lambda row: (row["n"] or 0, row["d"] or 0, row["lost"] or 0))
        save(chosen.out, rows)
        print(f"{sites} sites, {dimension:,} coordinates, {lost} % lost: done", flush=True)
    print(table(rows))
    return 0
