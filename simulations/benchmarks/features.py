"""What it costs to keep features on disk, encrypted, and to keep them nowhere: a private step over each place.

MiniLM, 64 of 2,000 records of 64 tokens a step: FFA-LoRA in the last two layers, whose records are 48 KiB each in
float16, and the head alone, whose records are 1.5 KiB. Steps from memory, from disk and without anything kept alternate
on the same records in one process on one thread; figures are medians. A file that was found is verified when it is
opened, which is compared with computing it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features
from client.training.folder import KEY_BYTES, SealedFolder
from client.training.gradients import PerExampleGradients
from client.training.step import clipped_sum
from client.training.store import FeatureStore
from common import backbone as backbones
from common.adapters import AdaptedModel, attach
from common.backbone import Backbone
from common.task_specs import TextClassification
from common.tasks import Encoded, task_for
from common.transfer import AdapterSpec
from simulations.benchmarks._rows import Row, kept, save
from simulations.scenario import KNOWN_PACKAGE

OUT = Path("runs/bench/features.json")
ADAPTERS = {"ffa-lora": AdapterSpec(rank=8, last_layers=2), "head-only": AdapterSpec(method="head-only")}
RECORDS, BATCH, TOKENS = 2_000, 64, 64
_REPEATS = 7


def measure(
    backbone: Backbone,
    method: str,
    records: int = RECORDS,
    batch: int = BATCH,
    tokens: int = TOKENS,
    repeats: int = _REPEATS,
) -> Row:
    """Return one adapter's row: seconds of a step as medians over ``repeats``, and of computing and of opening."""
    task = task_for(TextClassification(labels=("a", "b", "c", "d"), max_tokens=tokens), backbone)
    model = attach(backbone, ADAPTERS[method], task, "5a" * 32)
    dice = np.random.default_rng(0)
    vocabulary = len(task.anatomy.vocabulary(backbone.model))
    rows = tuple(dice.integers(vocabulary // 2, vocabulary, tokens).astype(np.int32) for _ in range(records))
    encoded = Encoded(rows, np.arange(records) % 4, np.arange(records, dtype=np.int64))
    with tempfile.TemporaryDirectory(prefix="consilium-bench-") as folder:
        sealed = SealedFolder(Path(folder), os.urandom(KEY_BYTES), 1 << 40)
        memory, computing = _timed(lambda: Features(model, encoded))
        Features(model, encoded, store=FeatureStore(memory_bytes=0, folder=sealed))
        disk, opening = _timed(lambda: Features(model, encoded, store=FeatureStore(memory_bytes=0, folder=sealed)))
        places = {
            "memory": memory,
            "disk": disk,
            "nowhere": Features(model, encoded, store=FeatureStore(memory_bytes=0)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in places}
        for turn in range(repeats + 1):
            chosen = dice.choice(records, batch, replace=False)
            for name, features in places.items():
                start = time.perf_counter()
                _step(model, features, chosen)
                if turn:
                    seconds[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(found) for name, found in seconds.items()}
    return {
        "adapter": method,
        "records": records,
        "tokens": tokens,
        "batch": batch,
        "bytes": memory.cache_bytes,
        "computing_seconds": computing,
        "opening_seconds": opening,
        **{f"{name}_seconds": value for name, value in middle.items()},
        "disk_ratio": middle["disk"] / middle["memory"],
        "nowhere_ratio": middle["nowhere"] / middle["memory"],
    }


def _step(model: AdaptedModel, features: Features, rows: NDArray[np.int64]) -> None:
    with PerExampleGradients(model, model.trainable()) as gradients:
        clipped_sum(model, features, rows, np.arange(len(features)), 0.5, gradients, micro_batch=len(rows))


def _timed(act: Callable[[], Features]) -> tuple[Features, float]:
    start = time.perf_counter()
    made = act()
    return made, time.perf_counter() - start


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [
        f"{'adapter':<10} {'MB':>6} {'compute s':>9} {'open s':>7} "
        f"{'memory ms':>9} {'disk ms':>8} {'nowhere ms':>10} {'disk x':>7} {'nowhere x':>9}"
    ]
    for row in rows:
        value = {key: float(found or 0.0) for key, found in row.items() if key != "adapter"}
        milliseconds = {place: 1e3 * value[f"{place}_seconds"] for place in ("memory", "disk", "nowhere")}
        lines.append(
            f"{row['adapter']!s:<10} {value['bytes'] / 1e6:>6.1f} {value['computing_seconds']:>9.2f} "
            f"{value['opening_seconds']:>7.2f} {milliseconds['memory']:>9.1f} {milliseconds['disk']:>8.1f} "
            f"{milliseconds['nowhere']:>10.1f} {value['disk_ratio']:>7.2f} {value['nowhere_ratio']:>9.2f}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Measure the adapters that are not there yet, print the table."""
    parser = argparse.ArgumentParser(prog="make bench NAME=features")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    torch.set_num_threads(1)
    rows = kept(chosen.out, fresh=chosen.fresh)
    missing = [method for method in ADAPTERS if method not in {row["adapter"] for row in rows}]
    if missing:
        backbone = backbones.load(backbones.locate_package(KNOWN_PACKAGE), backbones.MINILM)
        for method in missing:
            rows.append(measure(backbone, method))
            save(chosen.out, rows, "make bench NAME=features", ("torch", "numpy", "cryptography"))
    print(table(rows))
    return 0
