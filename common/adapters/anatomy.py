"""Where the embeddings and the layers of a family of encoders are: what splitting off a frozen prefix needs.

One row a family. A backbone of another family is refused, because its layers cannot be run one by one soundly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask

from common import errors
from common.errors import ConsiliumError


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Dotted paths inside the model of one family.

    embeddings  the module from token identifiers to hidden states
    stack       the list of layers, each called with (hidden, mask)
    """

    embeddings: str
    stack: str

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of layers."""
        layers = model.get_submodule(self.stack)
        if not isinstance(layers, nn.ModuleList):
            raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"{self.stack} is not a list of layers")
        return layers

    def embed(self, model: nn.Module, input_ids: Tensor) -> Tensor:
        """Return what enters the first layer: (n, t, h) from (n, t) int64."""
        hidden = model.get_submodule(self.embeddings)(input_ids=input_ids)
        return _tensor(hidden)

    def run(self, model: nn.Module, hidden: Tensor, attention_mask: Tensor, *, first: int, last: int) -> Tensor:
        """Run layers ``first`` to ``last`` (exclusive) on (n, t, h) under an (n, t) mask of ones and zeros."""
        if first == last:
            return hidden
        mask = create_bidirectional_mask(
            config=model.config,  # type: ignore[arg-type]  # torch types every attribute as a tensor or a module
            inputs_embeds=hidden,
            attention_mask=attention_mask,
        )
        for layer in self.layers(model)[first:last]:
            hidden = _tensor(layer(hidden, mask))
        return hidden


_FAMILIES: Mapping[str, Anatomy] = {
    "bert": Anatomy("embeddings", "encoder.layer"),
    "roberta": Anatomy("embeddings", "encoder.layer"),
    "xlm-roberta": Anatomy("embeddings", "encoder.layer"),
    "electra": Anatomy("embeddings", "encoder.layer"),
    "distilbert": Anatomy("embeddings", "transformer.layer"),
}


def anatomy_of(model: nn.Module) -> Anatomy:
    """Return the anatomy of a backbone's family; raises CSL-304 for a family without a row."""
    config = getattr(model, "config", None)
    family = str(getattr(config, "model_type", "unknown"))
    if family not in _FAMILIES or getattr(config, "is_decoder", False):
        raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"{family} is not one of {', '.join(sorted(_FAMILIES))}")
    return _FAMILIES[family]


def modules_within(model: nn.Module, layers: range) -> dict[str, nn.Module]:
    """Return every module inside some layers of a backbone, by its dotted name in the model, in the model's order."""
    anatomy = anatomy_of(model)
    stack = anatomy.layers(model)
    return {
        f"{anatomy.stack}.{index}.{name}": module
        for index in layers
        for name, module in stack[index].named_modules()
        if name
    }


def linear_targets(model: nn.Module, targets: Sequence[str], layers: range) -> dict[str, nn.Linear]:
    """Return the linear modules inside some layers whose dotted name is or ends in a target's; raises CSL-310."""
    found: dict[str, nn.Linear] = {}
    for name, module in modules_within(model, layers).items():
        if any(name.endswith(f".{target}") for target in targets):
            if not isinstance(module, nn.Linear):
                raise ConsiliumError(errors.ADAPTER_INVALID, f"{name} is not linear")
            found[name] = module
    if not found:
        raise ConsiliumError(errors.ADAPTER_INVALID, f"targets {', '.join(targets)} in this backbone")
    return found


def _tensor(output: object) -> Tensor:
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, torch.Tensor):
        raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"a layer returns {type(value).__name__}")
    return value
