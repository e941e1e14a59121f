"""Regression: a number between public bounds from a text, in squared error on the bounds' own scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.backbone import Backbone
from common.task_specs import Regression
from common.tasks.choice import zero_linear
from common.tasks.texts import Tokens, WholeTextTask


class RegressionTask(WholeTextTask):
    """Predict a number; the score is one less the error in parts of the bounds' distance, at least zero."""

    def __init__(self, spec: Regression, backbone: Backbone, stream: str = "") -> None:
        del stream
        super().__init__(backbone, spec.max_tokens)
        self.spec, self._low, self._high = spec, spec.low, spec.high

    def targets(self, labels: Sequence[str], tokens: Tokens) -> NDArray[np.float32]:
        """See :meth:`WholeTextTask.targets`: (n,) in [-1, 1], from bound to bound."""
        del tokens
        values = np.array([float(label) for label in labels], dtype=np.float64).clip(self._low, self._high)
        scaled = 2.0 * (values - self._low) / (self._high - self._low) - 1.0
        return np.asarray(scaled, dtype=np.float32)

    def invented_targets(self, tokens: Tokens, dice: np.random.Generator) -> NDArray[np.float32]:
        """See :meth:`TextTask.invented_targets`."""
        return dice.uniform(-1.0, 1.0, size=len(tokens)).astype(np.float32)

    def head(self, width: int, *, alone: bool) -> nn.Module:
        """See :meth:`Task.head`."""
        del alone
        return zero_linear(width, 1)

    def outputs(self, head: nn.Module, features: Tensor, numbers: Tensor | None) -> Tensor:
        """See :meth:`Task.outputs`: (n,)."""
        del numbers
        return torch.as_tensor(head(features)).squeeze(-1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.loss`."""
        return (outputs - targets).square()

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.scores`."""
        return (1.0 - (outputs.clamp(-1.0, 1.0) - targets).abs() / 2.0).clamp(0.0, 1.0)
