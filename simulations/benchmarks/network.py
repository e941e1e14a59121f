"""The link between processes on loopback: seconds a stage with some sites, broadcasts, and what the server takes.

Every site is a daemon of its own, with TLS, its journal, outbox, ledger and egress log on disk; none loads torch. The
operator writes its journal after each stage, to SQLite. Beside it stands stock Flower, as its documentation starts it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from common.identity import SiteId
from common.study import Unit
from simulations.benchmarks._rows import Row, kept, save
from simulations.benchmarks._stock import stock_seconds
from simulations.network.consortium import PASSPHRASE_VARIABLE, Account, lay_out, publish
from simulations.network.processes import REHEARSED_SITE, free_port, running, start
from simulations.network.rehearsal import NO_DATA, rehearsal

OUT = Path("runs/bench/network.json")
SITES = (3, 10, 30)
BROADCASTS = (1, 10, 90)
"""Megabytes, to three sites."""
_STAGES = 30
_LIMIT = 900.0
_PASSPHRASE = "of a consortium that lives for a minute"  # noqa: S105  nobody's


def measure(sites: int, broadcasts: Sequence[int]) -> list[Row]:
    """Run stages among some sites; returns the row, and one for each broadcast."""
    with tempfile.TemporaryDirectory(prefix="consilium-bench-") as folder:
        # No site takes part in a study of three; of four, three may be connected.
        names = [SiteId(f"site-{number:02d}") for number in range(max(sites, 4))]
        laid = lay_out(
            Path(folder) / "consortium",
            names,
            port=free_port(),
            health=None,
            passphrase=_PASSPHRASE,
            account=Account(Unit.RECORD, 1000.0, 1e-2),
            deadline=600.0,
            data=dict.fromkeys(names, NO_DATA),
            backbone="",
        )
        publish(laid, rehearsal(laid.keys, names, rounds=1, dimension=1000))
        command = [sys.executable, "-m", "simulations.benchmarks._link", str(laid.server), str(sites), str(_STAGES)]
        environment = os.environ | {PASSPHRASE_VARIABLE: _PASSPHRASE, "OMP_NUM_THREADS": "1"}
        here = names[:sites]
        with running({site: start(REHEARSED_SITE, laid.sites[site], _PASSPHRASE) for site in here}):
            done = subprocess.run(  # noqa: S603  our own module
                [*command, *map(str, broadcasts)],
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                check=False,
                timeout=_LIMIT,
            )
    if done.returncode:
        return [{"sites": sites, "skipped": f"it ended with status {done.returncode}"}]
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [{"sites": sites, **row} for row in found.pop("broadcasts")]
    return [{"sites": sites, **found}, *rows]


def table(rows: Sequence[Row]) -> str:
    """Return the rows."""
    lines = [f"{'sites':>5} {'s a stage':>10} {'worst':>7} {'CPU ms':>8} {'MB':>6} {'stock flwr s':>13}"]
    for row in rows:
        number = {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
        head = f"{row['sites']:>5} "
        if "skipped" in row:
            lines.append(f"{head}skipped: {row['skipped']}")
        elif "megabytes" in row:
            lines.append(f"{head}broadcast of {row['megabytes']} MB: {number['broadcast_seconds']:.2f} s")
        else:
            stock = f"{number['flwr_seconds_per_stage']:.1f}" if "flwr_seconds_per_stage" in number else "-"
            lines.append(
                f"{head}{number['seconds_per_stage']:>10.3f} {number['worst_stage']:>7.3f}"
                f" {number['server_cpu_ms_per_stage']:>8.1f} {number['server_mb']:>6.0f} {stock:>13}"
            )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the rows that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=network")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    rows = [row for row in kept(chosen.out, fresh=chosen.fresh) if "skipped" not in row]
    for sites in SITES:
        if any(row["sites"] == sites for row in rows):
            continue
        found = measure(sites, BROADCASTS if sites == SITES[0] else ())
        if sites == SITES[0]:
            found[0]["flwr_seconds_per_stage"] = stock_seconds(sites)
        rows += found
        save(chosen.out, rows, "make bench NAME=network", ("flwr", "cryptography", "uvicorn", "fastapi"))
        print(f"{sites} sites: done", flush=True)
    print(table(rows))
    return 0
