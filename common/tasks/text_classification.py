"""Text classification: mean-pooled, normalised features under a linear head, cross-entropy per example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.task_specs import TextClassification
from common.tasks import Embedder, Encoded, Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FEATURE_NORM = 1.0
"""L2 norm of every pooled feature: fixed, so that one clip norm suits every backbone."""
LABEL_TEMPERATURE = 8.0
"""Norm of a label's initial weights: confident enough to rank labels, flat enough to be corrected."""


class TextClassificationTask(Task):
    """Assign one of the study's labels to each text."""

    def __init__(self, spec: TextClassification, tokenizer: PreTrainedTokenizerBase) -> None:
        self.spec, self._tokenizer = spec, tokenizer
        self.classes = len(spec.labels)
        self._index = {label: index for index, label in enumerate(spec.labels)}
        self._padding = int(tokenizer.pad_token_id or 0)

    def encode(self, texts: Sequence[str], labels: Sequence[str], units: NDArray[np.int64]) -> Encoded:
        """See :meth:`Task.encode`. A text that is too long is cut at the study's max_tokens."""
        kept = [row for row, (text, label) in enumerate(zip(texts, labels, strict=True)) if self._reads(text, label)]
        targets = np.array([self._index[labels[row]] for row in kept], dtype=np.int64)
        owners = np.asarray(units, dtype=np.int64)[kept]
        return Encoded(self._tokens([texts[row] for row in kept]), targets, owners, len(texts) - len(kept))

    def pad(self, tokens: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
        """See :meth:`Task.pad`."""
        longest = max((max(1, len(row)) for row in tokens), default=0)
        identifiers = np.full((len(tokens), longest), self._padding, dtype=np.int64)
        mask = np.zeros((len(tokens), longest), dtype=np.int64)
        for row, values in enumerate(tokens):
            identifiers[row, : len(values)] = values
            mask[row, : len(values)] = 1
        return torch.from_numpy(identifiers), torch.from_numpy(mask)

    def head(self, hidden_size: int) -> nn.Linear:
        """See :meth:`Task.head`."""
        head = nn.Linear(hidden_size, self.classes)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        return head

    def initialise_head(self, head: nn.Module, embedder: Embedder) -> None:
        """Point each label's weights at the embedding of its text, less the mean over the labels."""
        if self.spec.label_texts is None or not isinstance(head, nn.Linear):
            return
        identifiers, mask = self.pad(self._tokens(self.spec.label_texts))
        device = head.weight.device
        with torch.no_grad():
            features = embedder.features_of(identifiers.to(device), mask.to(device))
            directions = functional.normalize(features - features.mean(dim=0), dim=-1)
            head.weight.copy_(directions * LABEL_TEMPERATURE / FEATURE_NORM)

    def features(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """See :meth:`Task.features`."""
        weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
        return FEATURE_NORM * functional.normalize(pooled, dim=-1)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.loss`."""
        return functional.cross_entropy(logits, targets, reduction="none")

    def _reads(self, text: object, label: object) -> bool:
        """Whether a record has a text of well-formed Unicode and a label that the study knows."""
        if not isinstance(text, str) or label not in self._index:
            return False
        # A lone surrogate, as broken exports have it, would stop the tokenizer and with it the site.
        return not any("\ud800" <= character <= "\udfff" for character in text)

    def _tokens(self, texts: Sequence[str]) -> tuple[NDArray[np.int32], ...]:
        if not texts:
            return ()
        rows = self._tokenizer(
            list(texts), truncation=True, max_length=self.spec.max_tokens, return_attention_mask=False
        )["input_ids"]
        return tuple(np.array(row, dtype=np.int32) for row in rows)
