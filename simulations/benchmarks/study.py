"""What the cached prefix and buckets of like length save, and what the last two layers give away: MedQuAD, in private.

First the same trainable layers four ways: with and without the cache, with records of like length together or in the
order in which they were drawn, padded to the longest of a micro-batch either way. Rounds of all sites alternate between
the four; a whole study is its prefix, computed once, and its rounds. Then a study of the last two layers beside one of
all six: seconds from the encoded records to the trained vector, and exact accuracy on all test records.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray

from client.data import Examples
from client.training.features import Features
from common import backbone as backbones
from common.adapters import AdaptedModel, attach
from common.identity import SiteId
from common.privacy.bounds import band
from common.privacy.plan import PrivacyPlan
from common.tasks import Encoded, task_for
from server.aggregation import server_optimizer
from simulations import scenario as scenarios
from simulations.arms import Learner, judge_all, mean_update
from simulations.authoring import privacy_of
from simulations.benchmarks._rows import Row, kept, save
from simulations.cohort import load_sites
from simulations.engines import EntropySource
from simulations.hosting import noise_of
from simulations.preparation import locate_backbone
from simulations.scenario import Scenario

OUT = Path("runs/bench/study.json")
DATA = Path("../shared/data")
TURNS = 3
"""Rounds of each way, one after the other in turn; their median counts."""
WAYS = {"cache and buckets": (True, True), "cache": (True, False), "buckets": (False, True), "neither": (False, False)}
"""Name: whether the prefix is cached, whether records of like length are together."""
LAYERS = {"last 2 layers": 2, "all layers": 0}
_STREAM = "5" * 64


class Drawn(Features):
    """Features whose micro-batches keep the order in which records were drawn, as a plain loader's do."""

    def micro_batches(self, rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
        """Divide rows as they come."""
        return (rows[start : start + size] for start in range(0, len(rows), size))


@dataclass(frozen=True, slots=True)
class Bench:
    """A scenario with its sites' records, encoded once.

    training, testing  by site
    """

    scenario: Scenario
    training: Mapping[SiteId, Encoded]
    testing: Mapping[SiteId, Encoded]
    units: Mapping[SiteId, int]

    @classmethod
    def load(cls, scenario: Scenario, folder: Path | None) -> Bench:
        """Read and encode a scenario's records."""
        sites = load_sites(scenario, folder)
        model = attached(scenario)

        def encoded(examples: Examples) -> Encoded:
            return model.task.encode(examples.contents, examples.labels, examples.units)

        return cls(
            scenario,
            {site.site: encoded(site.train) for site in sites},
            {site.site: encoded(site.test) for site in sites},
            {site.site: len(site.train) for site in sites},
        )


def attached(scenario: Scenario) -> AdaptedModel:
    """Return a scenario's backbone with its adapter."""
    folder, manifest = locate_backbone(scenario.backbone)
    backbone = backbones.load(folder, manifest, device="cpu")
    return attach(backbone, scenario.adapter, task_for(scenario.task, backbone), _STREAM)


class Study:
    """A private study of all sites over one model, round by round, without messages: the rounds are what is timed."""

    def __init__(self, bench: Bench, *, layers: int, cache: bool = True, buckets: bool = True) -> None:
        scenario = bench.scenario
        adapter = scenario.adapter.model_copy(update={"last_layers": layers})
        scenario = scenario.model_copy(update={"adapter": adapter})
        self._training, self._testing = scenario.training, bench.testing
        self._privacy = privacy_of(scenario)
        self._model = attached(scenario)
        self._noise = noise_of(EntropySource(None), "bench")
        self._optimizer = server_optimizer(self._training)
        self.vector = self._model.read_vector()
        kind = Features if buckets else Drawn
        started = perf_counter()
        self.features = [kind(self._model, encoded, cache=cache) for encoded in bench.training.values()]
        self.seconds_prefix = perf_counter() - started
        bands = [band(bench.units[site]) for site in bench.training]
        self._learners = [
            Learner(own, size, PrivacyPlan.of(self._privacy, self._training, scenario.evaluation, population=size))
            for own, size in zip(self.features, bands, strict=True)
        ]
        self._round = 0

    def round(self) -> float:
        """Train all sites once and take the server's step; return the seconds that it took."""
        started = perf_counter()
        mean = mean_update(
            self._model,
            self._learners,
            self._training,
            self.vector,
            self._round,
            sampling_rate=self._privacy.sampling_rate,
            noise=self._noise,
        )
        self.vector = self._optimizer.step(self.vector, mean, self._round)
        self._round = (self._round + 1) % self._training.rounds
        return perf_counter() - started

    def accuracy(self) -> float:
        """Return the exact accuracy on all test records."""
        tested = (Features(self._model, encoded) for encoded in self._testing.values())
        return judge_all(self._model, self.vector, tested).accuracy


def four_ways(bench: Bench) -> list[Row]:
    """Return one row a way: seconds of prefix, round and whole study, and the latter over that with neither."""
    studies = {
        name: Study(bench, layers=LAYERS["last 2 layers"], cache=cache, buckets=buckets)
        for name, (cache, buckets) in WAYS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in studies}
    for _ in range(TURNS):
        for name, study in studies.items():
            seconds[name].append(study.round())
    rounds = bench.scenario.training.rounds
    whole = {
        name: study.seconds_prefix * WAYS[name][0] + rounds * statistics.median(seconds[name])
        for name, study in studies.items()
    }
    return [
        {
            "part": "ways",
            "name": name,
            "seconds_prefix": study.seconds_prefix * WAYS[name][0],
            "seconds_round": statistics.median(seconds[name]),
            "seconds_study": whole[name],
            "times_faster": whole["neither"] / whole[name],
            "accuracy": None,
        }
        for name, study in studies.items()
    ]


def whole_study(bench: Bench, name: str) -> Row:
    """Train a whole study of the layers named and return its row."""
    started = perf_counter()
    study = Study(bench, layers=LAYERS[name])
    rounds = [study.round() for _ in range(bench.scenario.training.rounds)]
    seconds = perf_counter() - started
    return {
        "part": "layers",
        "name": name,
        "seconds_prefix": study.seconds_prefix,
        "seconds_round": statistics.median(rounds),
        "seconds_study": seconds,
        "times_faster": None,
        "accuracy": study.accuracy(),
    }


def compared(rows: Sequence[Row]) -> list[Row]:
    """Return the rows with what a whole study of the last layers saves beside one of all layers."""
    whole = {row["name"]: float(str(row["seconds_study"])) for row in rows if row["part"] == "layers"}
    slowest = whole.get("all layers")
    return [
        {**row, "times_faster": slowest / whole[row["name"]]} if row["part"] == "layers" and slowest else row
        for row in rows
    ]


def table(rows: Sequence[Row]) -> str:
    """Return one line a row."""
    lines = [f"{'':<20}{'prefix, s':>10}{'round, s':>10}{'study, s':>10}{'times':>8}{'accuracy':>10}"]
    for row in rows:
        accuracy = "-" if row["accuracy"] is None else f"{100.0 * float(str(row['accuracy'])):.1f} %"
        lines.append(
            f"{row['name']:<20}"
            + "".join(f"{float(str(row[key])):>10.1f}" for key in ("seconds_prefix", "seconds_round", "seconds_study"))
            + f"{float(str(row['times_faster'] or 1.0)):>8.1f}{accuracy:>10}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Measure what was not measured yet and print the table; returns 1 where the data are not there."""
    parser = argparse.ArgumentParser(prog="make bench NAME=study")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with medquad/")
    chosen = parser.parse_args(argv)
    if not chosen.data.is_dir():
        print(f"{chosen.data} is not here: skipped")
        return 1
    torch.set_num_threads(1)
    rows = kept(chosen.out, fresh=chosen.fresh)
    bench = Bench.load(scenarios.load(scenarios.locate("medquad")), chosen.data)
    parts = {"ways": lambda: four_ways(bench)} | {
        name: (lambda name=name: [whole_study(bench, name)]) for name in LAYERS
    }
    done = {str(row["part"] if row["part"] == "ways" else row["name"]) for row in rows}
    for name, measure in parts.items():
        if name not in done:
            rows = compared([*rows, *measure()])
            save(chosen.out, rows, "make bench NAME=study", ("torch", "opacus", "transformers"))
            print(f"{name}: done", flush=True)
    print(table(rows))
    return 0
