"""A site's encoded records, ready to be batched, with the frozen part of the backbone computed once.

When adapters sit in the last layers only, the layers in front give every record the same hidden states in every step.
They are computed once and kept in float16 without padding (768 bytes a token at width 384); invented records are held
against direct computation. Where the head alone trains, one pooled float32 row a record is all that is kept. What is
kept of a record depends on that record alone, but for the last bits unless it is asked for alone: in training they move
a sum of clipped gradients by about 1e-7 clip norms.
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

from client.training.precision import Precision, computing_in
from common import errors
from common.adapters import AdaptedModel
from common.errors import ConsiliumError
from common.privacy.sensitive import PrivateCount
from common.tasks import Encoded, Task

_PREFIX_BATCH = 32
_FLOAT16_MOST = 65504.0
_INVENTED_LENGTHS = (3, 12, 7)
_CACHE_TOLERANCE = 0.02
_OVERHEAD_TOKENS = 60
"""What one more micro-batch costs, in tokens: measured 7 ms beside 130 us a token on one core."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Records padded to the longest of them.

    inputs   (n, t, h) float32 hidden states where the prefix is cached, (n, h) pooled ones where the head alone trains,
             else (n, t) int64 token ids
    mask     (n, t) int64, 1 where there is a token; (n, 1) for pooled ones
    targets  (n,) int64
    """

    inputs: Tensor
    mask: Tensor
    targets: Tensor


class Features:
    """Encoded records of one site and one split.

    model      whose prefix is cached; any model over the same backbone with the same prefix may be given later
    encoded    the records
    cache      False recomputes every layer in every step; so does a model without a frozen prefix
    precision  of :meth:`losses`, that is of training; predictions and the prefix are always in full precision
    alone      compute each record's prefix by itself: not even its last bit then depends on which others there are

    Raises CSL-330 if the cached prefix and the rest of the model do not add up to the model.
    """

    def __init__(
        self,
        model: AdaptedModel,
        encoded: Encoded,
        *,
        cache: bool = True,
        precision: Precision = Precision.FULL,
        alone: bool = False,
    ) -> None:
        self._precision, self._alone = precision, alone
        self._task: Task = model.task
        self._tokens = encoded.tokens
        self._prefix_layers = model.prefix_layers
        self._is_pooled = cache and model.prefix_layers == model.backbone.layers
        self.targets: NDArray[np.int64] = encoded.targets
        """(n,) int64."""
        self.units: NDArray[np.int64] = encoded.units
        """(n,) int64, the unit that owns each record, dense from 0."""
        self.lengths = np.array([len(row) for row in encoded.tokens], dtype=np.int64)
        """(n,) int64, tokens of each record."""
        self._hidden: tuple[Tensor, ...] | None = None
        if cache and model.prefix_layers > 0:
            self._hidden = self._compute_prefix(model, 1 if alone else _PREFIX_BATCH)
            self._check_cache(model)

    @classmethod
    def joined(cls, parts: tuple[Features, ...]) -> Features:
        """Return all records of several sites as one, sharing their memory: for a simulator's centralised baseline.

        Units stay apart: equal numbers at two sites are two units.
        """
        if not parts or len({(part._prefix_layers, part.is_cached) for part in parts}) != 1:
            raise ConsiliumError(errors.DATA_EMPTY, "features to join must exist and share their prefix")
        whole = cls.__new__(cls)
        first = parts[0]
        whole._task, whole._prefix_layers = first._task, first._prefix_layers
        whole._is_pooled, whole._precision = first._is_pooled, first._precision
        whole._alone = all(part._alone for part in parts)
        whole._tokens = tuple(row for part in parts for row in part._tokens)
        whole.targets = np.concatenate([part.targets for part in parts])
        whole.lengths = np.concatenate([part.lengths for part in parts])
        offsets = np.cumsum([0] + [part.unit_count.on_site() for part in parts])
        whole.units = np.concatenate([part.units + offset for part, offset in zip(parts, offsets, strict=False)])
        whole._hidden = tuple(row for part in parts for row in part._hidden or ()) if first.is_cached else None
        return whole

    def subset(self, rows: NDArray[np.int64], units: NDArray[np.int64]) -> Features:
        """Return some records as features of their own, sharing their memory: for a simulator's audit.

        rows   records to take, in this order; one may be taken more than once
        units  (len(rows),) int64, the unit that owns each of them there, dense from 0
        """
        part = Features.__new__(Features)
        part._task, part._prefix_layers = self._task, self._prefix_layers
        part._is_pooled, part._precision, part._alone = self._is_pooled, self._precision, self._alone
        part._tokens = tuple(self._tokens[row] for row in rows)
        part.targets, part.lengths, part.units = self.targets[rows], self.lengths[rows], units
        part._hidden = None if self._hidden is None else tuple(self._hidden[row] for row in rows)
        return part

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def unit_count(self) -> PrivateCount:
        """Number of units: it steers sampling and never leaves."""
        return count_units(self.units)

    @property
    def is_cached(self) -> bool:
        """Whether the frozen prefix was computed once."""
        return self._hidden is not None

    @property
    def is_each_alone(self) -> bool:
        """Whether nothing that is kept of a record depends, even in its last bit, on which others there are."""
        return self._alone or not self.is_cached

    @property
    def cache_bytes(self) -> int:
        """Memory that the cached prefix takes."""
        return sum(row.numel() * row.element_size() for row in self._hidden or ())

    def micro_batches(self, rows: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
        """Divide rows into micro-batches of at most ``size`` rows of similar length, with little padding.

        What is computed for a row does not depend on its neighbours, so the division is free; see :func:`divide`.
        """
        lengths = np.ones_like(self.lengths) if self._is_pooled and self._hidden is not None else self.lengths
        ordered = rows[np.argsort(lengths[rows], kind="stable")]
        start = 0
        for end in divide(lengths[ordered], size):
            yield ordered[start:end]
            start = end

    def batch(self, rows: NDArray[np.int64], device: torch.device | None = None) -> Batch:
        """Return rows padded to the longest of them, on the model's device."""
        if self._hidden is None:
            inputs, mask = self._task.pad([self._tokens[row] for row in rows])
        elif self._is_pooled:
            inputs = torch.stack([self._hidden[row] for row in rows])
            mask = torch.ones(len(rows), 1, dtype=torch.int64)
        else:
            inputs = pad_sequence([self._hidden[row] for row in rows], batch_first=True).float()
            if len(rows) and not inputs.shape[1]:
                # Records without any token are a masked place each: no model takes a sequence of length zero.
                inputs = inputs.new_zeros(len(rows), 1, inputs.shape[2])
            mask = (torch.arange(inputs.shape[1])[None, :] < torch.from_numpy(self.lengths[rows])[:, None]).long()
        targets = torch.from_numpy(self.targets[rows])
        return Batch(inputs.to(device), mask.to(device), targets.to(device))

    def logits(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Return (n, classes) float32 of the whole model; raises CSL-330 for a model with another prefix."""
        if self._hidden is None:
            return _tensor(model(batch.inputs, batch.mask))
        if model.prefix_layers != self._prefix_layers:
            raise ConsiliumError(errors.PREFLIGHT_REFUSED, "the cached prefix belongs to another model")
        return _tensor(model.head(batch.inputs)) if self._is_pooled else model.suffix(batch.inputs, batch.mask)

    def losses(self, model: AdaptedModel, batch: Batch) -> Tensor:
        """Return (n,) float32, each record's own loss."""
        with computing_in(self._precision, batch.inputs.device):
            logits = self.logits(model, batch)
        return self._task.loss(logits.float(), batch.targets)

    @torch.no_grad()
    def _compute_prefix(self, model: AdaptedModel, size: int) -> tuple[Tensor, ...]:
        rows: list[Tensor] = [torch.empty(0)] * len(self)
        device = device_of(model)
        for chosen in self.micro_batches(np.arange(len(self)), size):
            ids, mask = self._task.pad([self._tokens[row] for row in chosen])
            ids, mask = ids.to(device), mask.to(device)
            hidden = model.prefix(ids, mask)
            if self._is_pooled:
                stored = self._task.features(hidden, mask).cpu()
            else:
                stored = hidden.clamp(-_FLOAT16_MOST, _FLOAT16_MOST).to(device="cpu", dtype=torch.float16)
            for place, row in enumerate(chosen):
                kept = stored[place] if self._is_pooled else stored[place, : self.lengths[row]]
                rows[row] = kept.clone()
        return tuple(rows)

    def _check_cache(self, model: AdaptedModel) -> None:
        """Compare cached with direct logits, under random weights so that an empty head hides nothing.

        On invented records, never on the site's own: a refusal must tell nothing of them, and none of them may keep
        the site out (RULES 13, 14).
        """
        invented = copy.copy(self)
        invented._tokens = _invented(len(model.backbone.tokenizer))
        invented.lengths = np.array([len(row) for row in invented._tokens], dtype=np.int64)
        invented.targets = np.zeros(len(invented), dtype=np.int64)
        invented._hidden = invented._compute_prefix(model, _PREFIX_BATCH)
        start = model.read_vector()
        jitter = np.random.default_rng(0).normal(0.0, 0.05, len(start)).astype(np.float32)
        try:
            model.write_vector(start + jitter)
            device = device_of(model)
            with torch.no_grad():
                cached = invented.logits(model, invented.batch(np.arange(len(invented)), device))
                alone = [self._task.pad([row]) for row in invented._tokens]
                direct = torch.cat([model(ids.to(device), mask.to(device)) for ids, mask in alone])
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


def divide(lengths: NDArray[np.int64], size: int) -> list[int]:
    """Return where to cut rows of rising length, so that padding and the cost of each micro-batch are least together.

    lengths  (n,) int64, rising
    size     at most so many rows in a micro-batch, >= 1
    returns  the end of each micro-batch; the last is n; empty where there is no row

    Exact dynamic programme: a micro-batch costs a fixed overhead plus its rows times its longest, n * size comparisons.
    """
    count = len(lengths)
    cost = np.zeros(count + 1)
    previous = np.zeros(count + 1, dtype=np.int64)
    for end in range(1, count + 1):
        starts = np.arange(max(0, end - size), end)
        totals = cost[starts] + _OVERHEAD_TOKENS + (end - starts) * lengths[end - 1]
        best = int(np.argmin(totals))
        cost[end], previous[end] = totals[best], starts[best]
    ends, end = [], count
    while end > 0:
        ends.append(end)
        end = int(previous[end])
    return ends[::-1]


def _invented(vocabulary: int) -> tuple[NDArray[np.int32], ...]:
    """Return records of a few lengths whose tokens are spread over the vocabulary."""
    spread = np.linspace(0, vocabulary - 1, sum(_INVENTED_LENGTHS)).astype(np.int32)
    return tuple(np.split(spread, np.cumsum(_INVENTED_LENGTHS)[:-1]))


def device_of(model: torch.nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU for a model without one."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"a model returned {type(value).__name__}, not a tensor")
    return value
