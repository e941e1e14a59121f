"""What a private step costs: ours, Opacus' hooks and Opacus' ghost mode over the same step without privacy.

The model is MiniLM under LoRA of rank 8 on all six layers, both factors and the head in training, every layer computed
in every step. The step without privacy is a forward pass, ``backward()`` and SGD on a random batch. Ours is all of it:
coins for every record of the site, gradients per example, clip, noise from the keystream, division, SGD. Opacus' steps
are those of ``PrivacyEngine`` with its own optimizer, noise and accountant; they are spared the sampling. All have
batches of one size: our coins are drawn, and then the lowest are taken.

Each contender alternates with the step without privacy, now first and now second, in one process on one thread; a
figure is the median of the ratios of neighbours, in CPU seconds. Memory is how much the peak of the resident set grows
in two steps of a child that did nothing else, ours over the one without privacy.
"""

from __future__ import annotations

import argparse
import math
import resource
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.loop import write_gradient
from client.training.noise import SystemNoise
from client.training.step import private_gradient
from common import backbone as backbones
from common.adapters import AdaptedModel, attach
from common.backbone import Backbone
from common.privacy.plan import PrivacyPlan
from common.study import Unit
from common.task_specs import TextClassification
from common.tasks import Encoded, task_for
from common.transfer import AdapterSpec
from simulations.benchmarks._rows import Row, kept, save
from simulations.scenario import KNOWN_PACKAGE

Cell = tuple[str, int, int]
Step = Callable[[], object]
OUT = Path("runs/bench/dp_step.json")
TARGETS = {"qv": ("query", "value"), "all-linear": ("query", "key", "value", "dense")}
CELLS: tuple[Cell, ...] = tuple((targets, *shape) for shape, targets in product(product((16, 64), (64, 128)), TARGETS))
"""Targets, records in a step, tokens of each."""
SITE = 20
"""Records of the site, in batches."""
CLIP_NORM, NOISE, RATE = 0.5, 1.0, 0.01
_PAIRS = {"ours": 2, "hooks": 1, "ghost": 1}
_TOKENS = 1 << 17
"""Tokens of a cell's timed steps, of which turns are made; at least three."""


class ExactBatch:
    """Fresh randomness whose coins always draw one number of units: those with the lowest coins."""

    def __init__(self, size: int) -> None:
        self._size, self._source = size, SystemNoise()

    def uniform(self, size: int) -> NDArray[np.float64]:
        """Return uniforms; of more than a batch of them, zero for those that are drawn and one for the others."""
        coins = self._source.uniform(size)
        if size <= self._size:
            return coins
        drawn = np.ones(size)
        drawn[np.argpartition(coins, self._size)[: self._size]] = 0.0
        return drawn

    def gaussian(self, size: int) -> NDArray[np.float64]:
        """Return standard normals."""
        return self._source.gaussian(size)

    def discrete_gaussian(self, sigma: float, size: int) -> NDArray[np.int64]:
        """Return discrete Gaussians."""
        return self._source.discrete_gaussian(sigma, size)


class Bench:
    """One cell: a site's records, and for each contender a model of its own over the same backbone."""

    def __init__(self, backbone: Backbone, cell: Cell, labels: int = 4) -> None:
        targets, self.batch, tokens = cell
        task = task_for(TextClassification(labels=tuple("abcdefgh"[:labels]), max_tokens=tokens), backbone)
        self.records = SITE * self.batch
        dice = np.random.default_rng(0)
        texts = dice.integers(0, len(task.anatomy.vocabulary(backbone.model)), (self.records, tokens)).astype(np.int32)
        encoded = Encoded(tuple(texts), np.arange(self.records) % labels, np.arange(self.records, dtype=np.int64))
        spec = AdapterSpec(method="lora", rank=8, targets=TARGETS[targets])
        self._new: Callable[[], AdaptedModel] = lambda: attach(backbone, spec, task, "5a" * 32)
        self._features = Features(self._new(), encoded, cache=False)
        self._dice = dice

    def steps(self) -> dict[str, Step]:
        """Return each contender's step, the one without privacy first."""
        return {
            "plain": self.plain(),
            "ours": self.ours(),
            "hooks": self.opacus("hooks"),
            "ghost": self.opacus("ghost"),
        }

    def plain(self) -> Step:
        """Return the step without privacy."""
        model = self._new()
        optimizer = _sgd(model)

        def step() -> None:
            self._features.losses(model, self._features.batch(self._draw())).mean().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def ours(self) -> Step:
        """Return our whole step; the model stays watched, as it does for a round."""
        model = self._new()
        optimizer, noise = _sgd(model), ExactBatch(self.batch)
        parameters = [parameter for _, parameter in model.trainable()]
        gradients = PerExampleGradients(model, model.trainable()).__enter__()
        plan = PrivacyPlan(
            unit=Unit.RECORD,
            max_records_per_unit=1,
            sampling_rate=1.0 / SITE,
            noise_multiplier=NOISE,
            clip_norm=CLIP_NORM,
            steps_per_charge=1,
            max_charges=1,
            evaluation_noise_multiplier=1.0,
            evaluation_releases=1,
            delta=1e-5,
            population=self.records,
        )

        def step() -> None:
            found = private_gradient(model, self._features, plan, gradients, noise, micro_batch=self.batch)
            write_gradient(parameters, found)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def opacus(self, mode: str) -> Step:
        """Return Opacus' step in one of its modes."""
        model = self._new()
        for module in model.modules():
            # As in ours: what trains is in train mode, and no dropout.
            module.training = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        model.training = True
        everyone = self._features.batch(np.arange(self.records))
        made = PrivacyEngine(accountant="rdp").make_private(
            module=model,
            optimizer=_sgd(model),
            criterion=nn.CrossEntropyLoss(),
            data_loader=DataLoader(TensorDataset(everyone.targets), batch_size=self.batch),
            noise_multiplier=NOISE,
            max_grad_norm=CLIP_NORM,
            poisson_sampling=False,
            grad_sample_mode=mode,
        )
        private, optimizer = made[0], made[1]
        criterion = made[2] if mode == "ghost" else nn.CrossEntropyLoss()

        def step() -> None:
            batch = self._features.batch(self._draw())
            criterion(private(batch.inputs, batch.mask), batch.targets).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    def _draw(self) -> NDArray[np.int64]:
        return self._dice.choice(self.records, self.batch, replace=False)


def measure(backbone: Backbone, cell: Cell, turns: int, memory: float) -> Row:
    """Return one cell's row: CPU time over that of the step without privacy, and our memory over its memory."""
    steps = Bench(backbone, cell).steps()
    for step in steps.values():
        step()
    ratios: dict[str, list[float]] = {name: [] for name in _PAIRS}
    for turn, (name, pairs) in product(range(turns), _PAIRS.items()):
        for pair in range(pairs):
            order = ("plain", name) if (turn + pair) % 2 else (name, "plain")
            seconds = {which: _seconds(steps[which]) for which in order}
            ratios[name].append(seconds[name] / seconds["plain"])
    targets, batch, tokens = cell
    medians = {name: statistics.median(found) for name, found in ratios.items()}
    return {"targets": targets, "batch": batch, "tokens": tokens, **medians, "memory_ours": memory}


def memory_over_plain(backbone: Backbone, cell: Cell) -> float:
    """Return how much two of our steps add to a process' peak memory, over what two steps without privacy add.

    To be called before this process has taken a step: its children start from its memory.
    """
    grown = []
    for name in ("ours", "plain"):
        with get_context("fork").Pool(1) as pool:
            grown.append(pool.apply(_growth, (backbone, cell, name)))
    return grown[0] / grown[1]


def _growth(backbone: Backbone, cell: Cell, name: str) -> int:
    bench = Bench(backbone, cell)
    step = bench.ours() if name == "ours" else bench.plain()
    before = _peak()
    step()
    step()
    return _peak() - before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _seconds(step: Step) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def _sgd(model: AdaptedModel) -> torch.optim.SGD:
    return torch.optim.SGD([parameter for _, parameter in model.trainable()], lr=RATE)


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'targets':<10} {'batch':>5} {'tokens':>6} {'ours':>6} {'hooks':>6} {'ghost':>6} {'memory':>6}"]
    for row in rows:
        ratios = " ".join(f"{float(row[name] or 0.0):>6.3f}" for name in ("ours", "hooks", "ghost", "memory_ours"))
        lines.append(f"{row['targets']:<10} {row['batch']:>5} {row['tokens']:>6} {ratios}")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Measure the cells that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=dp_step")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    for message in ("Secure RNG turned off", "Full backward hook is firing"):
        # Opacus' own, once a cell: its noise is not ours to judge here, and its hooks are meant to fire.
        warnings.filterwarnings("ignore", message=message, category=UserWarning)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["targets"], row["batch"], row["tokens"]) for row in rows}
    missing = [cell for cell in CELLS if cell not in done]
    if missing:
        backbone = backbones.load(backbones.locate_package(KNOWN_PACKAGE), backbones.MINILM)
        memory = {cell: memory_over_plain(backbone, cell) for cell in missing}
        for cell in missing:
            turns = max(3, math.ceil(_TOKENS / (9 * cell[1] * cell[2])))
            rows.append(measure(backbone, cell, turns, memory[cell]))
            save(chosen.out, rows, "make bench NAME=dp_step", ("torch", "opacus", "peft", "transformers"))
    print(table(rows))
    return 0
