"""A study without a model: real daemons, link, ledgers and secure sums, and sites that compute next to nothing.

For measuring the link, and for tests of it with many sites: neither side loads torch. Studies made here are signed as
simulations, which a hospital's daemon refuses; the processes are this module's own, and no file selects them.

    python -m simulations.network.rehearsal operator server.toml [--until-idle]
    python -m simulations.network.rehearsal site site.toml
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import typer
from numpy.typing import NDArray

from client.config import SiteConfig
from client.preparing import locate
from client.run import serve
from client.site import Workload
from common import backbone as backbones
from common.agreement import Agreement, Approval, SignedStudy
from common.console import coded_errors
from common.identity import Identity, SiteId
from common.keystore import read_identity, read_passphrase
from common.logs import to_stderr
from common.study import Kind, Study
from server.config import ServerConfig
from server.process import Operator
from simulations.authoring import Consortium

STEP = 1.0 / 64.0
"""What each site adds to every coordinate in every round: the sum is known, and nothing about it is private."""
NO_DATA = """\
[data]
folder = "data"
query = "SELECT 'nothing is read'"

[data.columns]
text = "text"
label = "label"
"""
"""A site's ``[data]`` table, which no rehearsal reads."""
_CELLS = 2


class Rehearsed:
    """A workload whose update and cells are constants."""

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """Length of the vector."""
        return self._dimension

    def train(self, start: NDArray[np.float32], round_index: int) -> NDArray[np.float32]:
        """Return the same step in every coordinate."""
        del start, round_index
        return np.full(self._dimension, STEP, dtype=np.float32)

    def evaluate(self, vector: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the same cells."""
        del vector
        return np.full(_CELLS, 7, dtype=np.int64)


class RehearsedProduct:
    """Starts with zeros and releases the vector itself."""

    def __init__(self, study: Study) -> None:
        self._dimension = dimension_of(study)

    def start(self) -> NDArray[np.float32]:
        """Return zeros."""
        return np.zeros(self._dimension, dtype=np.float32)

    def moves(self, round_index: int) -> None:
        """Every round moves all."""
        del round_index

    def release(
        self, folder: Path, vector: NDArray[np.float32], signed: SignedStudy, approvals: tuple[Approval, ...]
    ) -> None:
        """Write the vector."""
        del signed, approvals
        np.save(folder / "vector.npy", vector, allow_pickle=False)


def rehearsal(
    keys: Consortium,
    sites: Sequence[SiteId],
    *,
    rounds: int,
    dimension: int,
    title: str = "A rehearsal",
    spare: int = 50,
    files: Mapping[str, str] | None = None,
) -> Study:
    """Return a study among some sites whose vector has a length; how long stands in its backbone's revision.

    spare  charges that may be lost to aborted sums
    files  the backbone's, with their SHA-256: sites whose file has a [backbone] begin with nothing less
    """
    now = datetime.now(UTC).replace(microsecond=0)
    return Study.from_fields(
        {
            "kind": Kind.SIMULATION.value,
            "title": title,
            "operator": keys.operator.public_key.hex(),
            "created": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "expires": (now + timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "stream": "5a" * 32,
            "purpose": {"duo": ["DUO:0000006"], "statement": "Rehearsal: nobody's records are used."},
            "backbone": {
                "name": "none",
                "source": "none",
                "revision": str(dimension),
                "licence": "Apache-2.0",
                "training_data": "none",
                "files": dict(files or {"none.safetensors": "0" * 64}),
            },
            "task": {"labels": ["no", "yes"], "max_tokens": 16},
            "adapter": {"method": "ffa-lora", "rank": 1, "alpha": 1.0, "targets": ["query"], "last_layers": 1},
            "training": {"rounds": rounds, "steps_per_round": 1, "learning_rate": 0.1},
            "privacy": {
                "epsilon": 100.0,
                "delta": 1e-5,
                "sampling_rate": 0.01,
                "noise_multiplier": 1.0,
                "clip_norm": 1.0,
                "max_charges": rounds + spare,
            },
            "evaluation": {"releases": 1, "noise_multiplier": 5.0},
            "aggregation": {"clamp": 1.0, "minimum_cohort": 3},
            "roster": [{"site": site, "key": keys.sites[site].public_key.hex(), "band": 100} for site in sorted(sites)],
        }
    )


def dimension_of(study: Study) -> int:
    """Return the length of a rehearsal's vector."""
    return int(study.backbone.revision)


def main(argv: Sequence[str]) -> int:
    """Run one process of a rehearsal; returns its exit status, 2 for a coded error."""
    parser = argparse.ArgumentParser(prog="python -m simulations.network.rehearsal")
    parser.add_argument("side", choices=("operator", "site"))
    parser.add_argument("config", type=Path)
    parser.add_argument("--until-idle", action="store_true")
    chosen = parser.parse_args(argv)
    try:
        with coded_errors():
            return _run(chosen.side, chosen.config, until_idle=chosen.until_idle)
    except typer.Exit as stopped:
        return stopped.exit_code


def _run(side: str, file: Path, *, until_idle: bool) -> int:
    if side == "site":
        serve(file, _rehearsed, kind=Kind.SIMULATION)
        return 0
    config = ServerConfig.load(file)
    passphrase = read_passphrase(config.keys.passphrase)
    identity = read_identity(config.keys.identity, passphrase)
    to_stderr()
    operator = Operator(config, identity, RehearsedProduct, kind=Kind.SIMULATION, passphrase=passphrase)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: operator.stop())
    return 0 if operator.run(until_idle=until_idle) else 3


def _rehearsed(config: SiteConfig, agreed: Agreement, identity: Identity) -> Workload:
    del identity
    if config.backbone is not None:
        backbones.verify(locate(config, agreed.study.backbone), agreed.study.backbone)
    return Rehearsed(dimension_of(agreed.study))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
