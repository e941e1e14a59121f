"""Token classification: a label for each word of a text, for clinical entities or what identifies a person.

A word's label is learned at the first of its tokens; the other ones are not looked at. The loss of a text is the mean
over its words, so that a long text weighs no more than a short one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import Backbone
from common.task_specs import TokenClassification
from common.tasks import FEATURE_NORM, IGNORED
from common.tasks.choice import zero_linear
from common.tasks.texts import TextTask, Tokens, is_text, mean_over_learned


class TokenClassificationTask(TextTask):
    """Assign one of the study's labels to each word; the score is the share of words that are right."""

    pools = False

    def __init__(self, spec: TokenClassification, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone, spec.max_tokens)
        if not self.tokenizer.is_fast:
            raise ValueError("a backbone is loaded with its fast tokeniser")
        self.spec = spec
        self._index = {label: index for index, label in enumerate(spec.labels)}

    def reads(self, content: object, label: str) -> bool:
        """See :meth:`Task.reads`: as many labels as words."""
        return is_text(content) and self.spec.accepts(label) and len(str(content).split()) == len(label.split())

    def encoded(
        self, contents: Sequence[object], labels: Sequence[str]
    ) -> tuple[Tokens, NDArray[np.int64], NDArray[np.float32] | None]:
        """See :meth:`Task.encoded`."""
        tokens = []
        targets = np.full((len(contents), self.max_tokens), IGNORED, dtype=np.int64)
        for row, (content, label) in enumerate(zip(contents, labels, strict=True)):
            found = self.tokenizer(
                str(content).split(), is_split_into_words=True, truncation=True, max_length=self.max_tokens
            )
            tokens.append(np.array(found["input_ids"], dtype=np.int32))
            named, seen = label.split(), set()
            for place, word in enumerate(found.word_ids()):
                if word is not None and word not in seen:
                    targets[row, place] = self._index[named[word]]
                    seen.add(word)
        return tuple(tokens), targets, None

    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> NDArray[np.int64]:
        """See :meth:`TextTask.invented_targets`."""
        targets = np.full((len(tokens), self.max_tokens), IGNORED, dtype=np.int64)
        for row, one in enumerate(tokens):
            targets[row, : len(one)] = dice.integers(len(self._index), size=len(one))
        return targets

    def head(self, width: int, *, alone: bool) -> nn.Module:
        """See :meth:`Task.head`."""
        del alone
        return zero_linear(width, len(self._index))

    def features(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """See :meth:`Task.features`: one row a token."""
        del mask
        return FEATURE_NORM * functional.normalize(hidden, dim=-1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.loss`."""
        losses = functional.cross_entropy(outputs.mT, targets, ignore_index=IGNORED, reduction="none")
        return mean_over_learned(losses, targets, IGNORED)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.scores`."""
        return mean_over_learned((outputs.argmax(dim=2) == targets).float(), targets, IGNORED)
