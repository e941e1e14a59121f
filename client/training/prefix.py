"""What is kept of a record: its hidden states behind the frozen layers, or one pooled row where the head alone trains.

Both depend on that record alone, but for the last bits unless it is computed alone: in training these move a sum of
clipped gradients by about 1e-7 clip norms.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.bucketing import buckets
from common.adapters import AdaptedModel

_BATCH = 32
_FLOAT16_MOST = 65504.0
_FORMAT = 1
"""Rises when the same tokens come to be kept otherwise, so that no older file is read."""

Tokens = Sequence[NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class FrozenPrefix:
    """The frozen layers in front of a model, and the form in which their output is kept.

    model  whose prefix it is; the vector does not matter
    alone  compute each record by itself: not even its last bit then depends on which others there are
    exact  keep hidden states in float32; in float16 they take half of it. Pooled rows always are in float32
    """

    model: AdaptedModel
    alone: bool = False
    exact: bool = False

    @property
    def is_pooled(self) -> bool:
        """Whether the head alone trains, so that one row a record is all that is needed."""
        return self.model.prefix_layers == self.model.backbone.layers

    @property
    def dtype(self) -> torch.dtype:
        """Of what is kept: float16 or float32."""
        return torch.float32 if self.exact or self.is_pooled else torch.float16

    def shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of what is kept of a record of so many tokens: (tokens, width), pooled (width,)."""
        width = self.model.backbone.hidden_size
        return (width,) if self.is_pooled else (length, width)

    def sizes(self, tokens: Tokens) -> NDArray[np.int64]:
        """Return the bytes that are kept of each record, (n,) int64."""
        return np.array([int(np.prod(self.shape(len(row)))) * self.dtype.itemsize for row in tokens], dtype=np.int64)

    @torch.no_grad()
    def compute(self, tokens: Tokens, *, alone: bool | None = None) -> Iterator[tuple[int, Tensor]]:
        """Yield each record's place and what is kept of it, on the CPU, in the order of rising length.

        alone  in place of the prefix's own choice
        """
        lengths = np.array([len(row) for row in tokens], dtype=np.int64)
        device, task = self.model.device, self.model.task
        size = 1 if (self.alone if alone is None else alone) else _BATCH
        for chosen in buckets(np.arange(len(tokens)), lengths, size):
            ids, mask = task.pad([tokens[row] for row in chosen])
            ids, mask = ids.to(device), mask.to(device)
            hidden = self.model.prefix(ids, mask)
            if self.is_pooled:
                hidden = task.features(hidden, mask)
            elif not self.exact:
                hidden = hidden.clamp(-_FLOAT16_MOST, _FLOAT16_MOST)
            kept = hidden.to(device="cpu", dtype=self.dtype)
            for place, row in enumerate(chosen):
                yield int(row), (kept[place] if self.is_pooled else kept[place, : lengths[row]]).clone()

    def gathered(self, tokens: Tokens, *, alone: bool | None = None) -> tuple[Tensor, ...]:
        """Return what is kept of each record, in their order."""
        found = dict(self.compute(tokens, alone=alone))
        return tuple(found[row] for row in range(len(tokens)))

    def fingerprint(self, tokens: Tokens) -> bytes:
        """Return a SHA-256 over all that decides what is kept: backbone, layers, form, software, and every token.

        It tells who knows a site's records that it is theirs, so it must be keyed before it is shown to anyone.
        """
        made_by = {
            "format": _FORMAT,
            "backbone": sorted(self.model.backbone.manifest.files.items()),
            "layers": self.model.prefix_layers,
            "task": self.model.task.spec.kind,
            "pooled": self.is_pooled,
            "alone": self.alone,
            "dtype": str(self.dtype),
            "software": [version("torch"), version("transformers")],
        }
        digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode() + b"\x00")
        digest.update(np.array([len(tokens), *(len(row) for row in tokens)], dtype="<i8").tobytes())
        for row in tokens:
            digest.update(np.asarray(row, dtype="<i4").tobytes())
        return digest.digest()
