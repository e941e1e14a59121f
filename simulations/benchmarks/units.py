"""One study with repeated patients, twice: with the patient as its unit and with the record.

The demo's hospitals, whose patients now have up to six notes. Both studies have the same epsilon, delta, rounds, rate,
clip norm, split and backbone, and draw real noise; what differs is whom the promise is made to. Each row has epsilon
for one record and for a patient with two and with six, beside what was learned: exact on all test records, and as
released.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.privacy.groups import epsilon_for_person
from common.privacy.plan import PrivacyPlan
from common.privacy.released import released_accuracy
from common.stopwatch import Stopwatch
from common.study import Unit
from simulations import scenario as scenarios
from simulations.arms import Quality
from simulations.authoring import Consortium, privacy_of
from simulations.benchmarks._rows import Row, kept, save
from simulations.engines import EntropySource
from simulations.federation import agree, federate
from simulations.preparation import prepare
from simulations.progress import SilentProgress
from simulations.scenario import Scenario
from simulations.summary import own_tests

Cell = tuple[Unit, float, int]
OUT = Path("runs/bench/units.json")
NOTES = 6
"""Most notes of a patient; the corpus draws their number uniformly from 1."""
SHOWN = (1, 2, NOTES)
EPSILONS = (8.0, 3.0)
SEEDS = (7, 8, 9)
_PACKAGES = ("torch", "opacus", "dp-accounting", "flwr")


def variant(unit: Unit, epsilon: float, seed: int, base: Scenario | None = None) -> Scenario:
    """Return the demo (or another scenario) with up to six notes a patient and this unit, epsilon and seed.

    The seed makes notes and splits, so both units see the same ones; noise never comes from it.
    """
    chosen = base or scenarios.load(scenarios.locate("demo"))
    corpus = chosen.data.corpus
    data = chosen.data.model_copy(update={"corpus": corpus.model_copy(update={"max_notes": NOTES})} if corpus else {})
    most = NOTES if unit is Unit.PATIENT else 1
    privacy = chosen.privacy.model_copy(update={"unit": unit, "epsilon": epsilon, "max_records_per_unit": most})
    return chosen.model_copy(update={"data": data, "privacy": privacy, "seed": seed})


def measure(chosen: Scenario, data_dir: Path | None = None) -> Row:
    """Run one study and return its row."""
    entropy, progress = EntropySource(None), SilentProgress()
    prepared = prepare(chosen, data_dir, "cpu", progress, Stopwatch())
    consortium = Consortium.draw(tuple(prepared.units), entropy)
    authored = agree(chosen, prepared, privacy_of(chosen), consortium)
    federation = federate(prepared, authored, consortium, entropy, progress)
    study = authored.study
    plan = PrivacyPlan.for_site(study, study.roster[0].site_id)
    exact = Quality.pooled(own_tests(prepared, federation).values())
    counts = federation.coordinator.outcome.counts
    released = (
        (None, None, None)
        if counts is None
        else released_accuracy(counts.values.astype(np.int64), len(counts.survivors), study)
    )
    return {
        "unit": plan.unit.value,
        "epsilon": study.privacy.epsilon,
        "seed": chosen.seed,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        **{f"epsilon_{records}": _finite(epsilon_for_person(plan, records)) for records in SHOWN},
        "records": sum(len(site.train) for site in prepared.sites),
        "patients": sum(len(np.unique(site.train.units)) for site in prepared.sites),
        "accuracy": exact.accuracy,
        "released": released[0],
        "low": released[1],
        "high": released[2],
    }


def cells() -> list[Cell]:
    """Return (unit, epsilon, seed) of every cell."""
    return [(unit, epsilon, seed) for seed in SEEDS for epsilon in EPSILONS for unit in (Unit.PATIENT, Unit.RECORD)]


def table(rows: Sequence[Row]) -> str:
    """Return one line for each unit and epsilon: accuracies are means over the seeds, with their deviation."""
    shown = " ".join(f"{f'k = {records}':>8}" for records in SHOWN)
    lines = [f"{'unit':>8} {'epsilon':>7} {'noise':>7} {shown} {'exact':>14} {'released':>14} {'interval':>9}"]
    for unit, epsilon in sorted({(str(row["unit"]), float(row["epsilon"] or 0.0)) for row in rows}):
        found = [row for row in rows if (row["unit"], row["epsilon"]) == (unit, epsilon)]
        first = found[0]
        spent = " ".join(_shown(first[f"epsilon_{records}"]) for records in SHOWN)
        exact, released = (_mean([row[key] for row in found]) for key in ("accuracy", "released"))
        widths = [
            (float(row["high"]) - float(row["low"])) / 2
            for row in found
            if row["high"] is not None and row["low"] is not None
        ]
        width = f"±{100 * statistics.mean(widths):.1f}" if widths else "-"
        noise = float(first["noise_multiplier"] or 0.0)
        lines.append(f"{unit:>8} {epsilon:>7g} {noise:>7.4f} {spent} {exact:>14} {released:>14} {width:>9}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Run the cells that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=units")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["unit"], row["epsilon"], row["seed"]) for row in rows}
    for unit, epsilon, seed in cells():
        if (unit.value, epsilon, seed) in done:
            continue
        rows.append(measure(variant(unit, epsilon, seed)))
        save(chosen.out, rows, "make bench NAME=units", _PACKAGES, {"notes": NOTES})
        print(f"{unit.value}, epsilon {epsilon:g}, seed {seed}: done", flush=True)
    print(table(rows))
    return 0


def _finite(epsilon: float) -> float | None:
    """Return a number that JSON has; None where the accountant found no finite bound."""
    return epsilon if np.isfinite(epsilon) else None


def _shown(epsilon: float | int | str | None) -> str:
    return f"{'none':>8}" if epsilon is None else f"{float(epsilon):>8.2f}"


def _mean(values: Sequence[float | int | str | None]) -> str:
    known = [100 * float(value) for value in values if value is not None]
    if not known:
        return "-"
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{statistics.mean(known):.1f} ± {spread:.1f}"
