"""What noise costs: a million Gaussian draws, a million discrete ones, and each kind's part of a real private step.

A step is one micro-batch of MiniLM under FFA-LoRA on queries and values of every layer, rank 4, with the head; the
noise is drawn for as many coordinates as then train. Discrete noise asks for each record in a batch of its own, which
is measured too. Draws and steps alternate in one process on one thread; figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.noise import SystemNoise
from client.training.step import clipped_sum, rounded_sum
from common import backbone as backbones
from common.adapters import AdaptedModel, attach
from common.privacy.grid import NoiseGrid
from common.task_specs import TextClassification
from common.tasks import Encoded, task_for
from common.transfer import AdapterSpec
from simulations.benchmarks._rows import Row, kept, save
from simulations.scenario import KNOWN_PACKAGE

OUT = Path("runs/bench/noise.json")
SHAPES = ((16, 64), (64, 64), (64, 128))
"""Records in a step, tokens of each."""
DRAWS = 1_000_000
GRID_DEVIATION = 2.0**32
_REPEATS = 7


def model_of_demo() -> AdaptedModel:
    """Return MiniLM with the adapter that is measured."""
    loaded = backbones.load(backbones.locate_package(KNOWN_PACKAGE), backbones.MINILM)
    task = task_for(TextClassification(labels=("a", "b", "c", "d"), max_tokens=128), loaded)
    return attach(loaded, AdapterSpec(rank=4, alpha=8.0), task, "5a" * 32)


def measure(model: AdaptedModel, records: int, tokens: int, repeats: int = _REPEATS) -> Row:
    """Return one shape's row, seconds as medians over ``repeats``."""
    dice = np.random.default_rng(0)
    rows = tuple(dice.integers(1000, 20_000, tokens).astype(np.int32) for _ in range(records))
    features = Features(model, Encoded(rows, np.arange(records) % 4, np.arange(records, dtype=np.int64)))
    noise, everyone = SystemNoise(), np.arange(records)

    def step() -> None:
        with PerExampleGradients(model, model.trainable()) as gradients:
            clipped_sum(model, features, everyone, everyone, 0.5, gradients, micro_batch=records)

    def step_alone() -> None:
        with PerExampleGradients(model, model.trainable()) as gradients:
            rounded_sum(model, features, everyone, everyone, NoiseGrid.of(0.5, 2.0), gradients)

    acts: dict[str, Callable[[], object]] = {
        "step": step,
        "step_alone": step_alone,
        "gaussian": lambda: noise.gaussian(model.dimension),
        "discrete": lambda: noise.discrete_gaussian(GRID_DEVIATION, model.dimension),
        "gaussian_million": lambda: noise.gaussian(DRAWS),
        "discrete_million": lambda: noise.discrete_gaussian(GRID_DEVIATION, DRAWS),
    }
    seconds: dict[str, list[float]] = {name: [] for name in acts}
    for turn in range(repeats + 1):
        for name, act in acts.items():
            start = time.perf_counter()
            act()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "records": records,
        "tokens": tokens,
        "dimension": model.dimension,
        **{f"{name}_seconds": value for name, value in middle.items()},
        "gaussian_share": middle["gaussian"] / (middle["step"] + middle["gaussian"]),
        "discrete_share": middle["discrete"] / (middle["step_alone"] + middle["discrete"]),
        "discrete_ratio": (middle["step_alone"] + middle["discrete"]) / (middle["step"] + middle["gaussian"]),
    }


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'batch':>5} {'tokens':>6} {'d':>7} {'step ms':>8} {'normal ms/M':>11} {'discrete ms/M':>13} "
        f"{'normal %':>8} {'discrete %':>10} {'whole step':>10}"
    ]
    for row in rows:
        value = {key: float(found or 0.0) for key, found in row.items()}
        lines.append(
            f"{value['records']:>5.0f} {value['tokens']:>6.0f} {value['dimension']:>7.0f} "
            f"{1e3 * value['step_seconds']:>8.1f} {1e3 * value['gaussian_million_seconds']:>11.1f} "
            f"{1e3 * value['discrete_million_seconds']:>13.1f} {100 * value['gaussian_share']:>8.2f} "
            f"{100 * value['discrete_share']:>10.2f} {value['discrete_ratio']:>10.2f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Measure the shapes that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=noise")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["records"], row["tokens"]) for row in rows}
    missing = [shape for shape in SHAPES if shape not in done]
    model = model_of_demo() if missing else None
    for records, tokens in missing:
        assert model is not None
        rows.append(measure(model, records, tokens))
        save(chosen.out, rows, "make bench NAME=noise", ("torch", "numpy", "cryptography"))
    print(table(rows))
    return 0
