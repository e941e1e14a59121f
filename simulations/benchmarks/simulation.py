"""How fast a study can be simulated: every engine on one task, whole private studies, and ten thousand sites in one.

Plain rows train the task of :mod:`simulations.benchmarks._contenders`: a loop, our grid, our grid with stacked
training, Flower's own simulation on Ray, Apple's pfl. Private rows are whole studies under MiniLM with everything on,
beside a loop that only trains. CPU is of the whole process tree, between the end of the first round and that of the
last.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Sequence
from pathlib import Path

from simulations.benchmarks._contenders import PLAIN, ROUND, Task
from simulations.benchmarks._private import PRIVATE, SIZES
from simulations.benchmarks._rows import Row, kept, save
from simulations.options import Engine

OUT = Path("runs/bench/simulation.json")
ENVIRONMENT = OUT.parent / ".env"
THROWN_AWAY = {"flower-ray": ("ray==2.55.1",), "pfl": ("pfl==0.6.0",)}
"""What is installed beside our own packages for an engine that is not ours."""
_ROOT = Path(__file__).resolve().parents[2]
_LIMIT = 900.0
"""Seconds that one row may take."""
_PACKAGES = ("torch", "flwr", "opacus", "cryptography")
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONPATH": str(_ROOT),
}


def measure(python: Path | str, module: str, engine: str, clients: int, arguments: Sequence[str] = ()) -> Row:
    """Run one engine in a process of its own; returns seconds to the first round and what a client's round costs.

    The process prints a line at the end of each round and, if it likes, a last line of JSON with more.
    """
    code = f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))"
    start = time.perf_counter()
    with subprocess.Popen(  # noqa: S603  our own module
        [str(python), "-c", code, engine, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | _QUIET,
    ) as process:
        marks: list[tuple[float, float]] = []
        more: Row = {}
        assert process.stdout is not None
        limit = threading.Timer(_LIMIT, process.kill)
        limit.start()
        for line in process.stdout:
            if line.strip() == ROUND:
                marks.append((time.perf_counter() - start, tree_seconds(process.pid)))
            elif line.startswith("{"):
                more = json.loads(line)
        limit.cancel()
    if process.returncode or not marks:
        return {"skipped": f"it ended with status {process.returncode} after {len(marks)} rounds"}
    rounds = len(marks) - 1
    row: Row = {"first_round_s": marks[0][0], "first_round_cpu_s": marks[0][1]}
    if rounds:
        per = 1e3 / rounds / clients
        row |= {"cpu_ms": (marks[-1][1] - marks[0][1]) * per, "wall_ms": (marks[-1][0] - marks[0][0]) * per}
    return row | more


def tree_seconds(root: int) -> float:
    """Return the CPU seconds that a process and everything it started have taken so far, from /proc."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
        ticks[int(entry.name)] = sum(int(field) for field in fields[11:15])
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += ticks.get(process, 0)
        waiting += children.get(process, [])
    return total / os.sysconf("SC_CLK_TCK")


def environment(packages: Sequence[str]) -> tuple[Path | None, str]:
    """Return the Python of the throw-away environment with some packages in it, or None and the reason.

    It sees the packages of this environment behind its own, so that torch and flwr are the very same.
    """
    python = ENVIRONMENT / "bin" / "python"
    try:
        if not python.exists():
            venv.create(ENVIRONMENT, with_pip=True)
            own = next((ENVIRONMENT / "lib").glob("python*")) / "site-packages"
            (own / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return None, f"{type(error).__name__}"
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return None, (lines or ["pip failed"])[-1][:200]
    return python, ""


def plain(engine: str) -> Row:
    """Return the row of one engine on the plain task; with the reason where it cannot be run."""
    task, python = Task(), Path(sys.executable)
    rounds = 4 if engine == "flower-ray" else 21
    if engine in THROWN_AWAY:
        found, reason = environment(THROWN_AWAY[engine])
        if found is None:
            return {"skipped": reason}
        python = found
    return measure(python, "simulations.benchmarks._contenders", engine, task.clients, ("--rounds", str(rounds))) | {
        "clients": task.clients,
        "parameters": task.parameters,
    }


def private(task: str, engine: str) -> Row:
    """Return the row of one engine on whole private studies, or of a loop that only trains."""
    return measure(sys.executable, "simulations.benchmarks._private", engine, SIZES[task].sites, (task,))


def cells() -> list[tuple[str, str]]:
    """Return task and engine of every row."""
    found = [("plain", engine) for engine in PLAIN]
    found += [(task, engine) for task in ("head", "lora") for engine in PRIVATE]
    return [*found, ("many", Engine.INLINE.value)]


def table(rows: Sequence[Row]) -> str:
    """Return the rows, with what each costs over its task's loop."""
    loops = {row["task"]: row.get("cpu_ms") for row in rows if row["engine"] == "loop"}
    lines = [f"{'task':>6} {'engine':>12} {'first round':>12} {'CPU ms':>9} {'wall ms':>9} {'x loop':>7}"]
    for row in rows:
        head = f"{row['task']:>6} {row['engine']:>12} "
        if "skipped" in row:
            lines.append(f"{head}skipped: {row['skipped']}")
            continue
        cost, loop = row.get("cpu_ms"), loops.get(row["task"])
        ratio = f"{float(cost) / float(loop):.2f}" if cost and loop else "-"
        shown = [f"{float(value):.2f}" if value is not None else "-" for value in (cost, row.get("wall_ms"))]
        lines.append(f"{head}{float(row['first_round_s'] or 0):>10.1f} s {shown[0]:>9} {shown[1]:>9} {ratio:>7}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the rows that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=simulation")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["task"], row["engine"]) for row in rows if "skipped" not in row}
    rows = [row for row in rows if "skipped" not in row]
    for task, engine in cells():
        if (task, engine) not in done:
            measured = plain(engine) if task == "plain" else private(task, engine)
            rows.append({"task": task, "engine": engine, **measured})
            save(chosen.out, rows, "make bench NAME=simulation", _PACKAGES)
            print(f"{task}, {engine}: done", flush=True)
    print(table(rows))
    return 0
