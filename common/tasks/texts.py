"""What tasks on texts share: tokens, padding, and whether a text can be read."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.backbone import Backbone
from common.tasks import FEATURE_NORM, Embedder, Encoded, Inputs, Targets, Task, unsupported

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokens = tuple[NDArray[np.generic], ...]
LABEL_TEMPERATURE = 8.0
"""Norm of a label's initial weights: confident enough to rank labels, flat enough to be corrected."""


class TextTask(Task):
    """A task whose records are texts.

    max_tokens  what is longer is cut
    """

    def __init__(self, backbone: Backbone, max_tokens: int) -> None:
        super().__init__(backbone)
        if backbone.tokenizer is None:
            raise unsupported(f"{backbone.manifest.name} reads {self.anatomy.reads}, not tokens")
        self.tokenizer: PreTrainedTokenizerBase = backbone.tokenizer
        self.max_tokens = max_tokens
        # Padding is masked everywhere, so any token will do where a decoder's tokeniser has none for it.
        self._padding = int(self.tokenizer.pad_token_id or 0)

    def reads(self, content: object, label: str) -> bool:
        """See :meth:`Task.reads`: a text of well-formed Unicode and a label that the task takes."""
        return is_text(content) and self.spec.accepts(label)

    @abstractmethod
    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> Targets:
        """Return targets for invented tokens."""

    def pad(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """See :meth:`Task.pad`."""
        longest = max((max(1, len(row)) for row in inputs), default=0)
        identifiers = np.full((len(inputs), longest), self._padding, dtype=np.int64)
        mask = np.zeros((len(inputs), longest), dtype=np.int64)
        for row, values in enumerate(inputs):
            identifiers[row, : len(values)] = values
            mask[row, : len(values)] = 1
        return torch.from_numpy(identifiers), torch.from_numpy(mask)

    def invented(self, lengths: Sequence[int]) -> Encoded:
        """See :meth:`Task.invented`: tokens drawn from the vocabulary without its special ones."""
        dice = np.random.default_rng(2)
        known = len(self.anatomy.vocabulary(self.backbone.model))
        vocabulary = np.setdiff1d(np.arange(known), self.tokenizer.all_special_ids)
        tokens = tuple(
            dice.choice(vocabulary, size=min(length, self.max_tokens)).astype(np.int32) for length in lengths
        )
        return Encoded(tokens, self.invented_targets(tokens, dice), np.arange(len(tokens), dtype=np.int64))

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Return the tokens of each text, int32, at most ``max_tokens``."""
        if not texts:
            return ()
        rows = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, return_attention_mask=False)
        return tuple(np.array(row, dtype=np.int32) for row in rows["input_ids"])

    @torch.no_grad()
    def frozen_embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return what the backbone as it is makes of each text by itself, (n, width) float32, of norm one."""
        model, rows = self.backbone.model, []
        for tokens in self.tokens(texts):
            identifiers, mask = (part.to(self.backbone.device) for part in self.pad([tokens]))
            hidden = self.anatomy.embed(model, identifiers)
            hidden = self.anatomy.run(model, hidden, mask, first=0, last=self.backbone.layers)
            pooled = self.anatomy.pool(self.anatomy.finish(model, hidden), mask)
            rows.append(torch.nn.functional.normalize(pooled, dim=-1).cpu().numpy())
        return np.concatenate(rows).astype(np.float32) if rows else np.zeros((0, self.width), dtype=np.float32)


class WholeTextTask(TextTask):
    """A task whose inputs are the tokens of a text, and nothing is done to them.

    label_texts  one description a label, from whose embedding the label's weights start; None starts at zero
    """

    label_texts: tuple[str, ...] | None = None

    def initialise_head(self, head: nn.Module, embedder: Embedder) -> None:
        """See :meth:`Task.initialise_head`."""
        self.point_at_labels(head, embedder)

    def point_at_labels(self, layer: nn.Module, embedder: Embedder) -> None:
        """Point each label's weights at the embedding of its text, less the mean over the labels."""
        if self.label_texts is None or not isinstance(layer, nn.Linear):
            return
        with torch.no_grad():
            identifiers, mask = (part.to(layer.weight.device) for part in self.pad(self.tokens(self.label_texts)))
            features = embedder.features_of(identifiers, mask)
            directions = nn.functional.normalize(features - features.mean(dim=0), dim=-1)
            layer.weight[:, : directions.shape[1]].copy_(directions * LABEL_TEMPERATURE / FEATURE_NORM)

    def encoded(
        self, contents: Sequence[object], labels: Sequence[str]
    ) -> tuple[Tokens, Targets, NDArray[np.float32] | None]:
        """See :meth:`Task.encoded`."""
        tokens = self.tokens([str(content) for content in contents])
        return tokens, self.targets(labels, tokens), None

    @abstractmethod
    def targets(self, labels: Sequence[str], tokens: Tokens) -> Targets:
        """Return what texts with these labels and tokens are to give."""


def is_text(content: object) -> bool:
    """Whether something is a text of well-formed Unicode."""
    # A lone surrogate, as broken exports have it, would stop the tokenizer and with it the site.
    return isinstance(content, str) and not any("\ud800" <= character <= "\udfff" for character in content)


def mean_over_learned(values: Tensor, targets: Tensor, ignored: int) -> Tensor:
    """Return the mean of (n, t) values over the tokens of each example that have a target; 0 where none has."""
    learned = (targets != ignored).to(values.dtype)
    return (values * learned).sum(dim=1) / learned.sum(dim=1).clamp(min=1.0)
