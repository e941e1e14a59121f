"""Multi-label classification: any number of labels for a text, each decided for itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import Backbone
from common.task_specs import MultiLabelClassification
from common.tasks.choice import zero_linear
from common.tasks.texts import Tokens, WholeTextTask


class MultiLabelTask(WholeTextTask):
    """Assign any number of the study's labels to each text; the score is the share of labels that are right."""

    def __init__(self, spec: MultiLabelClassification, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone, spec.max_tokens)
        self.spec, self._named, self.label_texts = spec, spec.named, spec.label_texts
        self._index = {label: index for index, label in enumerate(spec.labels)}

    def targets(self, labels: Sequence[str], tokens: Tokens) -> NDArray[np.float32]:
        """See :meth:`WholeTextTask.targets`: (n, labels), one where a label holds."""
        del tokens
        held = np.zeros((len(labels), len(self._index)), dtype=np.float32)
        for row, label in enumerate(labels):
            held[row, [self._index[name] for name in self._named(label)]] = 1.0
        return held

    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> NDArray[np.float32]:
        """See :meth:`TextTask.invented_targets`."""
        return dice.integers(2, size=(len(tokens), len(self._index))).astype(np.float32)

    def head(self, width: int, *, alone: bool) -> nn.Module:
        """See :meth:`Task.head`."""
        del alone
        return zero_linear(width, len(self._index))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.loss`: binary cross-entropy, summed over the labels."""
        return functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none").sum(dim=1)

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.scores`."""
        return ((outputs > 0) == (targets > 0.5)).float().mean(dim=1)
