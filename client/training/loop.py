"""The steps that a site takes between two sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.noise import NoiseSource
from client.training.step import private_gradient
from common import errors
from common.adapters import AdaptedModel, Vector
from common.errors import ConsiliumError
from common.privacy.plan import PrivacyPlan
from common.transfer import Training


def train_privately(
    model: AdaptedModel,
    features: Features,
    plan: PrivacyPlan,
    training: Training,
    noise: NoiseSource,
    *,
    start: Vector,
    round_index: int,
) -> Vector:
    """Train for one charge and return the update, (dimension,) float32: end minus start.

    Guarantee: the update is (epsilon, delta)-private for each unit of ``features`` as ``plan`` states for one charge;
    everything after the noised gradients is post-processing.

    start        (dimension,) the global vector
    round_index  counts from 0; the learning-rate schedule runs over the whole study

    Raises CSL-201 if the plan charges other steps than the training takes, CSL-206 if the noise fails, CSL-330 if the
    model's gradients are not per example or its weights do not move.
    """
    if training.steps_per_round != plan.steps_per_charge:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, "the plan charges other steps than the training takes")
    with model.in_round(round_index), PerExampleGradients(model, model.trainable()) as gradients:
        return take_steps(
            model,
            training,
            lambda: private_gradient(model, features, plan, gradients, noise, micro_batch=training.micro_batch),
            start=start,
            round_index=round_index,
        )


def take_steps(
    model: AdaptedModel,
    training: Training,
    gradient: Callable[[], NDArray[np.float64]],
    *,
    start: Vector,
    round_index: int,
) -> Vector:
    """Take a round's optimizer steps from ``start`` along ``gradient()`` and return end minus start.

    Called within :meth:`AdaptedModel.in_round`: what rests in the round has no gradient, and its update is zero.

    Guarantee: nothing beside ``gradient()`` depends on a record. The pull of FedProx [Li et al. 2020, eq. 2] is added
    to a gradient that is noised already, and made of public values and of weights that noised gradients moved: it is
    post-processing.

    The optimizer is made anew in each round from the model's own parameters, after the adapter is in place: one made
    earlier would hold parameters that the model no longer uses [opacus issue 820]. Its state never outlives the round.

    Raises CSL-330 where a gradient that is not zero moves nothing; a sample of no record pushes nowhere but for noise.
    """
    model.write_vector(start)
    parameters = [parameter for _, parameter in model.trainable()]
    anchor = _numbers_of(parameters)
    optimizer = make_optimizer(training, parameters)
    is_pushed = False
    for step in range(training.steps_per_round):
        progress = (round_index * training.steps_per_round + step) / (training.rounds * training.steps_per_round)
        for group in optimizer.param_groups:
            group["lr"] = training.site_rate(progress)
        found = gradient()
        if training.proximal:
            found = found + training.proximal * (_numbers_of(parameters) - anchor)
        is_pushed = is_pushed or bool(found.any())
        write_gradient(parameters, found)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    end = model.read_vector()
    if is_pushed and np.array_equal(end, start):
        raise ConsiliumError(errors.PREFLIGHT_REFUSED, "the weights did not move")
    return (end - start).astype(np.float32)


def make_optimizer(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimizer that the study names, without weight decay (it hurts here)."""
    if training.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate)
    return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum)


def write_gradient(parameters: Sequence[nn.Parameter], gradient: NDArray[np.float64]) -> None:
    """Give an optimizer's parameters their parts of one gradient, (parameters,), in their own precision."""
    whole = torch.from_numpy(gradient)
    offset = 0
    for parameter in parameters:
        part = whole[offset : offset + parameter.numel()]
        parameter.grad = part.to(device=parameter.device, dtype=parameter.dtype).view(parameter.shape)
        offset += parameter.numel()


def _numbers_of(parameters: Sequence[nn.Parameter]) -> NDArray[np.float64]:
    """Return parameters as one row, in the order of a gradient: the vector's order is another where ranks differ."""
    flat = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    return flat.double().cpu().numpy()
