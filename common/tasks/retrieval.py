"""Retrieval: a question's embedding comes near that of its answer, and away from those of public texts.

Answers are embedded by the backbone as it is: an index of documents that stands in a hospital stays good, whatever is
learned about questions. Negatives are the study's public texts, never the batch's other answers, which would put one
patient's record into another's gradient (RULES 12).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.backbone import Backbone
from common.task_specs import Retrieval
from common.tasks.choice import zero_linear
from common.tasks.texts import Tokens, WholeTextTask, is_text


class RetrievalTask(WholeTextTask):
    """Embed questions beside their answers; the score is one where no public text is nearer than the answer."""

    def __init__(self, spec: Retrieval, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone, spec.max_tokens)
        self.spec, self._temperature = spec, spec.temperature
        self._negatives = torch.from_numpy(self.frozen_embeddings(spec.negatives)).to(backbone.device)

    def reads(self, content: object, label: str) -> bool:
        """See :meth:`Task.reads`."""
        return super().reads(content, label) and is_text(label)

    def targets(self, labels: Sequence[str], tokens: Tokens) -> NDArray[np.float32]:
        """See :meth:`WholeTextTask.targets`: (n, width), the embedding of each answer."""
        del tokens
        return self.frozen_embeddings(labels)

    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> NDArray[np.float32]:
        """See :meth:`TextTask.invented_targets`."""
        rows = dice.normal(size=(len(tokens), self.width))
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)

    def head(self, width: int, *, alone: bool) -> nn.Module:
        """See :meth:`Task.head`: a linear change of the embedding where nothing else trains, else none."""
        return zero_linear(width, width, bias=False) if alone else nn.Identity()

    def outputs(self, head: nn.Module, features: Tensor, numbers: Tensor | None) -> Tensor:
        """See :meth:`Task.outputs`: (n, width) embeddings of norm one."""
        del numbers
        changed = features if isinstance(head, nn.Identity) else features + torch.as_tensor(head(features))
        return functional.normalize(changed, dim=-1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.loss`: cross-entropy of the answer against the public texts, at the study's temperature."""
        own, others = self._similarities(outputs, targets)
        return torch.logsumexp(torch.cat([own, others], dim=1), dim=1) - own[:, 0]

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.scores`."""
        own, others = self._similarities(outputs, targets)
        return (own[:, 0] > others.max(dim=1).values).float()

    def _similarities(self, outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return similarities to the answer, (n, 1), and to the public texts, (n, negatives), over the temperature."""
        own = (outputs * targets).sum(dim=1, keepdim=True)
        return own / self._temperature, outputs @ self._negatives.T / self._temperature
