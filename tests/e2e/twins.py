"""One signed study, run by `consilium-sim`'s own code in this process and by real daemons over the real link.

Both draw noise, and the rounding of the secure sums, from one seed. A daemon has no place for a seed: the harness
replaces two constructors in a process of its own before the daemon begins (RULES 15). Everything else is as shipped.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from unittest import mock

import numpy as np
from flwr.app import Message

import client.daemon
import client.site
import client.training.noise
from client.config import SiteConfig
from client.ledger.witness import Witness
from client.preparing import prepare as prepare_site
from client.run import serve
from client.site import Site, Workload
from common import agreement as agreements
from common.adapters import Vector
from common.agreement import Agreement, Approval, SignedStudy, verify_agreement
from common.identity import Identity, SiteId
from common.keystore import read_identity, read_passphrase
from common.link.inprocess import InProcessGrid
from common.logs import to_stderr
from common.stopwatch import Stopwatch
from common.study import Kind, Study
from server.config import ServerConfig
from server.process import Operator
from server.product import AdapterProduct
from simulations.authoring import Authored, draft, privacy_of
from simulations.engines import EntropySource
from simulations.federation import federate
from simulations.network.consortium import PASSPHRASE_VARIABLE, Account, LaidOut, lay_out, publish
from simulations.network.processes import free_port
from simulations.noise import SeededNoise
from simulations.preparation import Prepared, prepare
from simulations.progress import SilentProgress
from simulations.scenario import Scenario
from tests.e2e.network import FORKED, PASSPHRASE, SLOWEST
from tests.encoders import WORDS, write_encoder
from tests.simulations.tiny import SITES, scenario

DATA = """\
[data]
folder = "data"
query = "SELECT text, label, patient, split FROM read_csv('notes.csv', all_varchar = true)"
[data.columns]
text = "text"
label = "label"
unit = "patient"
split = "split"
"""
TRAINING = {
    "rounds": 3,
    "steps_per_round": 2,
    "learning_rate": 0.5,
    "proximal": 0.1,
    "server_optimizer": "fedyogi",
    "server_learning_rate": 0.2,
}
PRIVACY = {
    "unit": "patient",
    "max_records_per_unit": 4,
    "epsilon": 8.0,
    "delta": 1e-5,
    "sampling_rate": 0.5,
    "max_charges": 5,
}


@dataclass(frozen=True, slots=True)
class Ended:
    """What a study ended with: the released vector's bytes, the noised cells, and who was in each round's sum."""

    vector: bytes
    cells: tuple[int, ...]
    survivors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Twins:
    """A study that is signed, in the folders of real parties, and prepared for the simulator too."""

    laid: LaidOut
    prepared: Prepared
    authored: Authored

    def simulated(self, seed: int) -> Ended:
        """Run the study by the simulator's own code, in this process."""
        with unseeded_witnesses():
            ran = federate(self.prepared, self.authored, self.laid.keys, EntropySource(seed), SilentProgress())
        outcome = ran.coordinator.outcome
        assert not [line for log in ran.logs.values() for line in log.incidents]
        assert outcome.counts is not None
        return Ended(
            ran.vector.tobytes(),
            tuple(int(value) for value in outcome.counts.values),
            tuple(len(record.survivors) for record in outcome.rounds),
        )

    def deployed(self, seed: int) -> Ended:
        """Run the study by an operator's and four hospitals' daemons, each a process with its own keys and files."""
        processes = {"operator": (_operator, self.laid.server)} | {
            site: (_hospital, file) for site, file in self.laid.sites.items()
        }
        with _running(processes, seed) as started:
            _until_released(started, self.laid)
        (release,) = (self.laid.server.parent / "state" / "releases").iterdir()
        result = json.loads((release / "result.json").read_text())
        return Ended(
            np.load(release / "vector.npy", allow_pickle=False).tobytes(),
            tuple(result["counts"]["cells"]),
            tuple(done["sites"] for done in result["rounds"]),
        )


def twins(folder: Path) -> Twins:
    """Lay out a consortium over a tiny encoder and invented notes, and publish its deployment study."""
    write_encoder(folder / "encoder")
    rows = write_notes(folder / "notes.csv")
    chosen = chosen_scenario(folder / "encoder")
    prepared = prepare(chosen, folder, "cpu", SilentProgress(), Stopwatch())
    privacy = privacy_of(chosen)
    laid = lay_out(
        folder / "consortium",
        [site.site for site in prepared.sites],
        port=free_port(),
        health=None,
        passphrase=PASSPHRASE,
        account=Account(privacy.unit, 2 * privacy.epsilon, 2 * privacy.delta),
        deadline=SLOWEST,
        data={site.site: DATA for site in prepared.sites},
        backbone=f'[backbone]\nfolder = "{folder / "encoder"}"\n',
    )
    # Nobody is left out because it came a moment later.
    laid.server.write_text(f"quorum = {len(laid.sites)}\n{laid.server.read_text()}")
    for site, file in laid.sites.items():
        write_rows(file.parent / "data" / "notes.csv", [row for row in rows if row["site"] == site])
    study = draft(
        chosen,
        manifest=prepared.backbone.manifest,
        units=prepared.units,
        dimension=prepared.model.dimension,
        privacy=privacy,
        consortium=laid.keys,
        stream=prepared.stream,
        kind=Kind.DEPLOYMENT,
    )
    publish(laid, study)
    signed, approvals = agreements.read(laid.server.parent / "studies" / "study")
    agreed = verify_agreement(
        signed, approvals, laid.keys.operator.public_key, now=datetime.now(UTC), kind=Kind.DEPLOYMENT
    )
    return Twins(laid, prepared, Authored(signed, approvals, agreed))


def chosen_scenario(encoder: Path) -> Scenario:
    """Return the study's scenario, over one file with every hospital's notes."""
    return scenario(
        encoder,
        columns={"text": "text", "label": "label", "site": "site", "unit": "patient"},
        split={"column": "split"},
        training=TRAINING,
        privacy=PRIVACY,
    )


def write_notes(path: Path) -> list[dict[str, str]]:
    """Write notes of four hospitals, several a patient, in an order that says nothing; returns them."""
    dice = np.random.default_rng(11)
    rows = [
        {
            "text": " ".join([*dice.choice(WORDS, size=int(dice.integers(2, 9))), f"note {number}"]),
            "label": ("sore", "hot")[int(dice.integers(2))],
            "site": SITES[number % len(SITES)],
            "patient": f"p{number // 12}",
            "split": ("train", "train", "train", "validation", "test")[number // 12 % 5],
        }
        for number in range(480)
    ]
    dice.shuffle(rows)
    write_rows(path, rows)
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    """Write notes as a file that a query can read."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def unseeded_witnesses() -> Iterator[None]:
    """Take nonces of a ledger's witness from the system: how often a site was asked who it is then shifts no seed."""

    def system(identity: Identity, ledger: str, _entropy: Callable[[int], bytes]) -> Witness:
        return Witness(identity, ledger, os.urandom)

    with mock.patch.object(client.site, "Witness", system):
        yield


def _hospital(file: Path, seed: int) -> None:
    """Be a hospital's daemon as shipped, but for two constructors that draw from a seed."""
    entropy = EntropySource(seed)

    def seeded_site(agreement: Agreement, site: SiteId, *arguments: object, **named: object) -> Site:
        return Site(agreement, site, *arguments, entropy=entropy.of(f"{site}/protocol"), **named)  # type: ignore[arg-type]

    def seeded_workload(config: SiteConfig, agreed: Agreement, identity: Identity) -> Workload:
        def noise() -> SeededNoise:
            return SeededNoise(seed, config.site_id)

        with mock.patch.object(client.training.noise, "SystemNoise", noise):
            return prepare_site(config, agreed, identity)

    with unseeded_witnesses(), mock.patch.object(client.daemon, "Site", seeded_site):
        serve(file, seeded_workload)


def _operator(file: Path, seed: int) -> None:
    """Be the operator's server as shipped, which releases the vector itself too. Its own randomness is the system's."""
    del seed
    config = ServerConfig.load(file)
    passphrase = read_passphrase(config.keys.passphrase)
    identity = read_identity(config.keys.identity, passphrase)
    to_stderr()
    Operator(config, identity, lambda study: _Shown(study, config), passphrase=passphrase).run(until_idle=True)


class _Shown(AdapterProduct):
    """Writes the vector's own bytes beside the release."""

    def __init__(self, study: Study, config: ServerConfig) -> None:
        super().__init__(study, config.backbone)

    def release(self, folder: Path, vector: Vector, signed: SignedStudy, approvals: tuple[Approval, ...]) -> None:
        super().release(folder, vector, signed, approvals)
        np.save(folder / "vector.npy", vector, allow_pickle=False)


@contextlib.contextmanager
def _running(
    processes: Mapping[str, tuple[Callable[[Path, int], None], Path]], seed: int
) -> Iterator[Mapping[str, ForkServerProcess]]:
    """Start daemons, each in a process of its own with its log beside its file, and kill what is left at the end."""
    started = {}
    try:
        for name, (being, file) in processes.items():
            started[name] = FORKED.Process(target=_be, args=(being, file, seed), daemon=True)
            started[name].start()
        yield started
    finally:
        for process in started.values():
            process.kill()
            process.join()


def _be(being: Callable[[Path, int], None], file: Path, seed: int) -> None:
    descriptor = os.open(file.parent / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ[PASSPHRASE_VARIABLE] = PASSPHRASE
    being(file, seed)


def _until_released(started: Mapping[str, ForkServerProcess], laid: LaidOut) -> None:
    end = time.monotonic() + 2 * SLOWEST
    while started["operator"].exitcode is None:
        assert time.monotonic() < end, (laid.server.parent / "log").read_text()[-3000:]
        assert all(process.exitcode is None for name, process in started.items() if name != "operator"), [
            (file.parent / "log").read_text()[-2000:] for file in laid.sites.values()
        ]
        started["operator"].join(0.1)
    assert started["operator"].exitcode == 0, (laid.server.parent / "log").read_text()[-3000:]


def reversed_grid() -> contextlib.AbstractContextManager[object]:
    """Have the simulator's grid ask the sites, and hand over their replies, from the last to the first."""
    send = InProcessGrid.send_and_receive

    def backwards(grid: InProcessGrid, messages: Iterable[Message], **named: object) -> list[Message]:
        del named
        return list(send(grid, list(messages)[::-1]))

    return mock.patch.object(InProcessGrid, "send_and_receive", backwards)
