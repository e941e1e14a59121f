"""Starts a laid-out consortium's daemons as processes, and ends the ones that were started."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from simulations.network.consortium import HOST, PASSPHRASE_VARIABLE

OPERATOR = (sys.executable, "-P", "-c", "from server.cli import main; main()", "run", "--until-idle", "-c")
SITE = (sys.executable, "-P", "-c", "from client.cli import main; main()", "run", "-c")
REHEARSED_OPERATOR = (sys.executable, "-m", "simulations.network.rehearsal", "operator", "--until-idle")
REHEARSED_SITE = (sys.executable, "-m", "simulations.network.rehearsal", "site")
_ROOT = Path(__file__).resolve().parents[2]
_END_SECONDS = 20.0


def start(command: Sequence[str], config: Path, passphrase: str, *, name: str = "") -> subprocess.Popen[bytes]:
    """Start one daemon with its file; its log goes beside the file, appended."""
    log = config.parent / f"{name or config.stem}.log"
    environment = os.environ | {PASSPHRASE_VARIABLE: passphrase, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(_ROOT)}
    with log.open("ab") as stream:
        return subprocess.Popen(  # noqa: S603  our own modules
            [*command, str(config)], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that was started here: politely, then not."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    # One that was stopped hears nothing.
    process.send_signal(signal.SIGCONT)
    try:
        process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@contextlib.contextmanager
def running(
    processes: dict[str, subprocess.Popen[bytes]],
) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """End every process in a dictionary when the context is left, those added later too."""
    try:
        yield processes
    finally:
        for process in processes.values():
            end(process)


def free_port() -> int:
    """Return a port on loopback that nobody listens on now."""
    with socket.socket() as found:
        found.bind((HOST, 0))
        return int(found.getsockname()[1])
