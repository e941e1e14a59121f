"""A study's start and what it released on notes that are labelled as most sites label them."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from common.adapters import AdaptedModel, Vector, attach
from common.backbone import Backbone
from common.tasks import Task
from common.transfer import AdapterSpec
from tests.client.verdict.sites import learned, notes


@dataclass(frozen=True)
class Learned:
    """A model as a study starts it, its start, and the vector that the study released."""

    task: Task
    model: AdaptedModel
    start: Vector
    shared: Vector


@pytest.fixture(scope="package")
def study_model(backbone: Backbone, task: Task) -> Learned:
    model = attach(backbone, AdapterSpec(rank=2, last_layers=1), task, "5a" * 32)
    start = model.read_vector()
    return Learned(task, model, start, learned(model, notes(task, model, 150, seed=1), start))
