"""RoLoRA: LoRA whose factors take turns, B in even rounds and A in odd ones [Chen et al. 2024, arXiv 2409.02346].

In each round the update is linear in what trains, so the mean over the sites is exact as with FFA-LoRA; over the study
both factors are learned. B comes first: while it is zero, A has no gradient.
"""

from __future__ import annotations

from peft import PeftModel
from torch import nn

from common.adapters import lora
from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> PeftModel:
    """As :func:`common.adapters.lora.attach`; which factor trains in a round :func:`rests` says."""
    return lora.attach(model, spec, layers, stream)


def rests(name: str, round_index: int) -> bool:
    """Whether a trainable parameter keeps still in a round, counted from the task's first one."""
    return (".lora_A." if round_index % 2 == 0 else ".lora_B.") in name
