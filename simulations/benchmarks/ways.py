"""Every way to transfer on five data sets: without privacy, at epsilon 8 and 3, each site alone, and all in one place.

Texts are a labelled subsample (an eighth of MedQuAD by disease, a fiftieth of SST-2 by sentence) and the last layer
alone is adapted, so that the table fits two cores; images and sound adapt the last two convolutions. Private cells run
the whole study: signed, in rounds, through secure aggregation, with real noise. Each way's learning rate on a data set
is the better of two on validation records without privacy: TUNED NON-PRIVATELY, for every cell of a row alike.
Accuracies are exact, on all test records; each site alone is judged on its own test records, and the mean over sites is
shown. A cell that cannot be filled says why.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch

from common import errors
from common.errors import ConsiliumError
from common.stopwatch import Stopwatch
from common.transfer import Pretraining, Training
from common.ways import WAYS
from simulations import scenario as scenarios
from simulations.authoring import privacy_of
from simulations.benchmarks._files import lay_out
from simulations.benchmarks._rows import Row, kept, save
from simulations.cohort import load_sites
from simulations.comparison import Comparison
from simulations.curve.study import quality_of
from simulations.engines import EntropySource
from simulations.hosting import noise_of
from simulations.preparation import Prepared, prepare
from simulations.progress import SilentProgress
from simulations.scenario import Baseline, Scenario, rate_of, with_rate

OUT = Path("runs/bench/ways.json")
DATA = Path("../shared/data")
FILES = Path("runs/bench/data")
NAMES = ("heart", "medquad", "sst2", "pneumonia", "digits")
COLUMNS = ("none", "epsilon 8", "epsilon 3", "alone", "one place")
DEFAULT = {"heart": "feature-extraction", "pneumonia": "feature-extraction", "digits": "feature-extraction"}
"""The way of a data set that has all seeds; ffa-lora where none is named."""
SEEDS = (7, 8, 9)
RATES = (1.0, 3.0)
"""What a way's own rate is multiplied by."""
_TWO_LAYERS = ("pneumonia", "digits")
"""Data sets of files, whose last two convolutions are adapted; of the others the last layer."""
_SAMPLES = {
    "medquad": "SELECT * FROM ({}) WHERE md5(focus) < '2'",
    "sst2": "SELECT * FROM ({}) WHERE split = 'test' OR md5(sentence) < '05'",
}
_ROUNDS = {"pneumonia": 60, "digits": 60, "medquad": 15}
"""Rounds of a data set; 20 where none are named."""
_RATE = {
    "last-layer": 0.003,
    "full": 0.003,
    "bottleneck": 0.01,
    "bitfit": 0.01,
    "layer-norm": 0.03,
    "lora": 0.03,
    "rolora": 0.03,
}
"""Of an adaptive server, for ways whose weights multiply each other or are many; 0.1 for the others."""
_PACKAGES = ("torch", "opacus", "dp-accounting", "flwr", "transformers", "peft")


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure of the table."""

    data: str
    way: str
    column: str
    seed: int


def cells(names: Sequence[str] = NAMES) -> list[Cell]:
    """Return all cells; those that share their preparation stand together."""
    return [
        Cell(name, way, column, seed)
        for seed in SEEDS
        for name in names
        for way in (WAYS if seed == SEEDS[0] else [DEFAULT.get(name, "ffa-lora")])
        for column in COLUMNS
    ]


def variant(name: str, way: str, seed: int) -> Scenario:
    """Return the scenario of a data set in one way, at epsilon 8."""
    base, chosen = scenarios.load(scenarios.locate(name)), WAYS[way]
    layers = 2 if name in _TWO_LAYERS else 1
    adapter = chosen.adapter(base.adapter.model_copy(update={"rank": 8, "alpha": 2.0, "last_layers": layers}))
    rounds = _ROUNDS.get(name, 20)
    training = {"rounds": rounds, "server_learning_rate": _RATE.get(way, 0.1)}
    task, data = base.task, base.data
    if name in _SAMPLES:
        data = data.model_copy(update={"query": _SAMPLES[name].format(data.query)})
    if base.task.content in ("text", "fields"):
        task = base.task.model_copy(update={"max_tokens": 64})
    return base.model_copy(
        update={
            "seed": seed,
            "data": data,
            "task": task,
            "adapter": adapter,
            "training": base.training.model_copy(update=training),
            "privacy": base.privacy.model_copy(update={"epsilon": 8.0, "sampling_rate": 0.25}),
            "pretraining": Pretraining(rounds=rounds // 4) if chosen.pretrains else None,
        }
    )


def with_ranks(scenario: Scenario, sites: Sequence[str]) -> Scenario:
    """Return a scenario in which as many sites as a block needs have rank 8, and the others 4 and 2 by turns.

    Raises CSL-310 where a block needs all of them.
    """
    needed = len(sites) // 3 + 3
    if needed >= len(sites):
        detail = f"of {len(sites)} sites {needed} must train each rank (RULES 4), so none can have a smaller one"
        raise ConsiliumError(errors.ADAPTER_INVALID, detail)
    smaller = {site: 4 if place % 2 == 0 else 2 for place, site in enumerate(sorted(sites)[needed:])}
    return scenario.model_copy(update={"adapter": scenario.adapter.model_copy(update={"site_ranks": smaller})})


class Bench:
    """Measures cells, preparing a data set in one way once for all columns.

    rows  what was measured already, from which a row takes its learning rate
    """

    def __init__(self, texts: Path, files: Path, rows: Sequence[Row]) -> None:
        self._texts, self._files, self._rows = texts, files, rows
        self._prepared: tuple[tuple[str, str, int], Scenario, Prepared] | None = None

    def measure(self, cell: Cell) -> Row:
        """Return a cell's row; where a way does not fit, its reason in place of figures."""
        started = perf_counter()
        row: Row = {"data": cell.data, "way": cell.way, "column": cell.column, "seed": cell.seed}
        if cell.way == "full" and cell.data not in _TWO_LAYERS:
            return row | {"accuracy": None, "reason": "one layer is adapted here: the same as last-layer"}
        try:
            scenario, prepared = self._prepare(cell)
            training = self._training(cell, scenario, prepared)
            quality = self._quality(cell, scenario.model_copy(update={"training": training}), prepared)
        except ConsiliumError as error:
            return row | {"accuracy": None, "reason": f"{error.code}: {error.detail}"}
        return row | {
            "accuracy": quality[0],
            "test_records": quality[1],
            "dimension": prepared.model.dimension,
            "rate": rate_of(training),
            "seconds": perf_counter() - started,
        }

    def _quality(self, cell: Cell, scenario: Scenario, prepared: Prepared) -> tuple[float, int]:
        if cell.column == "alone":
            alone = self._comparison(scenario, prepared).run(Baseline.LOCAL_ONLY, scenario.training).own.values()
            return statistics.mean(each.accuracy for each in alone), sum(each.examples for each in alone)
        if cell.column == "one place":
            arm = self._comparison(scenario, prepared).run(Baseline.CENTRALISED_NONPRIVATE, scenario.training)
            quality = next(iter(arm.pooled.values()))
        elif cell.column == "none":
            quality = quality_of(scenario, prepared, private=False)
        else:
            wanted = scenario.privacy.model_copy(update={"epsilon": float(cell.column.split()[1])})
            quality = quality_of(scenario.model_copy(update={"privacy": wanted}), prepared, private=True)
        return quality.accuracy, quality.examples

    def _comparison(self, scenario: Scenario, prepared: Prepared) -> Comparison:
        noise = noise_of(EntropySource(None), "arms")
        return Comparison(scenario, prepared, privacy_of(scenario), SilentProgress(), noise)

    def _prepare(self, cell: Cell) -> tuple[Scenario, Prepared]:
        key = (cell.data, cell.way, cell.seed)
        if self._prepared is None or self._prepared[0] != key:
            self._prepared = None
            scenario = variant(*key)
            folder = self._files if cell.data in _TWO_LAYERS else self._texts
            if WAYS[cell.way].mixed:
                scenario = with_ranks(scenario, [site.site for site in load_sites(scenario, folder)])
            made = prepare(scenario, folder, "cpu", SilentProgress(), Stopwatch())
            self._prepared = key, scenario, made
        return self._prepared[1], self._prepared[2]

    def _training(self, cell: Cell, scenario: Scenario, prepared: Prepared) -> Training:
        """Return the training at the better rate: tried once for a data set and a way, taken over in other cells."""
        same = [row for row in self._rows if (row["data"], row["way"]) == (cell.data, cell.way) and row.get("rate")]
        if same:
            return with_rate(scenario.training, float(str(same[0]["rate"])))
        rounds = max(2 * len(prepared.model.phases()), scenario.training.rounds // 4)
        comparison = self._comparison(scenario, prepared)
        return max(
            (with_rate(scenario.training, factor * rate_of(scenario.training)) for factor in RATES),
            key=lambda one: comparison.validation_accuracy(
                Baseline.FEDERATED_NONPRIVATE, one.model_copy(update={"rounds": rounds})
            ),
        )


def table(rows: Sequence[Row]) -> str:
    """Return for each data set one line a way and one column an arm, in per cent, with the spread over seeds."""
    lines = []
    for name in NAMES:
        lines.append(f"{name:<24}" + "".join(f"{column:>16}" for column in COLUMNS))
        for way in WAYS:
            own = [row for row in rows if (row["data"], row["way"]) == (name, way)]
            reason = next((str(row["reason"]) for row in own if row.get("reason")), None)
            shown = [_shown([row for row in own if row["column"] == column]) for column in COLUMNS]
            lines.append(f"  {way:<22}" + (f"  {reason}" if reason else "".join(f"{one:>16}" for one in shown)))
    return "\n".join(lines)


def _shown(rows: Sequence[Row]) -> str:
    values = [100.0 * float(str(row["accuracy"])) for row in rows if row["accuracy"] is not None]
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.1f} ({len(values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main(argv: Sequence[str]) -> int:
    """Measure what was not measured yet and print the table; returns 1 where the data are not there."""
    parser = argparse.ArgumentParser(prog="make bench NAME=ways")
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)}; default: all")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with medquad/, sst2/, heart_disease/")
    parser.add_argument("--files", type=Path, default=FILES, help="folder for images and recordings")
    chosen = parser.parse_args(argv)
    if not chosen.data.is_dir():
        print(f"{chosen.data} is not here: skipped")
        return 1
    torch.set_num_threads(1)
    lay_out(chosen.data, chosen.files)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["data"], row["way"], row["column"], row["seed"]) for row in rows}
    bench = Bench(chosen.data, chosen.files, rows)
    for cell in cells(chosen.names or NAMES):
        if (cell.data, cell.way, cell.column, cell.seed) not in done:
            rows.append(bench.measure(cell))
            save(chosen.out, rows, "make bench NAME=ways", _PACKAGES, {"tuned": "non-privately, once a row"})
            print(f"{cell.data}, {cell.way}, {cell.column}, seed {cell.seed}: done", flush=True)
    print(table(rows))
    return 0
