"""Bottleneck adapters: a small network behind each adapted layer, added to what the layer put out.

``rank`` is the width of the bottleneck; ``alpha`` and ``targets`` have no meaning here [Houlsby et al. 2019, arXiv
1902.00751; one a layer, behind it, as Pfeiffer et al. 2020, arXiv 2005.00247].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.anatomy import anatomy_of, tensor_of
from common.stream import public_gaussian
from common.transfer import AdapterSpec


class Adapted(nn.Module):
    """A frozen layer with a bottleneck behind it: h + up(gelu(down(h))), h being what the layer puts out.

    What a convolution puts out has its channels in dimension 1, and is changed at each place of the image alike.
    """

    def __init__(self, layer: nn.Module, width: int, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(width, rank)
        self.up = nn.Linear(rank, width)

    def forward(self, hidden: Tensor, *given: object, **named: object) -> Tensor:
        """Return (n, t, width) or (n, width, h, w) from what the layer takes."""
        found = tensor_of(self.layer(hidden, *given, **named))
        last = found.movedim(1, -1) if found.dim() == 4 else found
        change: Tensor = self.up(nn.functional.gelu(self.down(last)))
        return found + (change.movedim(-1, 1) if found.dim() == 4 else change)


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> nn.Module:
    """Put a bottleneck behind each layer; the way down from public randomness, the way up zero, both trainable.

    layers  which layers are adapted
    stream  64 hex digits of public randomness: the way down starts the same on every site

    Raises CSL-304 when the backbone does not tell its width.
    """
    device = next(model.parameters()).device
    anatomy = anatomy_of(model)
    stack = anatomy.layers(model)
    for index in layers:
        width = anatomy.layer_width(model, index)
        adapted = Adapted(stack[index], width, spec.rank)
        values = public_gaussian(stream, f"bottleneck/{index}", width * spec.rank) / math.sqrt(width)
        with torch.no_grad():
            adapted.down.weight.copy_(torch.from_numpy(values).view_as(adapted.down.weight))
            for parameter in (adapted.down.bias, adapted.up.weight, adapted.up.bias):
                parameter.zero_()
        stack[index] = adapted.to(device)
    return model
