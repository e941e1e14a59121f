"""IA3: vectors that multiply what the targeted linear layers put out [Liu et al. 2022, arXiv 2205.05638].

A layer that projects down, as the second one of a feed-forward block does, is scaled at its input instead, which is the
wide activation that the paper scales. The vectors start at one and are not regularised. The paper's
targets are the keys, the values and the down-projection; in BERT ``key``, ``value`` and ``output.dense``, which also
names the attention's last layer.
"""

from __future__ import annotations

from peft import IA3Config, PeftModel
from peft.tuners.ia3 import IA3Layer
from torch import nn

from common import errors
from common.adapters.scaling import ScaledLinear
from common.adapters.wrapping import in_peft
from common.anatomy import projections
from common.errors import ConsiliumError
from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> PeftModel:
    """Scale the targeted linear layers; every vector starts at one and trains.

    layers  which layers are adapted

    Raises CSL-310 when no linear layer of these bears a target's name.
    """
    del stream
    targets = {
        name: layer for name, layer in projections(model, spec.targets, layers).items() if isinstance(layer, nn.Linear)
    }
    if not targets:
        raise ConsiliumError(errors.ADAPTER_INVALID, "the targets are no linear layers, which IA3 scales")
    down = [name for name, layer in targets.items() if layer.in_features > layer.out_features]
    adapted = in_peft(model, IA3Config(target_modules=list(targets), feedforward_modules=down))
    for name, module in [*adapted.named_modules()]:
        if isinstance(module, IA3Layer):
            adapted.set_submodule(name, ScaledLinear(module))
    return adapted
