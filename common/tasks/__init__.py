"""Tasks: from records to encoded examples, from hidden states to a loss per example, from predictions to counts.

One file a task behind :class:`Task`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from common import errors
from common.errors import ConsiliumError
from common.task_specs import AnyTask, TextClassification

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as a model reads them.

    tokens   one int32 array an example, special tokens included, at most the task's max_tokens long
    targets  (n,) int64
    units    (n,) int64, the privacy unit that owns each example, numbered from 0
    dropped  records that could not be read and are not among the examples. Sensitive: it stays on site
    """

    tokens: tuple[NDArray[np.int32], ...] = field(repr=False)
    targets: NDArray[np.int64] = field(repr=False)
    units: NDArray[np.int64] = field(repr=False)
    dropped: int = field(default=0, repr=False)

    def __len__(self) -> int:
        return len(self.tokens)


class Embedder(Protocol):
    """What a head may be initialised from: the frozen backbone's view of some token identifiers."""

    def features_of(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the features that enter the head, (n, h)."""


class Task(ABC):
    """What the sites learn to do."""

    spec: TextClassification
    classes: int

    @abstractmethod
    def encode(self, texts: Sequence[str], labels: Sequence[str], units: NDArray[np.int64]) -> Encoded:
        """Turn labelled texts into encoded examples.

        A record whose text is no text, or whose label the study does not have, is left out and counted in
        ``dropped``; one such record never fails a site (RULES 13). Whether a record stays depends on it alone.
        """

    @abstractmethod
    def pad(self, tokens: Sequence[NDArray[np.int32]]) -> tuple[Tensor, Tensor]:
        """Return identifiers and mask, both (n, longest) int64, for some examples' tokens."""

    @abstractmethod
    def head(self, hidden_size: int) -> nn.Module:
        """Return a new head on features of that width, at zero."""

    @abstractmethod
    def initialise_head(self, head: nn.Module, embedder: Embedder) -> None:
        """Set the head from what the study says of its labels, if it says anything; costs no privacy."""

    @abstractmethod
    def features(self, hidden: Tensor, attention_mask: Tensor) -> Tensor:
        """Pool hidden states (n, t, h) under a mask (n, t) to the head's input (n, h), each example by itself."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return each example's own loss, (n,); nothing in it depends on another example."""


def task_for(spec: AnyTask, tokenizer: PreTrainedTokenizerBase) -> Task:
    """Return the task that a study names; raises CSL-322 for one that there is not."""
    from common.tasks.text_classification import TextClassificationTask

    if not isinstance(spec, TextClassification):
        raise ConsiliumError(errors.TASK_UNSUPPORTED, spec.kind)
    return TextClassificationTask(spec, tokenizer)
