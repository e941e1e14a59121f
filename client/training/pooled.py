"""What enters a model's head for each record: features that show how far records are from others'."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features, device_of
from common.adapters import AdaptedModel

_BATCH = 64


@torch.no_grad()
def head_inputs(model: AdaptedModel, features: Features) -> NDArray[np.float64]:
    """Return the head's input for each record under the present vector, (n, h), of tokens their mean. Sensitive."""
    found = np.zeros((len(features), model.task.width))
    for rows in features.micro_batches(np.arange(len(features)), _BATCH):
        found[rows] = features.entering(model, features.batch(rows, device_of(model))).double().cpu().numpy()
    return found


@torch.no_grad()
def logits_of(model: AdaptedModel, features: Features) -> NDArray[np.float64]:
    """Return the logits of a task that chooses among labels, (n, classes), under the present vector. Sensitive."""
    found = np.zeros((len(features), model.task.classes))
    for rows in features.micro_batches(np.arange(len(features)), _BATCH):
        found[rows] = features.outputs(model, features.batch(rows, device_of(model))).double().cpu().numpy()
    return found
