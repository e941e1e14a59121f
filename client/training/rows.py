"""Gradients per example of the layers that adapters train, in the form of Opacus' grad samplers.

A layer's activations and the gradient of its output give each example's own gradient of its weights; nothing else is
read. They are equal to what Opacus computes up to rounding, and preflight measures them on the study's own model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from torch import Tensor, bmm, nn

from common.adapters.scaling import Scaling

Rows: TypeAlias = dict[nn.Parameter, Tensor]
"""(n, *shape) of each trained parameter of one layer: row i is the gradient of example i's own loss."""


def linear_rows(layer: nn.Linear, activations: list[Tensor], gradient: Tensor) -> Rows:
    """Return the rows of weight and bias from (n, ..., inputs) activations and (n, ..., outputs) gradients.

    The smaller of the two widths leads in the product, which for the thin factors of LoRA halves its time; rows of a
    tall weight are therefore laid out by columns in memory, (n, outputs, inputs) all the same.
    """
    gradient = _by_position(gradient)
    rows: Rows = {}
    for name, parameter in layer.named_parameters(recurse=False):
        if not parameter.requires_grad:
            continue
        if name == "bias":
            rows[parameter] = gradient.sum(dim=1)
            continue
        values = _by_position(activations[0]).to(gradient.dtype)
        tall = layer.in_features < layer.out_features
        rows[parameter] = bmm(values.mT, gradient).mT if tall else bmm(gradient.mT, values)
    return rows


def layer_norm_rows(layer: nn.LayerNorm, activations: list[Tensor], gradient: Tensor) -> Rows:
    """Return the rows of gain and shift, in float32 whatever the precision, also where one of them is absent."""
    width = len(layer.normalized_shape)
    rows: Rows = {}
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.requires_grad:
            found = gradient.float()
            if name == "weight":
                found = found * nn.functional.layer_norm(activations[0].float(), layer.normalized_shape, eps=layer.eps)
            rows[parameter] = _over_positions(found, width)
    return rows


def scaling_rows(layer: Scaling, activations: list[Tensor], gradient: Tensor) -> Rows:
    """Return (n, *vector): activations times output gradients, (n, ..., width), summed over all but the last."""
    vector = layer.vector()
    rows = _over_positions(activations[0].float() * gradient.float(), 1)
    return {vector: rows.reshape(-1, *vector.shape)} if vector.requires_grad else {}


SAMPLERS: Mapping[type[nn.Module], Callable[..., Rows]] = {
    nn.Linear: linear_rows,
    nn.LayerNorm: layer_norm_rows,
    Scaling: scaling_rows,
}
"""Which layers are ours; exactly these types, as a subclass may compute something else. The others are Opacus'."""


def _by_position(values: Tensor) -> Tensor:
    """Return (n, positions, width) from (n, ..., width)."""
    return values.unsqueeze(1) if values.dim() == 2 else values.flatten(1, -2)


def _over_positions(values: Tensor, kept: int) -> Tensor:
    """Sum (n, ..., *kept) over all but the examples and the last ``kept`` dimensions."""
    return values.flatten(1, -kept - 1).sum(dim=1) if values.dim() > kept + 1 else values
