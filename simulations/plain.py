"""Training without clipping and without noise, for baselines: NOT PRIVATE, and in the simulator only (RULES 10)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from client.training.features import Features, device_of
from client.training.loop import take_steps
from client.training.noise import NoiseSource
from client.training.sampler import poisson_sample
from common.adapters import AdaptedModel, Vector
from common.privacy.sensitive import PrivateCount
from common.transfer import Training


def train_plainly(
    model: AdaptedModel,
    features: Features,
    training: Training,
    noise: NoiseSource,
    *,
    start: Vector,
    round_index: int,
    sampling_rate: float,
) -> Vector:
    """Train for one round as a site does, but on plain gradients; return the update, (dimension,) float32.

    Records are Poisson-sampled at ``sampling_rate`` from ``noise``, and their summed gradient is divided by the batch
    that is expected: the same steps as in the study, so that only privacy differs.
    """
    divisor = max(1.0, sampling_rate * len(features))

    def gradient() -> NDArray[np.float64]:
        rows = poisson_sample(PrivateCount(len(features)), sampling_rate, noise)
        return plain_sum(model, features, rows, micro_batch=training.micro_batch) / divisor

    with model.in_round(round_index):
        return take_steps(model, training, gradient, start=start, round_index=round_index)


def plain_sum(
    model: AdaptedModel, features: Features, rows: NDArray[np.int64], *, micro_batch: int
) -> NDArray[np.float64]:
    """Return the sum of the rows' gradients, (parameters,) float64."""
    device = device_of(model)
    parameters = [parameter for _, parameter in model.trainable()]
    total = torch.zeros(model.active_dimension, dtype=torch.float64)
    for part in features.micro_batches(rows, micro_batch):
        losses = features.losses(model, features.batch(part, device))
        found = torch.autograd.grad(losses.sum(), parameters)
        total += torch.cat([gradient.reshape(-1) for gradient in found]).double().cpu()
    summed: NDArray[np.float64] = total.numpy()
    return summed
