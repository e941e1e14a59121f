"""Backbones that read tokens: encoders of the BERT family, and decoders, whose tokens see those before them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from common.anatomy import Anatomy, mean_over_tokens, tensor_of


class _Text(Anatomy):
    """What all text models share: pooled by the mean over their tokens."""

    def pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Anatomy.pool`."""
        return mean_over_tokens(hidden, mask)


class Encoder(_Text):
    """An encoder of the BERT family: embeddings, then layers that are called with (hidden, mask)."""

    def __init__(self, stack: str, aliases: Mapping[str, str] | None = None) -> None:
        self.stack, self.aliases = stack, aliases or {}

    def embed(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`Anatomy.embed`."""
        return tensor_of(model.get_submodule("embeddings")(input_ids=inputs))

    def run(self, model: nn.Module, hidden: Tensor, mask: Tensor, *, first: int, last: int) -> Tensor:
        """See :meth:`Anatomy.run`."""
        if first == last:
            return hidden
        attention = create_bidirectional_mask(
            config=model.config,  # type: ignore[arg-type]  # torch types every attribute as a tensor or a module
            inputs_embeds=hidden,
            attention_mask=mask,
        )
        for layer in self.layers(model)[first:last]:
            hidden = tensor_of(layer(hidden, attention))
        return hidden

    def finish(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """See :meth:`Anatomy.finish`: nothing follows the last layer."""
        del model
        return hidden


class _Decoder(_Text):
    """A decoder: padding stands behind a text, so positions count from its start."""

    causal = True
    norm: str

    def finish(self, model: nn.Module, hidden: Tensor) -> Tensor:
        """See :meth:`Anatomy.finish`."""
        return tensor_of(model.get_submodule(self.norm)(hidden))

    @staticmethod
    def attention(model: nn.Module, hidden: Tensor, mask: Tensor) -> Tensor | None:
        """Return the mask that hides later tokens and padding, as the model's attention wants it."""
        found = create_causal_mask(
            config=model.config,  # type: ignore[arg-type]  # as above
            inputs_embeds=hidden,
            attention_mask=mask,
            past_key_values=None,
        )
        return found if isinstance(found, Tensor) else None


class Gpt2(_Decoder):
    """GPT-2: tokens and positions are added, then blocks."""

    stack, norm = "h", "ln_f"
    aliases: Mapping[str, str] = {"query": "attn.c_attn", "value": "attn.c_attn"}

    def embed(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`Anatomy.embed`."""
        places = torch.arange(inputs.shape[1], device=inputs.device).unsqueeze(0)
        return tensor_of(model.get_submodule("wte")(inputs)) + tensor_of(model.get_submodule("wpe")(places))

    def run(self, model: nn.Module, hidden: Tensor, mask: Tensor, *, first: int, last: int) -> Tensor:
        """See :meth:`Anatomy.run`."""
        attention = self.attention(model, hidden, mask) if first < last else None
        for block in self.layers(model)[first:last]:
            hidden = tensor_of(block(hidden, attention_mask=attention))
        return hidden


class Llama(_Decoder):
    """Llama and its like: rotary positions, which every layer is given."""

    stack, norm = "layers", "norm"
    aliases: Mapping[str, str] = {"query": "self_attn.q_proj", "value": "self_attn.v_proj"}

    def embed(self, model: nn.Module, inputs: Tensor) -> Tensor:
        """See :meth:`Anatomy.embed`."""
        return tensor_of(model.get_submodule("embed_tokens")(inputs))

    def run(self, model: nn.Module, hidden: Tensor, mask: Tensor, *, first: int, last: int) -> Tensor:
        """See :meth:`Anatomy.run`."""
        if first == last:
            return hidden
        attention = self.attention(model, hidden, mask)
        places = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        rotations = model.get_submodule("rotary_emb")(hidden, position_ids=places)
        for layer in self.layers(model)[first:last]:
            found = layer(hidden, attention_mask=attention, position_ids=places, position_embeddings=rotations)
            hidden = tensor_of(found)
        return hidden


FAMILIES: Mapping[str, Anatomy] = {
    "bert": Encoder("encoder.layer"),
    "roberta": Encoder("encoder.layer"),
    "xlm-roberta": Encoder("encoder.layer"),
    "electra": Encoder("encoder.layer"),
    "distilbert": Encoder("transformer.layer", {"query": "q_lin", "value": "v_lin"}),
    "gpt2": Gpt2(),
    "llama": Llama(),
}
