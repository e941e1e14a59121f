"""A soak: many rounds of a rehearsal while its processes are killed, stopped and cut off at random, with the figures.

    python -m simulations.network.soak --rounds 200 --sites 6 --out runs/soak

Each process that is killed is started again. At the end every round must be in the journal once, every ledger sound
with no key charged twice, and the vector the one that is known; memory and open files of each process are sampled.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.ledger.recovery import inspect
from common.identity import SiteId
from common.study import Unit
from server.journal import SqlJournal
from simulations.network.consortium import Account, LaidOut, lay_out, publish
from simulations.network.processes import REHEARSED_OPERATOR, REHEARSED_SITE, free_port, running, start
from simulations.network.rehearsal import NO_DATA, STEP, rehearsal

_PASSPHRASE = "of a consortium that lives for an hour"  # noqa: S105  nobody's
_DEADLINE = 30.0
_DIMENSION = 1000
_EVERY = (2.0, 8.0)
"""Seconds between two faults."""
_SPARE = 600


@dataclass(slots=True)
class Watched:
    """Samples of one process between two starts."""

    name: str
    memory: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def sample(self, pid: int) -> None:
        """Take one sample from /proc; a process that has just gone leaves none."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
            self.files.append(sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir()))
            self.memory.append(resident / 1024)
        except (OSError, StopIteration):
            return


def main(argv: Sequence[str]) -> int:
    """Run the soak and print a line of JSON; returns 1 where anything was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m simulations.network.soak")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--sites", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=3600.0, help="seconds")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"))
    chosen = parser.parse_args(argv)
    if chosen.out.exists():
        shutil.rmtree(chosen.out)
    names = [SiteId(f"site-{number:02d}") for number in range(chosen.sites)]
    laid = lay_out(
        chosen.out,
        names,
        port=free_port(),
        health=None,
        passphrase=_PASSPHRASE,
        account=Account(Unit.RECORD, 1000.0, 1e-2),
        deadline=_DEADLINE,
        data=dict.fromkeys(names, NO_DATA),
        backbone="",
    )
    study = rehearsal(laid.keys, names, rounds=chosen.rounds, dimension=_DIMENSION, spare=_SPARE)
    publish(laid, study)
    began = time.monotonic()
    faults, watched, ended = soak(laid, random.Random(chosen.seed), chosen.limit)  # noqa: S311  dice, not secrets
    found = verdict(laid, study.digest, chosen.rounds) if ended else ["it did not end in time"]
    print(
        json.dumps(
            {
                "rounds": chosen.rounds,
                "sites": chosen.sites,
                "seconds": round(time.monotonic() - began),
                "faults": faults,
                "growth": {name: growth(found_) for name, found_ in sorted(watched.items())},
                "wrong": found,
            }
        )
    )
    return 1 if found else 0


def soak(laid: LaidOut, dice: random.Random, limit: float) -> tuple[dict[str, int], dict[str, list[Watched]], bool]:
    """Run the consortium to its end under faults; returns how many of each, the samples, and whether it ended."""
    faults = {"site killed": 0, "site stopped": 0, "operator killed": 0}
    watched: dict[str, list[Watched]] = {"operator": [Watched("operator")]}
    commands: dict[str, tuple[Sequence[str], Path]] = {"operator": (REHEARSED_OPERATOR, laid.server)}
    commands |= {site: (REHEARSED_SITE, path) for site, path in laid.sites.items()}
    end = time.monotonic() + limit
    with running({}) as processes:

        def begin(name: str) -> None:
            command, path = commands[name]
            processes[name] = start(command, path, _PASSPHRASE)
            watched.setdefault(name, []).append(Watched(name))

        for name in commands:
            begin(name)
        due = time.monotonic() + 15.0
        while time.monotonic() < end:
            operator = processes["operator"]
            try:
                code = operator.wait(0.5)
                if code == 0:
                    return faults, watched, True
                # It ended a study with a named error: whoever watches over it starts it again.
                begin("operator")
            except subprocess.TimeoutExpired:
                pass
            for name, process in processes.items():
                watched[name][-1].sample(process.pid)
            if time.monotonic() < due:
                continue
            due = time.monotonic() + dice.uniform(*_EVERY)
            kind = dice.choices(tuple(faults), (6, 2, 2))[0]
            name = "operator" if kind == "operator killed" else dice.choice(sorted(laid.sites))
            faults[kind] += 1
            if kind == "site stopped":
                processes[name].send_signal(signal.SIGSTOP)
                time.sleep(dice.uniform(0.1, 4.0))
                processes[name].send_signal(signal.SIGCONT)
                continue
            processes[name].kill()
            processes[name].wait()
            begin(name)
    return faults, watched, False


def growth(lives: Sequence[Watched]) -> dict[str, float]:
    """Return what the longest-lived process took at first and at last: medians of a fifth of its samples each."""
    longest = max(lives, key=lambda life: len(life.memory))
    part = max(1, len(longest.memory) // 5)
    steady = longest.memory[len(longest.memory) // 10 :]
    return {
        "samples": len(longest.memory),
        "first_mb": round(statistics.median(steady[:part]), 1),
        "last_mb": round(statistics.median(longest.memory[-part:]), 1),
        "most_files": max(longest.files),
        "last_files": longest.files[-1],
    }


def verdict(laid: LaidOut, digest: str, rounds: int) -> list[str]:
    """Return everything that is not as it must be."""
    wrong = []
    home = laid.server.parent / "state"
    with SqlJournal(f"sqlite:///{home / 'journal.sqlite'}") as journal:
        (study,) = journal.queue()
        done = [record.round_index for record in journal.of(study.digest).rounds()]
    if done != list(range(rounds)):
        wrong.append(f"rounds in the journal: {len(done)}")
    vector = np.load(home / "releases" / digest[:16] / "vector.npy", allow_pickle=False)
    if not np.allclose(vector, rounds * STEP, atol=rounds * 1e-3):
        wrong.append(f"the vector is off by {float(np.abs(vector - rounds * STEP).max()):.3g}")
    for site, path in laid.sites.items():
        found = inspect(path.parent / "state" / "ledger.sqlite", None)
        if found.reason:
            wrong.append(f"{site}: {found.reason}")
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
