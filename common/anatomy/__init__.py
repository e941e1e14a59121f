"""Where a family of backbones keeps its layers and how it runs from one to the next, to split off a frozen prefix.

One class a family, one row in ``FAMILIES`` of what it reads. A backbone of another family is refused, because its
layers cannot be run one by one soundly.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from common import errors
from common.errors import ConsiliumError

Reads = Literal["tokens", "pixels", "waveform", "spectrogram"]
"""What enters a backbone: (n, t) int64 tokens, (n, 3, s, s) pixels, (n, samples), or (n, frames, bands)."""
Projection = nn.Linear | nn.Conv2d | Conv1D
"""A layer that a low-rank update fits beside."""


class Anatomy(ABC):
    """How the model of one family is run.

    stack    dotted path of the list of layers
    reads    what enters the model
    causal   whether a token sees those before it only
    aliases  for this family, the modules that a study's usual target names stand for
    """

    stack: str
    reads: Reads = "tokens"
    causal: bool = False
    aliases: Mapping[str, str]

    @abstractmethod
    def embed(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """Return what enters the first layer, examples in dimension 0."""

    @abstractmethod
    def run(self, model: nn.Module, hidden: Tensor, mask: Tensor, *, first: int, last: int) -> Tensor:
        """Run layers ``first`` to ``last`` (exclusive) under an (n, t) mask of ones and zeros, where there is one."""

    @abstractmethod
    def finish(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """Return what the whole encoder puts out from what its last layer does."""

    @abstractmethod
    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return one row an example, (n, width), each by itself."""

    def width(self, model: nn.Module) -> int:
        """Return the width of a pooled row."""
        width = getattr(model.config, "hidden_size", None)
        if not isinstance(width, int):
            raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, "the backbone does not tell its width")
        return width

    def layer_width(self, model: nn.Module, index: int) -> int:
        """Return the width of what one layer puts out."""
        del index
        return self.width(model)

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return the list of layers."""
        layers = model.get_submodule(self.stack)
        if not isinstance(layers, nn.ModuleList):
            raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"{self.stack} is not a list of layers")
        return layers

    def image_size(self, model: nn.Module) -> int | None:
        """Return the pixels of each side that an image must have, None where any size will do."""
        del model
        return None

    def vocabulary(self, model: nn.Module) -> Tensor:
        """Return the embedding of each token, (tokens, width); raises CSL-322 for a backbone that reads none."""
        embed = getattr(model, "get_input_embeddings", None)
        found = embed() if self.reads == "tokens" and embed is not None else None
        if not isinstance(found, nn.Embedding):
            raise ConsiliumError(errors.TASK_UNSUPPORTED, f"this backbone reads {self.reads}, not tokens")
        return found.weight


class Unmasked(Anatomy):
    """A family whose examples are all of one shape: its layers run one after the other, and nothing is masked."""

    def run(self, model: nn.Module, hidden: Tensor, mask: Tensor, *, first: int, last: int) -> Tensor:
        """See :meth:`Anatomy.run`."""
        del mask
        for layer in self.layers(model)[first:last]:
            hidden = tensor_of(layer(hidden))
        return hidden


def anatomy_of(model: nn.Module) -> Anatomy:
    """Return the anatomy of a backbone's family; raises CSL-304 for a family without a row."""
    from common.anatomy import audio, image, text

    families: dict[str, Anatomy] = {**text.FAMILIES, **image.FAMILIES, **audio.FAMILIES}
    config = getattr(model, "config", None)
    family = str(getattr(config, "model_type", "unknown"))
    if family not in families:
        raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"{family} is not one of {', '.join(sorted(families))}")
    found = families[family]
    if getattr(config, "is_decoder", False) and not found.causal:
        raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"{family} as a decoder")
    return found


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


def projections(model: nn.Module, targets: Sequence[str], layers: range) -> dict[str, Projection]:
    """Return the projections inside some layers whose dotted name is or ends in a target's; raises CSL-310.

    A convolution counts where it is one at each place of the image: of one pixel, one step and one group. A usual name
    that the family calls otherwise stands for what its anatomy says, and passes over what is no projection there.
    """
    aliases = anatomy_of(model).aliases
    plain = tuple(target for target in targets if target not in aliases)
    usual = tuple(aliases[target] for target in targets if target in aliases)
    found: dict[str, Projection] = {}
    for name, module in modules_within(model, layers).items():
        is_asked_for = any(name.endswith(f".{target}") for target in plain)
        if _is_projection(module) and (is_asked_for or any(name.endswith(f".{target}") for target in usual)):
            assert isinstance(module, nn.Linear | nn.Conv2d | Conv1D)
            found[name] = module
        elif is_asked_for:
            raise ConsiliumError(errors.ADAPTER_INVALID, f"{name} is not linear")
    if not found:
        raise ConsiliumError(errors.ADAPTER_INVALID, f"targets {', '.join(targets)} in this backbone")
    return found


def _is_projection(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.stride == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear | Conv1D)


def tensor_of(output: object) -> Tensor:
    """Return the tensor that a layer puts out, alone or first; raises CSL-304."""
    value = output[0] if isinstance(output, tuple) else output
    if not isinstance(value, torch.Tensor):
        raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"a layer returns {type(value).__name__}")
    return value


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of (n, t, h) over the places that an (n, t) mask keeps; zeros where it keeps none."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
