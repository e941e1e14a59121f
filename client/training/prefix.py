"""What is kept of a record: its hidden states behind the frozen layers, or one pooled row where the head alone trains.

Both depend on that record alone, but for the last bits unless it is computed alone: in training these move a sum of
clipped gradients by about 1e-7 clip norms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.bucketing import buckets
from common.adapters import AdaptedModel
from common.tasks import Inputs, Task

_BATCH = 32
_FLOAT16_MOST = 65504.0
_FORMAT = 2
"""Rises when the same tokens come to be kept otherwise, so that no older file is read."""


@dataclass(frozen=True, slots=True)
class FrozenPrefix:
    """The frozen layers in front of a model, and the form in which their output is kept.

    model  whose prefix it is; the vector does not matter
    task   whose records go through it: the study's, or the objective of its first rounds
    alone  compute each record by itself: not even its last bit then depends on which others there are
    exact  keep hidden states in float32; in float16 they take half of it. Pooled rows always are in float32
    """

    model: AdaptedModel
    task: Task
    alone: bool = False
    exact: bool = False

    @property
    def is_pooled(self) -> bool:
        """Whether the head alone trains, on one row a record, so that this row is all that is needed."""
        return self.model.prefix_layers == self.model.backbone.layers and self.task.pools

    @property
    def dtype(self) -> torch.dtype:
        """Of what is kept: float16 or float32."""
        return torch.float32 if self.exact or self.is_pooled else torch.float16

    def shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of what is kept of a record of so many tokens: (tokens, width), pooled (width,).

        Of a record without tokens it is what the layers put out for any.
        """
        if self.is_pooled:
            return (self.task.width,)
        return (length, self.task.width) if self.task.has_lengths else self.model.prefix_shape

    def sizes(self, inputs: Inputs) -> NDArray[np.int64]:
        """Return the bytes that are kept of each record, (n,) int64."""
        return np.array([int(np.prod(self.shape(len(row)))) * self.dtype.itemsize for row in inputs], dtype=np.int64)

    @torch.no_grad()
    def compute(self, inputs: Inputs, *, alone: bool | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield each record's place and what is kept of it, on the CPU, in the order of rising length.

        alone  in place of the prefix's own choice
        """
        lengths = lengths_of(self.task, inputs)
        device, task = self.model.device, self.task
        size = 1 if (self.alone if alone is None else alone) else _BATCH
        for chosen in buckets(np.arange(len(inputs)), lengths, size):
            values, mask = (part.to(device) for part in task.pad([inputs[row] for row in chosen]))
            hidden = self.model.prefix(values, mask)
            if self.is_pooled:
                hidden = self.model.features_behind(hidden, mask)
            elif not self.exact:
                hidden = hidden.clamp(-_FLOAT16_MOST, _FLOAT16_MOST)
            kept = hidden.to(device="cpu", dtype=self.dtype)
            for place, row in enumerate(chosen):
                cut = task.has_lengths and not self.is_pooled
                yield int(row), (kept[place, : lengths[row]] if cut else kept[place]).clone()

    def gathered(self, inputs: Inputs, *, alone: bool | None = None) -> tuple[Tensor, ...]:
        """Return what is kept of each record, in their order."""
        found = dict(self.compute(inputs, alone=alone))
        return tuple(found[row] for row in range(len(inputs)))

    def fingerprint(self, inputs: Inputs) -> bytes:
        """Return a SHA-256 over all that decides what is kept: backbone, task, layers, form, software, and every input.

        It tells who knows a site's records that it is theirs, so it must be keyed before it is shown to anyone.
        """
        made_by = {
            "format": _FORMAT,
            "backbone": sorted(self.model.backbone.manifest.files.items()),
            "layers": self.model.prefix_layers,
            "task": self.task.spec.model_dump(mode="json", exclude={"labels", "label_texts"}),
            "pooled": self.is_pooled,
            "alone": self.alone,
            "dtype": str(self.dtype),
            "software": [version("torch"), version("transformers")],
        }
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode() + b"\x00")
        digest.update(np.array([len(inputs), *(len(row) for row in inputs)], dtype="<i8").tobytes())
        for row in inputs:
            digest.update(np.ascontiguousarray(row, dtype=row.dtype.newbyteorder("<")).tobytes())
        return digest.digest()


def lengths_of(task: Task, inputs: Inputs) -> NDArray[np.int64]:
    """Return how many tokens each record has, (n,) int64; 1 where all are of one shape."""
    return np.array([len(row) if task.has_lengths else 1 for row in inputs], dtype=np.int64)
