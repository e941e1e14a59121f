"""Consortia of real processes, and what goes wrong with them: deaths at a named moment, cut links, a wrong clock.

Every daemon is a process of its own with its own files, keys and TLS; it runs a rehearsal, so that the right sum is
known. They are forked from a process that has imported everything, which a start would else spend its time on. A fault
is put into the daemon's own process before it begins; the product has no place for one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.egress_log import Payload, read
from client.ledger import ChargeKey, SqliteLedger
from client.ledger.recovery import inspect
from common.identity import SiteId
from common.messages import Stage
from common.study import Study, Unit
from server.journal import SqlJournal, State
from server.progress import RoundRecord
from simulations.network import rehearsal as rehearsals
from simulations.network.consortium import PASSPHRASE_VARIABLE, Account, LaidOut, lay_out, publish
from simulations.network.processes import free_port

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

PASSPHRASE = "correct horse battery"
DIMENSION = 20_000
BIG = 30_000
"""Bytes that nothing but a vector of that dimension has in a row on the wire."""
SLOWEST = 240.0
FORKED = get_context("forkserver")
FORKED.set_forkserver_preload(["tests.e2e.network", "tests.e2e.deaths", "client.daemon", "dp_accounting.pld"])
DATA = '[data]\nfolder = "data"\nquery = "SELECT 1"\n[data.columns]\ntext = "t"\nlabel = "l"\n'

Fault = Callable[[], None]
"""What is done in a daemon's process before it begins; of a module's top level, so that it can be handed over."""


def no_fault() -> None:
    """Leave a daemon as it is."""


def until(holds: Callable[[], bool], what: str, seconds: float = SLOWEST) -> None:
    """Look until something holds; fails with what it was."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


@dataclass
class Network:
    """An operator and its sites, each a process once it is started.

    faults  what is wrong with each from its start on, by its name; the operator's is ``operator``
    starts  how often each was started
    stays   whether the operator goes on when no study is left
    """

    laid: LaidOut
    study: Study
    processes: dict[str, ForkServerProcess] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    stays: bool = False

    @property
    def sites(self) -> tuple[SiteId, ...]:
        return tuple(self.laid.sites)

    @property
    def operator(self) -> ForkServerProcess:
        return self.processes["operator"]

    def place(self, name: str) -> Path:
        """Return the folder of a site or of the operator."""
        return self.laid.server.parent if name == "operator" else self.laid.sites[SiteId(name)].parent

    def log(self, name: str) -> str:
        path = self.place(name) / "log"
        return path.read_text() if path.exists() else ""

    def start(self, *names: str) -> None:
        """Start some daemons, or start them again; all of them where none is named."""
        for name in names or ("operator", *self.sites):
            if name == "operator":
                arguments = ["operator", str(self.laid.server), *([] if self.stays else ["--until-idle"])]
            else:
                arguments = ["site", str(self.laid.sites[SiteId(name)])]
            process = FORKED.Process(
                target=_daemon, args=(arguments, self.place(name) / "log", self.faults.get(name, no_fault)), daemon=True
            )
            process.start()
            self.processes[name] = process
            self.starts[name] = self.starts.get(name, 0) + 1

    def signal(self, name: str, number: signal.Signals) -> None:
        pid = self.processes[name].pid
        assert pid is not None
        os.kill(pid, number)

    def kill(self, name: str) -> None:
        self.processes[name].kill()
        self.processes[name].join()

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()

    def finish(self, *, seconds: float = SLOWEST, together: bool = False) -> None:
        """Wait until the operator has released, and start again whoever is killed meanwhile.

        together  whoever is killed takes the operator along
        """
        end = time.monotonic() + seconds
        while self.operator.exitcode != 0:
            assert time.monotonic() < end, f"no release\n{self.log('operator')[-3000:]}"
            dead = [name for name, process in self.processes.items() if process.exitcode == -signal.SIGKILL]
            if dead and together and "operator" not in dead:
                self.kill("operator")
                dead.append("operator")
            self.start(*dead) if dead else None
            alive = [process for process in self.processes.values() if process.exitcode is None]
            assert self.operator in alive or self.operator.exitcode in (0, -signal.SIGKILL), self.log("operator")[
                -3000:
            ]
            time.sleep(0.02)

    def codes(self, name: str) -> set[str]:
        """Return the coded errors in a daemon's log."""
        lines = (json.loads(line) for line in self.log(name).splitlines() if line.startswith("{"))
        return {line["code"] for line in lines if "code" in line}

    def happened(self, name: str, event: str) -> int:
        """Return how often a daemon's log says something."""
        return self.log(name).count(f'"event": "{event}"')

    def rounds(self) -> tuple[RoundRecord, ...]:
        """Return the rounds in the operator's journal; the operator must not be running."""
        with SqlJournal(f"sqlite:///{self.place('operator') / 'state' / 'journal.sqlite'}") as journal:
            return journal.of(self.study.digest).rounds()

    def state(self) -> State:
        """Return the study's state in the operator's journal; the operator must not be running."""
        with SqlJournal(f"sqlite:///{self.place('operator') / 'state' / 'journal.sqlite'}") as journal:
            (study,) = journal.queue()
            return study.state

    def charges(self, site: str) -> tuple[ChargeKey, ...]:
        """Return what was charged at a site, whose ledger is verified with its anchor."""
        path = self.place(site) / "state" / "ledger.sqlite"
        assert inspect(path).reason == ""
        with SqliteLedger(path) as ledger:
            return ledger.charges(self.study.digest)

    def left(self, site: str) -> set[tuple[Stage, int, int]]:
        """Return which masked values left a site, as stage, sum and attempt, from its egress log, which is verified."""
        entries = read(self.place(site) / "state" / "egress.jsonl")
        return {
            (entry.stage, entry.instance, entry.attempt)
            for entry in entries
            if isinstance(entry, Payload) and entry.stage in (Stage.FIT, Stage.COUNTS)
        }

    def check_books(self) -> None:
        """What left was charged, each attempt as one of its own, and no charge was made twice."""
        for site in self.sites:
            charges = self.charges(site)
            assert len(set(charges)) == len(charges)
            # A charge has the number that the secure sum has in its epoch; what both name alike is counted.
            charged = Counter((key.stage, key.attempt) for key in charges)
            assert Counter((stage, attempt) for stage, _, attempt in self.left(site)) <= charged

    def check_release(self) -> None:
        """The study has ended as it should: every round once, the vector right, the books in order."""
        rounds = self.study.training.rounds
        assert self.state() is State.FINISHED
        assert [record.round_index for record in self.rounds()] == list(range(rounds))
        (release,) = (self.place("operator") / "state" / "releases").iterdir()
        vector = np.load(release / "vector.npy", allow_pickle=False)
        assert vector.shape == (int(self.study.backbone.revision),)
        # Each coordinate of each site's update is rounded at random to the grid of the sums.
        assert np.abs(vector - rounds * rehearsals.STEP).max() < 1e-3 * rounds
        result = json.loads((release / "result.json").read_text())
        assert [done["round"] for done in result["rounds"]] == list(range(rounds))
        assert result["not_evaluated"] == ""
        assert result["counts"]["cells"] == [7 * result["counts"]["sites"]] * 2
        self.check_books()


@contextlib.contextmanager
def network(
    folder: Path,
    sites: int = 5,
    *,
    rounds: int = 2,
    deadline: float = 240.0,
    dimension: int = DIMENSION,
    through: Mapping[SiteId, str] | None = None,
    port: int | None = None,
) -> Iterator[Network]:
    """Lay out a consortium with its study; whatever is started in it is killed when the context is left.

    deadline  of a round, seconds; a long one costs nothing where whoever goes comes back
    """
    names = names_of(sites)
    laid = lay_out(
        folder / "consortium",
        names,
        port=free_port() if port is None else port,
        health=None,
        passphrase=PASSPHRASE,
        account=Account(Unit.RECORD, 200.0, 1e-3),
        deadline=deadline,
        data=dict.fromkeys(names, DATA),
        backbone="",
        through=through,
    )
    agreed = rehearsals.rehearsal(laid.keys, names, rounds=rounds, dimension=dimension)
    publish(laid, agreed)
    made = Network(laid, agreed)
    try:
        yield made
    finally:
        made.end()


def names_of(sites: int) -> list[SiteId]:
    return [SiteId(f"site-{index:02d}") for index in range(sites)]


def _daemon(arguments: list[str], log: Path, fault: Fault) -> None:
    """Be one daemon, in a process that was just forked."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    fault()
    sys.exit(rehearsals.main(arguments))
