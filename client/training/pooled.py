"""What enters a model's head for each record: features that show how far records are from others'."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.features import Features, device_of
from common import errors
from common.adapters import AdaptedModel
from common.errors import ConsiliumError

_BATCH = 64


@torch.no_grad()
def head_inputs(model: AdaptedModel, features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the head's input (n, h) and output (n, outputs) for each record under the present vector. Sensitive.

    Taken where the head is called, so that they are what the model really sees, whichever part of it was computed
    before. Raises CSL-322 where the head reads more than one vector a record.
    """
    entering: list[Tensor] = []

    def seen(_head: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        entering.append(arguments[0])

    inputs: list[NDArray[np.float64]] = []
    outputs: list[NDArray[np.float64]] = []
    order: list[NDArray[np.int64]] = []
    device = device_of(model)
    handle = model.head.register_forward_pre_hook(seen)
    try:
        for rows in features.micro_batches(np.arange(len(features)), _BATCH):
            logits = features.logits(model, features.batch(rows, device))
            found = entering.pop()
            if found.shape[:-1] != (len(rows),):
                raise ConsiliumError(errors.TASK_UNSUPPORTED, "the head reads more than one vector a record")
            inputs.append(found.double().cpu().numpy())
            outputs.append(logits.double().cpu().numpy())
            order.append(rows)
    finally:
        handle.remove()
    back = np.argsort(np.concatenate(order)) if order else np.zeros(0, dtype=np.int64)
    if not len(back):
        return np.zeros((0, 0)), np.zeros((0, 0))
    return np.concatenate(inputs)[back], np.concatenate(outputs)[back]
