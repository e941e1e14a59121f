"""BitFit: the biases of the adapted layers train and nothing else [Ben Zaken et al. 2021, arXiv 2106.10199].

They start at the backbone's own values. ``rank``, ``alpha`` and ``targets`` have no meaning here. A bias of attention
keys cannot change the output, as softmax ignores it; it takes noise that no prediction sees.
"""

from __future__ import annotations

from torch import nn

from common import errors
from common.adapters.anatomy import modules_within
from common.errors import ConsiliumError
from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> nn.Module:
    """Give the linear layers and layer norms a bias of their own that trains; raises CSL-310 where they have none."""
    del spec, stream
    found = False
    for module in modules_within(model, layers).values():
        if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
            module.bias = nn.Parameter(module.bias.detach().clone())
            found = True
    if not found:
        raise ConsiliumError(errors.ADAPTER_INVALID, "these layers have no bias")
    return model
