"""Training without clipping and without noise. NOT PRIVATE: what is fitted so never leaves the site.

It serves the simulator's baselines (RULES 10) and what a site fits for itself after the last shared round (RULES 11).
A contract of the import linter keeps every module of the shared path from reaching this one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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

_BATCH = 64
"""Records that a step of a fit sees on average; all of them where there are fewer."""
_LONGEST = 1.0
"""L2 norm at which a fit cuts the mean gradient, so that no learning rate makes it run away."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a site fits a vector to its own records, for its own use.

    steps          of SGD
    learning_rate  of the first step; it falls along half a cosine. 0 fits nothing
    strength       pull towards the start: lambda of Ditto [Li et al. 2021, arXiv 2012.04221, algorithm 1]
    head_alone     leaves the adapter as it is
    """

    steps: int
    learning_rate: float
    strength: float = 0.0
    head_alone: bool = False


def fit_plainly(
    model: AdaptedModel, features: Features, fit: Fit, noise: NoiseSource, *, start: Vector, micro_batch: int
) -> Vector:
    """Return what a fit makes of ``start``, (dimension,) float32. Not private: see the module docstring.

    noise  draws which records a step sees, and nothing else

    The pull is the exact proximal step, which no strength makes unstable: without bound it stays at the start. Records
    without a finite loss at the start are left out (RULES 13).
    """
    model.write_vector(start)
    rows = _readable(model, features, micro_batch)
    if not len(rows) or fit.learning_rate == 0.0:
        return start.copy()
    rate = min(1.0, _BATCH / len(rows))
    anchor = start.astype(np.float64)
    vector = anchor.copy()
    for step in range(fit.steps):
        learning_rate = fit.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / fit.steps))
        drawn = rows[poisson_sample(PrivateCount(len(rows)), rate, noise)]
        gradient = model.as_vector(
            plain_sum(model, features, drawn, micro_batch=micro_batch, head_alone=fit.head_alone)
        )
        gradient /= rate * len(rows)
        gradient *= _LONGEST / max(_LONGEST, float(np.linalg.norm(gradient)))
        pull = learning_rate * fit.strength
        vector = (vector - learning_rate * gradient + pull * anchor) / (1.0 + pull)
        model.write_vector(vector.astype(np.float32))
    return model.read_vector()


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
    model: AdaptedModel,
    features: Features,
    rows: NDArray[np.int64],
    *,
    micro_batch: int,
    head_alone: bool = False,
) -> NDArray[np.float64]:
    """Return the sum of the rows' gradients by all that trains now, (active dimension,) float64, in the model's order.

    Of the head alone, zeros before the head's.
    """
    device = device_of(model)
    head = {id(parameter) for parameter in model.head.parameters()}
    parameters = [parameter for _, parameter in model.trainable() if not head_alone or id(parameter) in head]
    total = torch.zeros(model.active_dimension, dtype=torch.float64)
    # The head's are the model's last.
    own = total[model.active_dimension - sum(parameter.numel() for parameter in parameters) :]
    for part in features.micro_batches(rows, micro_batch):
        losses = features.losses(model, features.batch(part, device))
        found = torch.autograd.grad(losses.sum(), parameters)
        own += torch.cat([gradient.reshape(-1) for gradient in found]).double().cpu()
    summed: NDArray[np.float64] = total.numpy()
    return summed


@torch.no_grad()
def _readable(model: AdaptedModel, features: Features, micro_batch: int) -> NDArray[np.int64]:
    """Return the rows whose loss under the present vector is finite, in rising order."""
    finite = np.zeros(len(features), dtype=np.bool_)
    device = device_of(model)
    for part in features.micro_batches(np.arange(len(features)), micro_batch):
        finite[part] = torch.isfinite(features.losses(model, features.batch(part, device))).cpu().numpy()
    return np.flatnonzero(finite)
