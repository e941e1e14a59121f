"""Backbones that read sound: wav2vec2 a waveform, the audio spectrogram transformer a spectrogram.

Every recording is cut or filled to the study's length, so that none has a length of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from common.anatomy import Anatomy, Reads, Unmasked, tensor_of
from common.anatomy.image import Transformer


class Wav2Vec2(Unmasked):
    """wav2vec2: convolutions over the waveform, then layers over frames, pooled by their mean.

    Of the two forms of the model, the one that normalises late does so behind its last layer, not before its first.
    """

    reads = "waveform"
    stack = "encoder.layers"
    aliases: Mapping[str, str] = {"query": "attention.q_proj", "value": "attention.v_proj"}

    def embed(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`Anatomy.embed`."""
        frames = tensor_of(model.get_submodule("feature_extractor")(inputs)).transpose(1, 2)
        hidden = tensor_of(model.get_submodule("feature_projection")(frames))
        hidden = hidden + tensor_of(model.get_submodule("encoder.pos_conv_embed")(hidden))
        return hidden if _normalises_late(model) else tensor_of(model.get_submodule("encoder.layer_norm")(hidden))

    def finish(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """See :meth:`Anatomy.finish`."""
        return tensor_of(model.get_submodule("encoder.layer_norm")(hidden)) if _normalises_late(model) else hidden

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Anatomy.pool`."""
        del mask
        return hidden.mean(dim=1)


class SpectrogramTransformer(Transformer):
    """The audio spectrogram transformer: patches of a spectrogram, of which the first two places stand for all."""

    reads: Reads = "spectrogram"

    def image_size(self, model: nn.Module) -> int | None:
        """See :meth:`Anatomy.image_size`: it reads none."""
        del model
        return None

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Anatomy.pool`."""
        del mask
        return (hidden[:, 0] + hidden[:, 1]) / 2.0


def _normalises_late(model: nn.Module) -> bool:
    return bool(getattr(model.config, "do_stable_layer_norm", False))


FAMILIES: Mapping[str, Anatomy] = {
    "wav2vec2": Wav2Vec2(),
    "audio-spectrogram-transformer": SpectrogramTransformer("layers"),
}
