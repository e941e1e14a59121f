"""The link between processes on loopback: seconds a stage with some sites, broadcasts, and what the server takes.

Every site is a daemon of its own, with TLS, its journal, outbox, ledger and egress log on disk; none loads torch. The
operator writes its journal after each stage, to SQLite. Beside it stands stock Flower, started as its documentation says.
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
        names = [SiteId(f"site-{number:02d}") for number in range(sites)]
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
        with running({site: start(REHEARSED_SITE, path, _PASSPHRASE) for site, path in laid.sites.items()}):
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
    found = json.loads(done.stdout)
    rows = [{"sites": sites, **row} for row in found.pop("broadcasts")]
    return [{"sites": sites, **found}, *rows]


def table(rows: Sequence[Row]) -> str:
    """Return the rows."""
    lines = [f"{'sites':>5} {'s a stage':>10} {'worst':>7} {'CPU ms':>8} {'MB':>6} {'stock flwr s':>13}"]
    for row in rows:
        if "skipped" in row:
            lines.append(f"{row['sites']:>5} skipped: {row['skipped']}")
        elif "megabytes" in row:
            lines.append(f"{row['sites']:>5} broadcast of {row['megabytes']} MB: {float(row['broadcast_seconds'] or 0):.2f} s")
        else:
            stock = row.get("flwr_seconds_per_stage")
            lines.append(
                f"{row['sites']:>5} {float(row['seconds_per_stage'] or 0):>10.3f} {float(row['worst_stage'] or 0):>7.3f}"
                f" {float(row['server_cpu_ms_per_stage'] or 0):>8.1f} {float(row['server_mb'] or 0):>6.0f}"
                f" {stock if isinstance(stock, str) or stock is None else f'{stock:.1f}':>13}"
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
