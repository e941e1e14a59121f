"""The operator's side of the network benchmark, as a process: stages to every site and back, timed.

A stage here is all that one is in a study: signed requests, the link, the sites' checks, their durable replies,
verified on arrival, and where the study stands written to the operator's journal before the next. Sites are rehearsals.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from common import agreement as agreements
from common.agreement import verify_agreement
from common.keystore import read_identity, read_passphrase
from common.link.relay import FleetGrid
from common.messages import ANYONE, Stage
from common.study import Kind
from server.config import ServerConfig
from server.correspondence import Correspondence
from server.journal_events import State
from server.process import Operator
from server.progress import Progress, StudyJournal
from simulations.network.rehearsal import RehearsedProduct

_TIMEOUT = 300.0


class Stages:
    """Sends the same kind of request to all sites again and again."""

    def __init__(self, grid: FleetGrid, letters: Correspondence, journal: StudyJournal) -> None:
        self._grid, self._letters, self._journal, self._number = grid, letters, journal, 0

    def one(self, extra: bytes = b"") -> tuple[float, int]:
        """Run one stage, with some bytes to every site; returns its seconds and how many sites answered."""
        start = time.perf_counter()
        self._number += 1
        parts = {"nonce": os.urandom(32), **({"vector": extra} if extra else {})}
        request = self._letters.envelope(Stage.IDENTIFY, ANYONE, self._number, 0, parts)
        nodes = list(self._grid.get_node_ids())
        replies = self._letters.send(self._grid, dict.fromkeys(nodes, request), _TIMEOUT)
        self._journal.keep(Progress(self._number, 0, 0, True, np.zeros(1000, dtype=np.float32)))
        return time.perf_counter() - start, len(replies)


def main(argv: Sequence[str]) -> int:
    """Wait for the sites, run stages, print a line of JSON; takes file, sites, stages, then megabytes to broadcast."""
    config = ServerConfig.load(Path(argv[0]))
    sites, stages, sizes = int(argv[1]), int(argv[2]), [int(size) for size in argv[3:]]
    passphrase = read_passphrase(config.keys.passphrase)
    identity = read_identity(config.keys.identity, passphrase)
    signed, approvals = agreements.read(next(config.studies.iterdir()))
    agreed = verify_agreement(signed, approvals, identity.public_key, now=datetime.now(UTC), kind=Kind.SIMULATION)
    operator = Operator(config, identity, RehearsedProduct, kind=Kind.SIMULATION, passphrase=passphrase)
    with operator.serving() as serving, serving.relay.run() as grid:
        operator.enqueue(serving.journal)
        serving.journal.enter(agreed.digest, State.RUNNING)
        letters = Correspondence(agreed.study, agreed.digest, identity, serving.witnesses)
        stage = Stages(grid, letters, serving.journal.of(agreed.digest))
        while len(list(grid.get_node_ids())) < sites:
            serving.relay.wait(serving.relay.told(), 1.0)
        stage.one()  # each site opens its study now, if it has not yet
        before, began = time.process_time(), time.perf_counter()
        measured = [stage.one() for _ in range(stages)]
        wall, cpu = time.perf_counter() - began, time.process_time() - before
        broadcasts = [{"megabytes": size, "broadcast_seconds": stage.one(os.urandom(size << 20))[0]} for size in sizes]
        answered = min(count for _, count in measured)
    print(
        json.dumps(
            {
                "seconds_per_stage": statistics.median(seconds for seconds, _ in measured),
                "worst_stage": max(seconds for seconds, _ in measured),
                "answered": answered,
                "server_cpu_ms_per_stage": 1e3 * cpu / stages,
                "server_load": cpu / wall,
                "server_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "broadcasts": broadcasts,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
