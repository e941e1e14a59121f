"""BitFit: the biases of the adapted layers train and nothing else [Ben Zaken et al. 2021, arXiv 2106.10199].

They start at the backbone's own values. ``rank``, ``alpha`` and ``targets`` have no meaning here. A bias of attention
keys cannot change the output, as softmax ignores it; it takes noise that no prediction sees.
"""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from common import errors
from common.anatomy import modules_within
from common.errors import ConsiliumError
from common.transfer import AdapterSpec

_WITH_BIAS = (nn.Linear, nn.LayerNorm, nn.Conv2d, Conv1D)


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> nn.Module:
    """Give projections and layer norms a bias of their own that trains; raises CSL-310 where they have none."""
    del spec, stream
    found = False
    for module in modules_within(model, layers).values():
        if isinstance(module, _WITH_BIAS) and module.bias is not None:
            train_own(module, "bias")
            found = True
    if not found:
        raise ConsiliumError(errors.ADAPTER_INVALID, "these layers have no bias")
    return model


def train_own(module: nn.Module, name: str) -> None:
    """Give a module a parameter of its own in place of the one that it shares with the backbone, and let it train."""
    setattr(module, name, nn.Parameter(module.get_parameter(name).detach().clone()))
