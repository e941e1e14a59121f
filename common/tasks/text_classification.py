"""Text classification: pooled, normalised features under a linear head, cross-entropy per example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.backbone import Backbone
from common.task_specs import TabularClassification, TextClassification
from common.tasks.choice import Choice
from common.tasks.texts import Tokens, WholeTextTask


class TextClassificationTask(Choice, WholeTextTask):
    """Assign one of the study's labels to each text."""

    def __init__(self, spec: TextClassification | TabularClassification, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone, spec.max_tokens)
        self.spec, self.label_texts = spec, spec.label_texts
        self.choose_among(spec)

    def targets(self, labels: Sequence[str], tokens: Tokens) -> NDArray[np.int64]:
        """See :meth:`WholeTextTask.targets`."""
        del tokens
        return self.numbered(labels)

    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> NDArray[np.int64]:
        """See :meth:`TextTask.invented_targets`."""
        del dice
        return np.arange(len(tokens), dtype=np.int64) % self.classes
