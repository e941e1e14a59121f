"""`python -m tests.fuzz [SECONDS] [TARGET ...]`: fuzz the decoders with atheris, each in a process of its own.

Ends with 1 if a target raised, hung or grew beyond its memory; the bytes that did it are left in runs/fuzz.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path

OUT = Path("runs/fuzz")
LIMITS = ("-max_len=65536", "-rss_limit_mb=1024", "-malloc_limit_mb=256", "-timeout=10", "-print_final_stats=1")
"""Messages of a small study fit in 64 KiB, and reading one may not take a thousand times as much memory."""


def main(arguments: list[str]) -> int:
    """Fuzz the targets named, or all of them, for so many seconds each; returns 1 if any of them found something."""
    seconds, *names = arguments or ["20"]
    targets = importlib.import_module("tests.fuzz.targets").TARGETS
    found = 0
    for name in names or targets:
        command = [sys.executable, "-m", "tests.fuzz", "--one", name, seconds]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        speed = re.search(r"average_exec_per_sec:\s*(\d+)", ended.stderr)
        runs = re.search(r"number_of_executed_units:\s*(\d+)", ended.stderr)
        counts = f"{runs[1] if runs else '?'} executions, {speed[1] if speed else '?'} a second"
        print(f"{name:<10} {counts}, {'nothing found' if ended.returncode == 0 else 'FOUND'}", flush=True)
        if ended.returncode != 0:
            found += 1
            said = [line for line in (ended.stdout + ended.stderr).splitlines() if not line.startswith(("INFO:", "#"))]
            print("\n".join(f"  {line}" for line in said[-40:]), flush=True)
    return 1 if found else 0


def fuzz(name: str, seconds: str) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    # Only where it is wanted: `make test` knows the targets without atheris.
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["common"]):
        target = importlib.import_module("tests.fuzz.targets").TARGETS[name]
    OUT.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(target.seeds()):
            (Path(corpus) / str(number)).write_bytes(seed)
        options = [f"-max_total_time={seconds}", f"-artifact_prefix={OUT}/{name}-", *LIMITS]
        atheris.Setup([sys.argv[0], *options, corpus], target)
        atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        fuzz(*sys.argv[2:])
    else:
        sys.exit(main(sys.argv[1:]))
