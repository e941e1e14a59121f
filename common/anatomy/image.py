"""Backbones that read images: vision transformers, and MobileNet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from common import errors
from common.anatomy import Anatomy, Reads, Unmasked, tensor_of
from common.errors import ConsiliumError

_ATTENTION: Mapping[str, str] = {"query": "attention.q_proj", "value": "attention.v_proj"}


class Transformer(Unmasked):
    """A transformer over patches whose first place stands for the whole image; every image has as many patches.

    stack  dotted path of the list of layers
    """

    reads: Reads = "pixels"
    aliases = _ATTENTION

    def __init__(self, stack: str) -> None:
        self.stack = stack

    def image_size(self, model: nn.Module) -> int | None:
        """See :meth:`Anatomy.image_size`: as many patches as there are positions."""
        size = getattr(model.config, "image_size", None)
        return size if isinstance(size, int) else None

    def embed(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`Anatomy.embed`."""
        return tensor_of(model.get_submodule("embeddings")(inputs))

    def finish(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """See :meth:`Anatomy.finish`."""
        return tensor_of(model.get_submodule("layernorm")(hidden))

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Anatomy.pool`."""
        del mask
        return hidden[:, 0]


class MobileNet(Unmasked):
    """MobileNet v1: convolutions by channel and by place in turn, pooled by the mean over the image.

    Its batch norms stay in evaluation mode and keep the backbone's statistics, so that no image changes another's.
    """

    reads: Reads = "pixels"
    stack = "layer"
    aliases: Mapping[str, str] = {"query": "convolution", "value": "convolution"}

    def embed(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`Anatomy.embed`."""
        return tensor_of(model.get_submodule("conv_stem")(inputs))

    def finish(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """See :meth:`Anatomy.finish`: nothing follows the last layer."""
        del model
        return hidden

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Anatomy.pool`."""
        del mask
        return hidden.mean(dim=(2, 3))

    def width(self, model: nn.Module) -> int:
        """See :meth:`Anatomy.width`."""
        return self.layer_width(model, -1)

    def layer_width(self, model: nn.Module, index: int) -> int:
        """See :meth:`Anatomy.layer_width`."""
        layer = self.layers(model)[index].get_submodule("convolution")
        if not isinstance(layer, nn.Conv2d):
            raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"layer {index} is no convolution")
        return layer.out_channels


FAMILIES: Mapping[str, Anatomy] = {
    "vit": Transformer("layers"),
    "deit": Transformer("layers"),
    "dinov2": Transformer("encoder.layer"),
    "mobilenet_v1": MobileNet(),
}
