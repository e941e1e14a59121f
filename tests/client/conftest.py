"""A tiny adapted encoder with records of a few patients, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from common.adapters import AdaptedModel, attach
from common.backbone import Backbone, load
from common.task_specs import TextClassification
from common.tasks import Encoded, Task, task_for
from common.transfer import AdapterSpec
from tests.encoders import WORDS, write_encoder

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA"))]
"""Where the heavy arithmetic of a step is tested."""
LABELS = ("home", "ward", "theatre")


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder: Path = tmp_path_factory.mktemp("encoder")
    return load(folder, write_encoder(folder))


@pytest.fixture(scope="session")
def task(backbone: Backbone) -> Task:
    return task_for(TextClassification(labels=LABELS, max_tokens=24), backbone)


@pytest.fixture
def model(backbone: Backbone, task: Task) -> AdaptedModel:
    """FFA-LoRA in the last two of three layers, away from its start so that no gradient is trivially zero."""
    return shaken(attach(backbone, AdapterSpec(rank=2, last_layers=2), task, "5a" * 32))


@pytest.fixture(scope="session")
def encode(task: Task) -> Callable[..., Encoded]:
    """Return a function from a number of records, and their units, to encoded records of many lengths."""

    def encoded(records: int, units: list[int] | None = None, seed: int = 0) -> Encoded:
        dice = np.random.default_rng(seed)
        texts = [" ".join(dice.choice(WORDS, size=int(dice.integers(1, 20)))) for _ in range(records)]
        labels = [LABELS[int(dice.integers(len(LABELS)))] for _ in range(records)]
        return task.encode(texts, labels, np.array(units if units is not None else range(records), dtype=np.int64))

    return encoded


def shaken(model: AdaptedModel) -> AdaptedModel:
    """Move a model off its start by known random numbers."""
    start = model.read_vector()
    model.write_vector(start + np.random.default_rng(5).normal(0, 0.3, len(start)).astype(np.float32))
    return model
