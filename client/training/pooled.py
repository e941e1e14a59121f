"""What enters a model's head for each record: features that show how far records are from others'."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.features import Batch, Features, device_of
from common.adapters import AdaptedModel

_BATCH = 64


def head_inputs(model: AdaptedModel, features: Features) -> NDArray[np.float64]:
    """Return the head's input for each record under the present vector, (n, h), of tokens their mean. Sensitive."""
    return _rows(model, features, model.task.width, features.entering)


def logits_of(model: AdaptedModel, features: Features) -> NDArray[np.float64]:
    """Return the logits of a task that chooses among labels, (n, classes), under the present vector. Sensitive."""
    return _rows(model, features, model.task.classes, features.outputs)


@torch.no_grad()
def _rows(
    model: AdaptedModel, features: Features, width: int, of: Callable[[AdaptedModel, Batch], Tensor]
) -> NDArray[np.float64]:
    found = np.zeros((len(features), width))
    for rows in features.micro_batches(np.arange(len(features)), _BATCH):
        found[rows] = of(model, features.batch(rows, device_of(model))).double().cpu().numpy()
    return found
