"""A site's encoded records, ready to be batched, with the frozen part of the backbone computed once.

When adapters sit in the last layers only, the layers in front give every record the same hidden states in every step.
They are computed once and kept in float16 without padding (768 bytes a token at width 384); invented records are held
against direct computation. Where the head alone trains, one pooled float32 row a record is all that is kept. See
:mod:`client.training.prefix` for what it depends on, and :mod:`client.training.store` for where it is kept.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from client.training.bucketing import buckets
from client.training.precision import Precision, computing_in
from client.training.prefix import FrozenPrefix, lengths_of
from client.training.store import FeatureStore, MemoryRows, PickedRows, Rows
from common import errors
from common.adapters import AdaptedModel
from common.anatomy import mean_over_tokens
from common.errors import ConsiliumError
from common.privacy.sensitive import PrivateCount
from common.tasks import Encoded, Targets, Task

_INVENTED_LENGTHS = (3, 12, 7)
_CACHE_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Batch:
    """Records padded to the longest of them.

    inputs   float32 hidden states where the prefix is cached, (n, t, h) of tokens; (n, h) pooled ones where the head
             alone trains; else what the backbone reads, (n, t) int64 of tokens
    mask     (n, t) int64, 1 where there is a token; (n, 1) for pooled ones and where there are no tokens
    targets  (n, ...) as the task's loss takes them
    numbers  (n, k) float32 that enter the head beside the features, for a task that has them
    """

    inputs: Tensor
    mask: Tensor
    targets: Tensor
    numbers: Tensor | None = None


class Features:
    """Encoded records of one site and one split.

    model      whose prefix is cached; any model over the same backbone with the same prefix may be given later
    encoded    the records
    objective  the task that encoded them, where it is not the study's own: what the first rounds learn without labels
    cache      False computes every layer in every step, in float32; so does a model without a frozen prefix
    precision  of :meth:`losses`, that is of training; predictions and the prefix are always in full precision
    alone      compute each record's prefix by itself: not even its last bit then depends on which others there are
    exact      keep hidden states in float32, at twice the bytes
    store      decides where the prefix is kept; None keeps all in memory. A step gives the same result in each case

    Raises CSL-330 if the cached prefix and the rest of the model do not add up to the model.
    """

    def __init__(
        self,
        model: AdaptedModel,
        encoded: Encoded,
        *,
        objective: Task | None = None,
        cache: bool = True,
        precision: Precision = Precision.FULL,
        alone: bool = False,
        exact: bool = False,
        store: FeatureStore | None = None,
    ) -> None:
        self._precision, self._alone = precision, alone
        self._task = model.task if objective is None else objective
        self._objective = objective
        self._inputs, self._numbers = encoded.inputs, encoded.numbers
        self._prefix_layers = model.prefix_layers
        self.targets: Targets = encoded.targets
        """(n, ...) as the task's loss takes them."""
        self.units: NDArray[np.int64] = encoded.units
        """(n,) int64, the unit that owns each record, dense from 0."""
        self.lengths = lengths_of(self._task, encoded.inputs)
        """(n,) int64, tokens of each record; 1 where records have none."""
        self._hidden: Rows | None = None
        self._sizes = np.zeros(len(self), dtype=np.int64)
        prefix = FrozenPrefix(model, self._task, alone=alone, exact=exact)
        self._is_pooled = cache and prefix.is_pooled
        if cache and model.prefix_layers > 0:
            self._check_cache(prefix)
            if store is None:
                self._hidden = MemoryRows(prefix.gathered(self._inputs))
            else:
                self._hidden = store.rows(prefix, self._inputs)
            self._sizes = prefix.sizes(self._inputs) * self._hidden.is_kept

    @classmethod
    def joined(cls, parts: tuple[Features, ...]) -> Features:
        """Return all records of several sites as one, sharing their memory: for a simulator's centralised baseline.

        Units stay apart: equal numbers at two sites are two units.
        """
        if not parts or len({(part._prefix_layers, part._hidden is None) for part in parts}) != 1:
            raise ConsiliumError(errors.DATA_EMPTY, "features to join must exist and share their prefix")
        whole = cls.__new__(cls)
        first = parts[0]
        whole._task, whole._objective, whole._prefix_layers = first._task, first._objective, first._prefix_layers
        whole._is_pooled, whole._precision = first._is_pooled, first._precision
        whole._alone = all(part._alone for part in parts)
        whole._inputs = tuple(row for part in parts for row in part._inputs)
        numbers = [part._numbers for part in parts if part._numbers is not None]
        whole._numbers = np.concatenate(numbers) if numbers else None
        whole.targets = np.concatenate([part.targets for part in parts])
        whole.lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.cumsum([0] + [part.unit_count.on_site() for part in parts])
        whole.units = np.concatenate([part.units + offset for part, offset in zip(parts, offsets, strict=False)])
        kept = [part._hidden for part in parts if part._hidden is not None]
        whole._hidden = PickedRows([(rows, row) for rows in kept for row in range(len(rows))]) if kept else None
        whole._sizes = np.concatenate([part._sizes for part in parts])
        return whole

    def subset(self, rows: NDArray[np.int64], units: NDArray[np.int64]) -> Features:
        """Return some records as features of their own, sharing their memory: for a simulator's audit.

        rows   records to take, in this order; one may be taken more than once
        units  (len(rows),) int64, the unit that owns each of them there, dense from 0
        """
        part = Features.__new__(Features)
        part._task, part._objective, part._prefix_layers = self._task, self._objective, self._prefix_layers
        part._is_pooled, part._precision, part._alone = self._is_pooled, self._precision, self._alone
        part._inputs = tuple(self._inputs[row] for row in rows)
        part._numbers = None if self._numbers is None else self._numbers[rows]
        part.targets, part.lengths, part.units = self.targets[rows], self.lengths[rows], units
        part._hidden = None if self._hidden is None else PickedRows([(self._hidden, int(row)) for row in rows])
        part._sizes = self._sizes[rows]
        return part

    def __len__(self) -> int:
        return len(self._inputs)

    @property
    def unit_count(self) -> PrivateCount:
        """Number of units: it steers sampling and never leaves."""
        return count_units(self.units)

    @property
    def is_cached(self) -> bool:
        """Whether the frozen prefix was computed once, not in every step."""
        return self._hidden is not None and self._hidden.is_kept

    @property
    def is_each_alone(self) -> bool:
        """Whether no record's prefix depends, even in its last bit, on which others there are."""
        return self._alone or self._hidden is None

    @property
    def cache_bytes(self) -> int:
        """What the cached prefix takes, in memory or on disk."""
        return int(self._sizes.sum())

    def micro_batches(self, rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
        """Divide rows into micro-batches of at most ``size`` rows of similar length, with little padding.

        See :mod:`client.training.bucketing`.
        """
        lengths = np.ones_like(self.lengths) if self._is_pooled and self._hidden is not None else self.lengths
        return buckets(rows, lengths, size)

    def batch(self, rows: NDArray[np.int64], device: torch.device | None = None) -> Batch:
        """Return rows padded to the longest of them, on the model's device."""
        if self._hidden is None:
            inputs, mask = self._task.pad([self._inputs[row] for row in rows])
        elif self._is_pooled:
            inputs = torch.stack(self._hidden.read(rows))
            mask = torch.ones(len(rows), 1, dtype=torch.int64)
        elif not self._task.has_lengths:
            kept = self._hidden.read(rows)
            inputs = torch.stack(kept).float() if kept else torch.zeros(0)
            mask = torch.ones(len(rows), 1, dtype=torch.int64)
        else:
            inputs = pad_sequence(self._hidden.read(rows), batch_first=True).float()
            if len(rows) and not inputs.shape[1]:
                # Records without any token are a masked place each: no model takes a sequence of length zero.
                inputs = inputs.new_zeros(len(rows), 1, inputs.shape[2])
            mask = (torch.arange(inputs.shape[1])[None, :] < torch.from_numpy(self.lengths[rows])[:, None]).long()
        targets = torch.from_numpy(self.targets[rows])
        if not self._task.pools:
            targets = targets[:, : mask.shape[1]]
        numbers = None if self._numbers is None else torch.from_numpy(self._numbers[rows]).to(device)
        return Batch(inputs.to(device), mask.to(device), targets.to(device), numbers)

    def outputs(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Return the task's outputs, examples in dimension 0; raises CSL-330 for a model with another prefix."""
        if model.prefix_layers != self._prefix_layers:
            raise ConsiliumError(errors.PREFLIGHT_REFUSED, "the cached prefix belongs to another model")
        if self._hidden is not None and self._is_pooled:
            return model.head_outputs(batch.inputs, batch.numbers)
        hidden = batch.inputs if self._hidden is not None else model.prefix(batch.inputs, batch.mask)
        return model.suffix(hidden, batch.mask, batch.numbers, objective=self._objective)

    def entering(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Return one row of features a record, (n, h), as they enter the head; the mean of those of its tokens."""
        if self._hidden is not None and self._is_pooled:
            return batch.inputs
        hidden = batch.inputs if self._hidden is not None else model.prefix(batch.inputs, batch.mask)
        found = model.features_behind(hidden, batch.mask)
        return found if self._task.pools else mean_over_tokens(found, batch.mask)

    def losses(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Return (n,) float32, each record's own loss."""
        with computing_in(self._precision, batch.inputs.device):
            outputs = self.outputs(model, batch)
        return self._task.loss(outputs.float(), batch.targets)

    def judged(self, model: AdaptedModel, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """Return each record's score in [0, 1], (n,), and its predicted label, (n,) int64, where the task has any."""
        outputs = self.outputs(model, batch)
        return self._task.scores(outputs, batch.targets), self._task.predictions(outputs)

    def _check_cache(self, prefix: FrozenPrefix) -> None:
        """Compare cached with direct outputs, under random weights so that an empty head hides nothing.

        On invented records, never on the site's own: a refusal must tell nothing of them, and none of them may keep
        the site out (RULES 13, 14).
        """
        model, invented, made = prefix.model, copy.copy(self), self._task.invented(_INVENTED_LENGTHS)
        invented._inputs, invented._numbers, invented.targets = made.inputs, made.numbers, made.targets
        invented.lengths = lengths_of(self._task, made.inputs)
        invented._hidden = MemoryRows(prefix.gathered(made.inputs, alone=False))
        start = model.read_vector()
        jitter = np.random.default_rng(0).normal(0.0, 0.05, len(start)).astype(np.float32)
        try:
            model.write_vector(start + jitter)
            device = device_of(model)
            with torch.no_grad():
                cached = invented.outputs(model, invented.batch(np.arange(len(invented)), device))
                invented._hidden = None
                alone = [invented.batch(np.array([row]), device) for row in range(len(invented))]
                direct = torch.cat([_first_place(invented.outputs(model, one), self._task) for one in alone])
                cached = _first_place(cached, self._task)
        finally:
            model.write_vector(start)
        # A backbone with a broken token is no fault of the cache; records that hold it count as zero in a step.
        readable = torch.isfinite(direct).all(dim=1)
        if not bool(readable.any()):
            return
        cached, direct = cached[readable], direct[readable]
        error = float((cached - direct).norm(dim=1).max() / direct.norm(dim=1).max().clamp(min=1e-6))
        if not error <= _CACHE_TOLERANCE:
            raise ConsiliumError(
                errors.PREFLIGHT_REFUSED,
                f"the frozen prefix of {self._prefix_layers} layers: cached logits differ by {error:.1e}",
            )


def count_units(units: NDArray[np.int64]) -> PrivateCount:
    """Return how many units there are, from the unit of each record, dense from 0."""
    return PrivateCount(int(units.max()) + 1 if len(units) else 0)


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU for a model without one."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _first_place(outputs: Tensor, task: Task) -> Tensor:
    """Return one row of outputs an example: of its first token where each has its own."""
    rows = outputs if task.pools else outputs[:, 0]
    return rows.reshape(len(rows), -1)
