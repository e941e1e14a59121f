"""A vector that multiplies what passes through it: a module of its own, so that its gradient per example can be taken.

PEFT keeps such vectors as bare parameters of what they scale, where no hook sees them used. This keeps PEFT's names, so
that PEFT writes and reads them.
"""

from __future__ import annotations

from peft.tuners.ia3 import IA3Layer
from torch import Tensor, nn


class Scaling(nn.Module):
    """One vector, kept in the shape that PEFT gives it, (width, 1) or (1, width), under the adapter's name."""

    def __init__(self, vectors: nn.ParameterDict) -> None:
        super().__init__()
        ((name, vector),) = vectors.items()
        self.register_parameter(name, vector)

    def vector(self) -> nn.Parameter:
        """Return the vector as it is kept."""
        (found,) = self.parameters()
        return found

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., width) values times the vector."""
        return values * self.vector().flatten()


class ScaledLinear(nn.Module, IA3Layer):
    """A frozen linear layer whose input or output is scaled: PEFT's layer, computed so that it can be watched.

    peft_layer  as PEFT made it; its linear layer and its vector are taken over
    """

    def __init__(self, peft_layer: IA3Layer) -> None:
        super().__init__()
        IA3Layer.__init__(self, peft_layer.base_layer, is_feedforward=peft_layer.is_feedforward)
        self._active_adapter = peft_layer.active_adapter
        self.ia3_l = Scaling(peft_layer.ia3_l)  # type: ignore[assignment]  # peft's own is never called as a module

    def forward(self, values: Tensor) -> Tensor:
        """Return (..., outputs) from (..., inputs)."""
        if self.is_feedforward:
            result: Tensor = self.base_layer(self.ia3_l(values))
        else:
            result = self.ia3_l(self.base_layer(values))
        return result
