"""LoRA: low-rank updates beside frozen projections [Hu et al. 2021, arXiv 2106.09685].

Both factors train. Averaging A and B apart is not averaging their product, so under aggregation FFA-LoRA is the
default.
"""

from __future__ import annotations

import math

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from common import errors
from common.adapters.wrapping import in_peft
from common.anatomy import projections
from common.errors import ConsiliumError
from common.stream import public_gaussian
from common.transfer import AdapterSpec


def attach(model: nn.Module, spec: AdapterSpec, layers: range, stream: str) -> PeftModel:
    """Put LoRA factors beside the targeted projections; A from public randomness, B zero, both trainable.

    layers  which layers are adapted
    stream  64 hex digits of public randomness: A is the same on every site

    Raises CSL-310 when no module of these layers bears a target's name, or it is no projection.
    """
    targets = projections(model, spec.targets, layers)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,  # type: ignore[arg-type]  # peft annotates int; the scaling is a float
        lora_dropout=0.0,
        bias="none",
        target_modules=list(targets),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in targets.values()),
    )
    try:
        adapted = in_peft(model, config)
    except ValueError as error:
        raise ConsiliumError(errors.ADAPTER_INVALID, f"targets {', '.join(spec.targets)} in this backbone") from error
    for name, parameter in adapted.named_parameters():
        if ".lora_A." in name:
            _draw(parameter, stream, name)
    for module in adapted.modules():
        if isinstance(module, LoraLayer) and isinstance(module.base_layer, nn.Conv2d):
            # A backbone that pads by hand asks its convolution for these.
            for name in ("stride", "kernel_size", "dilation"):
                setattr(module, name, getattr(module.base_layer, name))
    return adapted


def _draw(parameter: nn.Parameter, stream: str, name: str) -> None:
    """Fill A, (rank, inputs), with normals of deviation 1/sqrt(inputs): A keeps the size of what it projects."""
    values = public_gaussian(stream, f"lora/{name}", parameter.numel()) / math.sqrt(parameter[0].numel())
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(values).view_as(parameter))
