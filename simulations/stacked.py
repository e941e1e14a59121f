"""Several sites' private training in one forward pass: the frozen backbone is shared, each example has its own adapter.

Every example of a batch gets a copy of its site's trainable weights; the gradient of the summed losses with respect to
the copies is then each example's own gradient, and no hook is needed. Sampling, clipping and noise are those of
:mod:`client.training`, site by site and each from the site's own source, so that only the arithmetic is shared. What a
site's update depends on does not change: the other sites of a batch move it in the last bits at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from client.training.bucketing import divide
from client.training.features import Features, device_of
from client.training.loop import make_optimizer
from client.training.noise import NoiseSource
from client.training.step import clip_by_unit, normals, privacy_units, sampled
from common import errors
from common.adapters import AdaptedModel, Vector
from common.errors import ConsiliumError
from common.privacy.plan import PrivacyPlan
from common.study import TrainingNoise
from common.transfer import Training

Rows = NDArray[np.int64]
Found = Vector | ConsiliumError
"""A site's update, or why it has none."""

_GROUP_VALUES = 1 << 22
"""Gradient values held together, 16 MB: what is clipped next is still in the cache."""
_BATCH = 64
"""Most examples of one pass through the layers."""


@dataclass(frozen=True, slots=True)
class Charged:
    """A site that may train now: its records, its plan and its source of noise, where it starts and in which round.

    Made by :class:`simulations.hosting.StackedWorkload` when the site asks, which it does once it has charged.
    """

    features: Features
    plan: PrivacyPlan
    noise: NoiseSource
    start: Vector
    round_index: int


class Stack:
    """A model that can hold one copy of what trains for each part of a batch.

    Raises CSL-520 naming a trainable parameter outside the linear layers: there is no batched product for it.
    """

    def __init__(self, model: AdaptedModel) -> None:
        self.model = model
        self._layers = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
        self._shapes = {name: parameter.shape for name, parameter in model.trainable()}
        for name in self._shapes:
            if name.rpartition(".")[0] not in self._layers:
                raise ConsiliumError(errors.ENGINE_UNSUITABLE, f"{name} is not in a linear layer")

    def gradients(self, copies: Tensor, losses: Callable[[], Tensor]) -> Tensor:
        """Return the gradient of the summed losses by each copy, (copies, dimension) float32.

        copies  (copies, dimension) float32, each a vector; copy i serves the i-th of equal parts of the batch
        losses  runs the model on the batch and returns a loss for each example
        """
        leaves = {}
        offset = 0
        for name, shape in self._shapes.items():
            part = copies[:, offset : offset + shape.numel()].detach().reshape(len(copies), *shape)
            leaves[name] = part.requires_grad_()
            offset += shape.numel()
        with self._holding(leaves):
            found = torch.autograd.grad(losses().sum(), list(leaves.values()))
        return torch.cat([gradient.reshape(len(copies), -1) for gradient in found], dim=1)

    @contextmanager
    def _holding(self, leaves: dict[str, Tensor]) -> Iterator[None]:
        """Let every linear layer that trains use the copies; the layers are as before on every exit."""
        held = []
        try:
            for name, layer in self._layers.items():
                weight, bias = leaves.get(f"{name}.weight"), leaves.get(f"{name}.bias")
                if weight is not None or bias is not None:
                    layer.forward = partial(_linear, layer, weight, bias)  # type: ignore[method-assign]
                    held.append(layer)
            yield
        finally:
            for layer in held:
                del layer.forward


class StackedTraining:
    """Trains some sites of one study together.

    training  the study's; every site takes the same steps

    Raises CSL-520 for a model that cannot be stacked, and for discrete noise, which asks that every record is computed
    by itself.
    """

    def __init__(self, model: AdaptedModel, training: Training, noise: TrainingNoise) -> None:
        if noise is TrainingNoise.DISCRETE:
            raise ConsiliumError(errors.ENGINE_UNSUITABLE, "discrete noise needs records that are computed one by one")
        if len(model.phases()) > 1 or model.spec.site_ranks:
            what = "sites of ranks of their own" if model.spec.site_ranks else "rounds that train different weights"
            raise ConsiliumError(errors.ENGINE_UNSUITABLE, f"{what} are not trained together: choose inline")
        self._stack, self._training = Stack(model), training
        self._joined: tuple[tuple[Features, ...], Features] | None = None

    def __call__(self, sites: Sequence[Charged]) -> list[Found]:
        """Train for one charge of each site; returns each one's update as :func:`train_privately` would, or its error.

        Guarantee: that of :func:`client.training.loop.train_privately`, for each site by itself. Agrees with it to
        float32 arithmetic in another order. A site whose source of noise fails, or that charges other steps than the
        study's, has an error and disturbs no other.
        """
        found: dict[int, Found] = {}
        for round_index in sorted({site.round_index for site in sites}):
            places = [place for place, site in enumerate(sites) if site.round_index == round_index]
            updates = self._train([sites[place] for place in places], round_index)
            found.update(zip(places, updates, strict=True))
        return [found[place] for place in range(len(sites))]

    def _train(self, sites: Sequence[Charged], round_index: int) -> list[Found]:
        training, device = self._training, device_of(self._stack.model)
        failed: dict[int, ConsiliumError] = {
            place: ConsiliumError(errors.PRIVACY_PARAMETER, "the plan charges other steps than the training takes")
            for place, site in enumerate(sites)
            if site.plan.steps_per_charge != training.steps_per_round
        }
        starts = torch.from_numpy(np.stack([site.start for site in sites])).to(device)
        weights = nn.Parameter(starts.clone())
        optimizer = make_optimizer(training, [weights])
        joined = self._join(tuple(site.features for site in sites))
        for step in range(training.steps_per_round):
            progress = (round_index * training.steps_per_round + step) / (training.rounds * training.steps_per_round)
            for group in optimizer.param_groups:
                group["lr"] = training.site_rate(progress)
            found = self._noised(sites, joined, weights.detach(), failed)
            if training.proximal:
                # After the noise, as in the loop.
                found = found + training.proximal * (weights.detach().double() - starts)
            weights.grad = found.to(weights)
            optimizer.step()
        ends = weights.detach()
        return [failed.get(place) or _update(ends[place].cpu().numpy(), site.start) for place, site in enumerate(sites)]

    def _noised(
        self, sites: Sequence[Charged], joined: Features, weights: Tensor, failed: dict[int, ConsiliumError]
    ) -> Tensor:
        """Return each site's noised mean gradient, (sites, dimension) float64; see :func:`private_gradient`."""
        firsts = np.cumsum([0] + [len(site.features) for site in sites])
        drawn = [
            np.empty(0, dtype=np.int64)
            if place in failed
            else sampled(privacy_units(site.features, site.plan), site.plan, site.noise) + first
            for place, (site, first) in enumerate(zip(sites, firsts, strict=False))
        ]
        owners = np.repeat(np.arange(len(sites)), [len(rows) for rows in drawn])
        units = privacy_units(joined, sites[0].plan)
        total = torch.zeros(weights.shape, dtype=torch.float64, device=weights.device)
        for rows, places in _groups(np.concatenate(drawn), owners, units, weights.shape[1]):
            gradients = self._rows(joined, rows, places, weights)
            for place in np.unique(places):
                # The rows of one site lie together.
                first, last = np.searchsorted(places, (place, place + 1))
                theirs = torch.from_numpy(units[rows[first:last]])
                total[place] += clip_by_unit(gradients[first:last], theirs, sites[place].plan.clip_norm)
        for place, site in enumerate(sites):
            if place in failed:
                continue
            try:
                shock = normals(site.noise, weights.shape[1])
            except ConsiliumError as error:
                failed[place] = error
                continue
            noise = torch.from_numpy(site.plan.noise_deviation * shock).to(total.device)
            total[place] = (total[place] + noise) / site.plan.divisor
        return total

    def _rows(self, joined: Features, rows: Rows, places: Rows, weights: Tensor) -> Tensor:
        """Return each row's own gradient, (rows, dimension) float32, under the weights of its site."""
        found = torch.empty(len(rows), weights.shape[1], device=weights.device)
        for part in self._batches(joined, rows):
            batch = joined.batch(rows[part], weights.device)
            copies = weights[torch.from_numpy(places[part]).to(weights.device)]
            losses = partial(joined.losses, self._stack.model, batch)
            found[torch.from_numpy(part).to(weights.device)] = self._stack.gradients(copies, losses)
        return found

    def _batches(self, joined: Features, rows: Rows) -> Iterator[Rows]:
        """Divide places among the rows into batches of records of similar length."""
        model = self._stack.model
        if joined.is_cached and model.prefix_layers == model.backbone.layers and model.task.pools:
            # One pooled row a record, so small that all go through the head at once.
            yield np.arange(len(rows))
            return
        # Of records of one shape, images and recordings, every length is one.
        order = np.argsort(joined.lengths[rows], kind="stable")
        start = 0
        for end in divide(joined.lengths[rows[order]], _BATCH):
            yield order[start:end]
            start = end

    def _join(self, parts: tuple[Features, ...]) -> Features:
        """Return the sites' records side by side; the same sites meet again in the next round."""
        known = self._joined
        if (
            known is None
            or len(known[0]) != len(parts)
            or any(a is not b for a, b in zip(known[0], parts, strict=True))
        ):
            known = self._joined = (parts, Features.joined(parts))
        return known[1]


def _groups(rows: Rows, owners: Rows, units: Rows, dimension: int) -> Iterator[tuple[Rows, Rows]]:
    """Divide the rows of one step into groups of whole units; yields rows and the place of the site of each, rising.

    rows    (rows,) records that take part, site by site
    owners  (rows,) the place of each row's site
    units   (records,) the unit of every record; no two sites share a number
    """
    if len(rows) == 0:
        return
    order = np.lexsort((units[rows], owners))
    rows, owners = rows[order], owners[order]
    firsts = np.flatnonzero(np.r_[True, np.diff(units[rows]) != 0])
    most = max(1, _GROUP_VALUES // max(1, dimension))
    start = 0
    for first, end in zip(firsts, np.r_[firsts[1:], len(rows)], strict=True):
        if end - start > most and first > start:
            yield rows[start:first], owners[start:first]
            start = int(first)
    yield rows[start:], owners[start:]


def _update(end: Vector, start: Vector) -> Found:
    """Return end minus start; CSL-330 for weights that did not move, as in the loop."""
    if np.array_equal(end, start):
        return ConsiliumError(errors.PREFLIGHT_REFUSED, "the weights did not move")
    return (end - start).astype(np.float32)


def _linear(layer: nn.Linear, weight: Tensor | None, bias: Tensor | None, inputs: Tensor) -> Tensor:
    """Return a linear layer's output where each equal part of (n, ..., in) inputs has a weight or bias of its own.

    weight, bias  (copies, out, in) and (copies, out); the layer's own where None
    """
    copies = len(weight if weight is not None else bias if bias is not None else inputs)
    flat = inputs.reshape(copies, -1, inputs.shape[-1])
    outputs = torch.matmul(flat, (layer.weight if weight is None else weight).mT)
    if bias is not None:
        outputs = outputs + bias[:, None, :]
    elif layer.bias is not None:
        outputs = outputs + layer.bias
    return outputs.reshape(*inputs.shape[:-1], -1)
