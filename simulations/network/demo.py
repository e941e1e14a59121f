"""`make demo-network`: an operator and four hospitals as processes on this machine, from two empty hands to a release.

The daemons are the product's own, `consilium-server run` and `consilium-client run`; the study is a deployment study
over a real backbone, TLS and real keys. Only the patients are invented, and one hand draws all keys.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import secrets
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import typer
from rich.console import Console

from client.data import Examples, SiteData
from common import backbone as backbones
from common import errors
from common.console import coded_errors
from common.errors import ConsiliumError
from common.study import Kind, Study
from simulations import scenario as scenarios
from simulations.authoring import Consortium, draft, privacy_of
from simulations.cohort import load_sites
from simulations.network.consortium import Account, LaidOut, lay_out, publish
from simulations.network.processes import OPERATOR, SITE, free_port, running, start
from simulations.preparation import locate_backbone
from simulations.scenario import Scenario

HOSPITALS = 4
ROUNDS = 12
_DEADLINE = 120.0
_LIMIT = 900.0
_DATA = """\
[data]
folder = "data"
query = "SELECT text, label, patient, split FROM read_csv('notes.csv', all_varchar = true)"

[data.columns]
text = "text"
label = "label"
unit = "patient"
split = "split"
"""


def main(argv: Sequence[str]) -> int:
    """Lay out the consortium, run its processes, say what came out; returns the exit status, 2 for a coded error."""
    parser = argparse.ArgumentParser(prog="make demo-network")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/network"), help="folder to make; what is there is removed"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    chosen = parser.parse_args(argv)
    console = Console(highlight=False)
    try:
        with coded_errors():
            out = run(chosen.out, chosen.rounds, console)
            result = json.loads((out / "result.json").read_text())
    except typer.Exit as stopped:
        return stopped.exit_code
    counts = result["counts"]
    console.print(f"released after {len(result['rounds'])} rounds: {out}")
    if counts is not None:
        weight, correct = counts["cells"]
        console.print(f"accuracy by noised counts of {counts['sites']} sites: {100 * correct / max(weight, 1):.1f} %")
    return 0


def run(folder: Path, rounds: int, console: Console) -> Path:
    """Run a study among four hospitals in a folder; returns the release's folder.

    Raises CSL-602 where the study did not come to its end, with what the operator's log says last.
    """
    if folder.exists():
        shutil.rmtree(folder)
    passphrase = secrets.token_urlsafe(24)
    scenario = chosen_scenario(rounds)
    hospitals = load_sites(scenario, None)
    console.print(f"{len(hospitals)} hospitals with invented notes, {rounds} rounds; everything below {folder}")
    privacy = privacy_of(scenario)
    laid = lay_out(
        folder,
        [hospital.site for hospital in hospitals],
        port=free_port(),
        health=free_port(),
        passphrase=passphrase,
        account=Account(privacy.unit, 2 * privacy.epsilon, 2 * privacy.delta),
        deadline=_DEADLINE,
        data={hospital.site: _DATA for hospital in hospitals},
        backbone=f'[backbone]\npackage = "{scenarios.KNOWN_PACKAGE}"\n',
    )
    for hospital in hospitals:
        write_notes(laid.sites[hospital.site].parent / "data" / "notes.csv", hospital)
    publish(laid, study_of(scenario, hospitals, laid.keys))
    return _until_released(laid, passphrase, console)


def chosen_scenario(rounds: int) -> Scenario:
    """Return the demo's scenario with its first hospitals and fewer rounds."""
    scenario = scenarios.load(scenarios.locate("demo"))
    corpus = scenario.data.corpus
    assert corpus is not None
    few = corpus.model_copy(update={"hospitals": corpus.hospitals[:HOSPITALS]})
    return scenario.model_copy(
        update={
            "data": scenario.data.model_copy(update={"corpus": few}),
            "training": scenario.training.model_copy(update={"rounds": rounds}),
            "privacy": scenario.privacy.model_copy(update={"max_charges": rounds + max(2, rounds // 4)}),
        }
    )


def study_of(scenario: Scenario, hospitals: Sequence[SiteData], keys: Consortium) -> Study:
    """Return the deployment study of a scenario among hospitals whose keys are known."""
    from common.adapters import attach, ranks, shapes_of
    from common.tasks import task_for

    folder, manifest = locate_backbone(scenario.backbone)
    loaded = backbones.load(folder, manifest)
    stream = hashlib.sha256(secrets.token_bytes(32)).hexdigest()
    task = task_for(scenario.task, loaded, stream)
    model = attach(loaded, scenario.adapter, task, stream, pretraining=scenario.pretraining)
    units = {hospital.site: len(set(hospital.train.units.tolist())) for hospital in hospitals}
    return draft(
        scenario,
        manifest=manifest,
        units=units,
        dimension=model.dimension,
        blocks=ranks.blocks(scenario.adapter, shapes_of(model), tuple(units)),
        privacy=privacy_of(scenario),
        consortium=keys,
        stream=stream,
        kind=Kind.DEPLOYMENT,
    )


def write_notes(path: Path, hospital: SiteData) -> None:
    """Write a hospital's records as the one CSV file that its query reads."""
    splits: tuple[tuple[str, Examples], ...] = (
        ("train", hospital.train),
        ("validation", hospital.validation),
        ("test", hospital.test),
    )
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label", "patient", "split"))
        for split, examples in splits:
            for text, label, unit in zip(examples.contents, examples.labels, examples.units, strict=True):
                writer.writerow((text, label, f"{split}-{unit}", split))


def _until_released(laid: LaidOut, passphrase: str, console: Console) -> Path:
    began = time.monotonic()
    with running({}) as processes:
        operator = processes["operator"] = start(OPERATOR, laid.server, passphrase)
        for site, config in laid.sites.items():
            processes[site] = start(SITE, config, passphrase)
        with console.status("the hospitals train; their logs are beside their files"):
            code = operator.wait(_LIMIT)
    console.print(f"operator ended with status {code} after {time.monotonic() - began:.0f} s")
    releases = sorted((laid.server.parent / "state" / "releases").glob("[0-9a-f]*"))
    if code or not releases:
        log = laid.server.with_suffix(".log").read_text().splitlines()
        raise ConsiliumError(errors.QUORUM_LOST, log[-1] if log else "no log")
    return releases[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
