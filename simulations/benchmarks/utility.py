"""Accuracy against epsilon on real texts: MedQuAD at six institutes, SST-2 at ten equal sites; two ways to transfer.

Private cells run the whole study: signed, in rounds, through secure aggregation, with real noise. Where epsilon is none
the same sites train together without clipping and noise. Each cell's learning rate is the better of two on validation
records, at the first seed: TUNED NON-PRIVATELY, for every cell alike. Accuracies are exact, on all test records.

A cell is one data set, way, epsilon and seed; the seed draws the split and, where the data name none, the sites.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from common.stopwatch import Stopwatch
from common.transfer import Training
from simulations import scenario as scenarios
from simulations.authoring import privacy_of
from simulations.benchmarks._rows import Row, kept, save
from simulations.comparison import FEDERATED, Comparison
from simulations.curve.study import quality_of
from simulations.engines import EntropySource
from simulations.hosting import noise_of
from simulations.preparation import Prepared, prepare
from simulations.progress import SilentProgress
from simulations.scenario import Baseline, Scenario, rate_of, with_rate

OUT = Path("runs/bench/utility.json")
DATA = Path("../shared/data")
NAMES = ("medquad", "sst2")
EPSILONS: tuple[float | None, ...] = (None, 8.0, 3.0, 1.0)
SEEDS = (7, 8, 9)
WAYS = {"last 2": {}, "head only": {"method": "head-only"}}
"""What is changed in a scenario's adapter; the first is the default, and has all seeds."""
RATES = (1.0, 0.5)
"""Learning rates that are tried, over the scenario's own."""
_PACKAGES = ("torch", "opacus", "dp-accounting", "flwr", "transformers")


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table."""

    data: str
    way: str
    epsilon: float | None
    seed: int


def cells() -> list[Cell]:
    """Return all cells; those that share their preparation stand together."""
    return [
        Cell(name, way, epsilon, seed)
        for seed in SEEDS
        for name in NAMES
        for way in (WAYS if seed == SEEDS[0] else tuple(WAYS)[:1])
        for epsilon in EPSILONS
    ]


def variant(cell: Cell) -> Scenario:
    """Return a cell's scenario; where epsilon is none its privacy part is that of the first one, and is not used."""
    base = scenarios.load(scenarios.locate(cell.data))
    adapter = base.adapter.model_copy(update=WAYS[cell.way])
    privacy = base.privacy.model_copy(update={"epsilon": cell.epsilon or 8.0})
    return base.model_copy(update={"adapter": adapter, "privacy": privacy, "seed": cell.seed})


class Bench:
    """Measures cells, preparing a data set once for all epsilons.

    rows  what was measured already, from which a later seed takes its learning rate
    """

    def __init__(self, folder: Path, rows: Sequence[Row]) -> None:
        self._folder, self._rows = folder, rows
        self._prepared: tuple[tuple[str, str, int], Prepared] | None = None

    def measure(self, cell: Cell) -> Row:
        """Return a cell's row."""
        chosen = variant(cell)
        prepared = self._prepare(cell, chosen)
        noise = noise_of(EntropySource(None), "arms")
        comparison = Comparison(chosen, prepared, privacy_of(chosen), SilentProgress(), noise)
        training = self._training(cell, chosen, comparison)
        chosen = chosen.model_copy(update={"training": training})
        started = perf_counter()
        quality = quality_of(chosen, prepared, private=cell.epsilon is not None)
        return {
            "data": cell.data,
            "way": cell.way,
            "epsilon": cell.epsilon,
            "seed": cell.seed,
            "accuracy": quality.accuracy,
            "macro_f1": quality.macro_f1,
            "test_records": quality.examples,
            "rate": rate_of(training),
            "seconds": perf_counter() - started,
        }

    def _prepare(self, cell: Cell, chosen: Scenario) -> Prepared:
        key = (cell.data, cell.way, cell.seed)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None
            self._prepared = key, prepare(chosen, self._folder, "cpu", SilentProgress(), Stopwatch())
        return self._prepared[1]

    def _training(self, cell: Cell, chosen: Scenario, comparison: Comparison) -> Training:
        """Return the training at the better rate: tried at the first seed, taken over at the others."""
        same = [
            row for row in self._rows
            if (row["data"], row["way"], row["epsilon"]) == (cell.data, cell.way, cell.epsilon)
        ]  # fmt: skip
        if same:
            return with_rate(chosen.training, float(str(same[0]["rate"])))
        arm = FEDERATED if cell.epsilon is not None else Baseline.FEDERATED_NONPRIVATE.value
        rounds = max(1, chosen.training.rounds // 4)
        tried = [with_rate(chosen.training, factor * rate_of(chosen.training)) for factor in RATES]
        return max(
            tried,
            key=lambda one: comparison.validation_accuracy(arm, one.model_copy(update={"rounds": rounds})),
        )


def table(rows: Sequence[Row]) -> str:
    """Return one line for each data set and way, one column for each epsilon: mean, spread over seeds, number."""
    heads = ["none" if epsilon is None else f"epsilon {epsilon:g}" for epsilon in EPSILONS]
    lines = [f"{'data':<9}{'way':<11}" + "".join(f"{head:>18}" for head in heads)]
    for name in NAMES:
        for way in WAYS:
            found = [
                _shown(row for row in rows if (row["data"], row["way"], row["epsilon"]) == (name, way, epsilon))
                for epsilon in EPSILONS
            ]
            lines.append(f"{name:<9}{way:<11}" + "".join(f"{one:>18}" for one in found))
    return "\n".join(lines)


def _shown(rows: Iterable[Row]) -> str:
    values = [100.0 * float(str(row["accuracy"])) for row in rows]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} ({len(values)})"


def main(argv: Sequence[str]) -> int:
    """Measure what was not measured yet and print the table; returns 1 where the data are not there."""
    parser = argparse.ArgumentParser(prog="make bench NAME=utility")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)}; default: all")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with medquad/ and sst2/")
    chosen = parser.parse_args(argv)
    if not chosen.data.is_dir():
        print(f"{chosen.data} is not here: skipped")
        return 1
    torch.set_num_threads(1)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["data"], row["way"], row["epsilon"], row["seed"]) for row in rows}
    bench = Bench(chosen.data, rows)
    for cell in cells():
        if chosen.names and cell.data not in chosen.names:
            continue
        if (cell.data, cell.way, cell.epsilon, cell.seed) not in done:
            rows.append(bench.measure(cell))
            save(chosen.out, rows, "make bench NAME=utility", _PACKAGES, {"tuned": "non-privately, at the first seed"})
            print(f"{cell.data}, {cell.way}, epsilon {cell.epsilon or 'none'}, seed {cell.seed}: done", flush=True)
    print(table(rows))
    return 0
