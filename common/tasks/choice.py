"""What tasks share that choose one label an example: a linear head at zero, cross-entropy, right or wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from common.task_specs import TaskSpec
from common.tasks import Task


class Choice(Task):
    """A choice of one among the study's labels."""

    def choose_among(self, spec: TaskSpec) -> None:
        """Take over the labels of a study's task."""
        self.classes = len(spec.known_labels)
        self._index = {label: index for index, label in enumerate(spec.known_labels)}

    def numbered(self, labels: Sequence[str]) -> NDArray[np.int64]:
        """Return the place of each label among the study's, (n,) int64."""
        return np.array([self._index[label] for label in labels], dtype=np.int64)

    def head(self, width: int, *, alone: bool) -> nn.Module:
        """See :meth:`Task.head`."""
        del alone
        return zero_linear(width, self.classes)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.loss`."""
        return functional.cross_entropy(outputs, targets, reduction="none")

    def scores(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """See :meth:`Task.scores`: one for the right label."""
        return (outputs.argmax(dim=1) == targets).float()

    def predictions(self, outputs: Tensor) -> Tensor:
        """See :meth:`Task.predictions`."""
        return outputs.argmax(dim=1)


def zero_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """Return a linear layer at zero."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
