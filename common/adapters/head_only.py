"""Head only: the backbone stays as it is and the task's linear head trains on its pooled features."""

from __future__ import annotations

from torch import nn

from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> nn.Module:
    """Return the backbone unchanged."""
    del spec, layers, stream
    return model
