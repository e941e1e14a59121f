"""FFA-LoRA: LoRA whose A is frozen at a shared draw and whose B trains [Sun et al. 2024, arXiv 2403.12313].

The update is linear in what trains, so the mean of the sites' B is the B of the mean update, exactly; and half as many
parameters take noise and travel.
"""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from common.adapters import lora
from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> PeftModel:
    """As :func:`common.adapters.lora.attach`, with every A frozen."""
    adapted = lora.attach(model, spec, layers, stream)
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name:
            parameter.requires_grad = False
    return adapted
