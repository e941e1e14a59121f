"""Tabular rows: written down as a text for the backbone, with a small layer on the scaled fields beside it.

Bounds, levels and names are the study's constants: no site's mean or scale enters (RULES 12). A field that is missing
is left out of the text; among the numbers it is zero, and a mark of its own tells it from a true zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from common.backbone import Backbone
from common.task_specs import CategoryField, NumericField, TabularClassification
from common.tasks import Embedder, Encoded, Targets
from common.tasks.choice import zero_linear
from common.tasks.text_classification import TextClassificationTask
from common.tasks.texts import Tokens

Values = Sequence[str | None]
"""A row's fields in the study's order; None where one is missing."""


class TabularHead(nn.Module):
    """A linear head on the text's features and on what a small layer makes of the numbers, tanh of a linear map."""

    def __init__(self, width: int, numbers: int, inner: int, classes: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(numbers, inner)
        # Not random: every site starts from the same weights. Each unit first reads one number.
        with torch.no_grad():
            self.numbers.weight.zero_()
            self.numbers.bias.zero_()
            for unit in range(inner):
                self.numbers.weight[unit, unit % numbers] = 1.0
        self.choice = zero_linear(width + inner, classes)

    def forward(self, features: Tensor, numbers: Tensor) -> Tensor:
        """Return logits (n, classes) from (n, width) features and (n, numbers)."""
        read = torch.tanh(self.numbers(numbers)) / max(1, self.numbers.out_features) ** 0.5
        return torch.as_tensor(self.choice(torch.cat([features, read], dim=1)))


class TabularClassificationTask(TextClassificationTask):
    """Assign one of the study's labels to each row."""

    spec: TabularClassification

    def __init__(self, spec: TabularClassification, backbone: Backbone, stream: str = "") -> None:
        super().__init__(spec, backbone, stream)
        self._fields, self._inner = spec.fields, spec.numbers
        self._width = sum(_width(field) for field in spec.fields)

    def reads(self, content: object, label: str) -> bool:
        """See :meth:`Task.reads`: a row with a place for each field, and a label."""
        fits = isinstance(content, tuple | list) and len(content) == len(self._fields)
        return fits and self.spec.accepts(label)

    def encoded(
        self, contents: Sequence[object], labels: Sequence[str]
    ) -> tuple[Tokens, Targets, NDArray[np.float32] | None]:
        """See :meth:`Task.encoded`."""
        rows = [[None if value is None else str(value) for value in _row(content)] for content in contents]
        tokens = self.tokens([self.text_of(row) for row in rows])
        numbers = np.array([self.numbers_of(row) for row in rows], dtype=np.float32).reshape(len(rows), self._width)
        return tokens, self.numbered(labels), numbers if self._inner else None

    def text_of(self, row: Values) -> str:
        """Return a row as a sentence: each field that is there, by name and value."""
        parts = []
        for field, value in zip(self._fields, row, strict=True):
            shown = _shown(field, value)
            if shown is not None:
                parts.append(f"{field.text or field.name} is {shown}")
        return ", ".join(parts) + "." if parts else "nothing is known."

    def numbers_of(self, row: Values) -> list[float]:
        """Return a row as numbers: a scaled value and a mark that it is missing, or one for each level."""
        found: list[float] = []
        for field, value in zip(self._fields, row, strict=True):
            if isinstance(field, NumericField):
                number = _number(value)
                within = 0.0 if number is None else min(max(number, field.low), field.high)
                scaled = 2.0 * (within - field.low) / (field.high - field.low) - 1.0
                found += [0.0, 1.0] if number is None else [scaled, 0.0]
            else:
                found += [1.0 if value == level else 0.0 for level in field.levels]
        return found

    def invented(self, lengths: Sequence[int]) -> Encoded:
        """See :meth:`Task.invented`."""
        made = super().invented(lengths)
        if not self._inner:
            return made
        numbers = np.random.default_rng(3).normal(size=(len(made), self._width)).astype(np.float32)
        return Encoded(made.inputs, made.targets, made.units, 0, numbers)

    def head(self, width: int, *, alone: bool) -> nn.Module:
        """See :meth:`Task.head`."""
        if not self._inner:
            return super().head(width, alone=alone)
        return TabularHead(width, self._width, self._inner, self.classes)

    def initialise_head(self, head: nn.Module, embedder: Embedder) -> None:
        """Point each label's weights at the embedding of its text; those of the numbers stay at zero."""
        self.point_at_labels(head.choice if isinstance(head, TabularHead) else head, embedder)

    def outputs(self, head: nn.Module, features: Tensor, numbers: Tensor | None) -> Tensor:
        """See :meth:`Task.outputs`."""
        return torch.as_tensor(head(features, numbers) if self._inner else head(features))


def _row(content: object) -> Sequence[object]:
    assert isinstance(content, tuple | list), "read before"
    return content


def _number(value: str | None) -> float | None:
    """Return a finite number, None for what is none."""
    try:
        number = float(value) if value is not None else float("nan")
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _shown(field: NumericField | CategoryField, value: str | None) -> str | None:
    """Return how a value stands in the text, None for one that is missing or unknown."""
    if isinstance(field, NumericField):
        number = _number(value)
        return None if number is None else f"{number:g}"
    if value not in field.levels:
        return None
    place = field.levels.index(value)
    return field.texts[place] if field.texts is not None else value


def _width(field: NumericField | CategoryField) -> int:
    return 2 if isinstance(field, NumericField) else len(field.levels)
