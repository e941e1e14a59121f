"""What encoding costs in error and time, on the private updates of a real study.

The sites of the demo train privately for a few rounds; their updates are encoded at every width, summed without masks
and decoded. The error is the distance of the decoded mean from the exact one, over the exact one's norm: rotated, as in
a study and under its own clamp, and on the plain coordinates, whose grid has to reach their largest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.workload import ModelWorkload
from common.identity import SiteId
from common.secagg import Encoding
from common.secagg.rotation import rotate
from common.stopwatch import Stopwatch
from common.study import Study
from simulations import scenario as scenarios
from simulations.authoring import Consortium, privacy_of
from simulations.engines import EntropySource
from simulations.federation import agree
from simulations.hosting import noise_of
from simulations.preparation import prepare
from simulations.progress import SilentProgress

Row = dict[str, float | int]
Updates = Mapping[SiteId, NDArray[np.float32]]
OUT = Path("runs/bench/encoding.json")
_WIDTHS, _REPEATS, _LONG = (8, 12, 16, 20, 32), 9, 1_000_000


def updates_of_demo(rounds: int) -> tuple[Study, list[Updates]]:
    """Return the demo's study and each site's private updates, round by round, all from the same start."""
    chosen, entropy = scenarios.load(scenarios.locate("demo")), EntropySource(None)
    prepared = prepare(chosen, None, "cpu", SilentProgress(), Stopwatch())
    consortium = Consortium.draw(tuple(prepared.units), entropy)
    study = agree(chosen, prepared, privacy_of(chosen), consortium).study
    workloads = {
        site: ModelWorkload(
            study,
            site,
            prepared.model,
            training=prepared.training[site],
            testing=prepared.testing[site],
            noise=noise_of(entropy, site),
        )
        for site in prepared.units
    }
    return study, [
        {site: workload.train(prepared.start, number) for site, workload in workloads.items()}
        for number in range(rounds)
    ]


def error_of(encoding: Encoding, updates: Updates) -> tuple[float, float]:
    """Return the relative error of the decoded mean and the share of coordinates that were clamped."""
    total, clamped = encoding.empty(), 0
    for site, values in updates.items():
        lanes, beyond = encoding.encode(site, values, os.urandom)
        total += lanes
        clamped += beyond
    return _relative(encoding.decode(total, list(updates)), updates, encoding), clamped / len(updates) / total.size


def plain_error_of(encoding: Encoding, updates: Updates) -> float:
    """Return the same error without a rotation: a grid up to the largest coordinate, rounded at random."""
    weights, dice = dict(encoding.weights), np.random.default_rng()
    bound = max(float(np.abs(values).max()) for values in updates.values())
    step = encoding.step * bound / encoding.bound
    total = np.zeros(encoding.dimension)
    for site, values in updates.items():
        total += np.floor(values * (weights[site] / step) + dice.random(encoding.dimension))
    return _relative(total * step / sum(weights[site] for site in updates), updates, encoding)


def _relative(found: NDArray[np.generic], updates: Updates, encoding: Encoding) -> float:
    weights = dict(encoding.weights)
    exact = sum(weights[site] * values.astype(np.float64) for site, values in updates.items())
    exact = np.asarray(exact) / sum(weights[site] for site in updates)
    return float(np.linalg.norm(found.astype(np.float64) - exact) / np.linalg.norm(exact))


def milliseconds(encoding: Encoding) -> float:
    """Return the median CPU milliseconds of encoding and packing one vector."""
    site, spent = encoding.weights[0][0], []
    values = (np.random.default_rng(3).standard_normal(encoding.dimension) * 1e-3).astype(np.float32)
    for _ in range(_REPEATS):
        start = time.process_time()
        encoding.pack(encoding.encode(site, values, os.urandom)[0])
        spent.append(time.process_time() - start)
    return statistics.median(spent) * 1e3


def measure(study: Study, rounds: Sequence[Updates], bits: int, long: int = _LONG) -> Row:
    """Return one width's row: errors are medians over the rounds."""
    there = study.model_copy(update={"aggregation": study.aggregation.model_copy(update={"bits": bits})})
    dimension = len(next(iter(rounds[0].values())))
    encoding = Encoding.vector(there, dimension)
    errors = [error_of(encoding, updates) for updates in rounds]
    return {
        "bits": bits,
        "d": dimension,
        "sites": len(rounds[0]),
        "error": statistics.median(error for error, _ in errors),
        "clamped": statistics.median(clamped for _, clamped in errors),
        "error_unrotated": statistics.median(plain_error_of(encoding, updates) for updates in rounds),
        f"encode_ms_{long}": milliseconds(Encoding.vector(there, long)),
    }


def rotation_milliseconds(long: int = _LONG) -> float:
    """Return the median CPU milliseconds of rotating one float32 vector."""
    values, spent = np.random.default_rng(3).standard_normal(long).astype(np.float32), []
    for _ in range(_REPEATS):
        start = time.process_time()
        rotate(values, "5a" * 32)
        spent.append(time.process_time() - start)
    return statistics.median(spent) * 1e3


def main(argv: Sequence[str]) -> int:
    """Measure every width and print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=encoding")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    study, rounds = updates_of_demo(chosen.rounds)
    rows = [measure(study, rounds, bits) for bits in _WIDTHS]
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"{len(rounds[0])} sites, {rows[0]['d']:,} coordinates; rotating a million: {rotation_milliseconds():.1f} ms")
    print(f"{'bits':>4} {'error':>9} {'clamped':>9} {'unrotated':>10} {'encode 1e6, ms':>15}")
    for row in rows:
        head = f"{row['bits']:>4} {row['error']:>9.1e} {row['clamped']:>9.1e} {row['error_unrotated']:>10.1e}"
        print(f"{head} {row[f'encode_ms_{_LONG}']:>15.1f}")
    return 0
