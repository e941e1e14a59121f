"""Where computed features are kept: in memory while its budget lasts, then encrypted on disk, else nowhere.

How many records there are decides where, so where must change nothing (RULES 11): what cannot be kept is computed anew
in every step, in the very form in which it would have been kept. A cache is never worth failing a study, and never
right to be wrong: whatever happens to a file, its records are computed again, and the site's own log says why (CSL-340,
CSL-341). Nothing of it leaves the site. What fits in memory is never written to disk.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.training.folder import SealedFolder
from client.training.prefix import FrozenPrefix
from client.training.sealed import SealedFile, SealedWriter
from common import errors
from common.errors import ConsiliumError
from common.tasks import Inputs

_log = logging.getLogger("consilium.features")
_ON_DISK = {torch.float16: "<f2", torch.float32: "<f4"}


class Rows(ABC):
    """What steps read of records: hidden states, of tokens (tokens, width), or one pooled row each, (width,)."""

    is_kept: bool
    """Whether they were computed once, not whenever they are read."""

    @abstractmethod
    def __len__(self) -> int:
        """Return how many records there are."""

    @abstractmethod
    def read(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """Return some records' rows, on the CPU, in the order that is asked for."""


class FeatureStore:
    """Keeps the features of one site, for as long as this process runs or, on disk, longer.

    memory_bytes  all that is kept in memory through this store together, for the store's life
    folder        where the rest goes; None for nowhere
    """

    def __init__(self, *, memory_bytes: int, folder: SealedFolder | None = None) -> None:
        self._memory_left, self._folder = memory_bytes, folder

    def rows(self, prefix: FrozenPrefix, inputs: Inputs) -> Rows:
        """Compute what steps read of each record, find it on disk, or leave it to the steps."""
        sizes = prefix.sizes(inputs)
        if (size := int(sizes.sum())) <= self._memory_left:
            self._memory_left -= size
            return MemoryRows(prefix.gathered(inputs))

        def fill(writer: SealedWriter) -> None:
            for row, kept in prefix.compute(inputs):
                writer.write(row, kept.numpy().astype(_ON_DISK[kept.dtype]).tobytes())

        try:
            if self._folder is None:
                raise ConsiliumError(errors.FEATURES_NOT_KEPT, "memory does not hold them, and no folder is given")
            return _StoredRows(prefix, inputs, self._folder.obtain(prefix.fingerprint(inputs), sizes, fill))
        except ConsiliumError as fault:
            if fault.fault is not errors.FEATURES_NOT_KEPT:
                raise
            _log.warning("%s", fault)
            return _ComputedRows(prefix, inputs)


class MemoryRows(Rows):
    """Rows in memory."""

    is_kept = True

    def __init__(self, rows: Sequence[Tensor]) -> None:
        self._rows = tuple(rows)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """See :meth:`Rows.read`."""
        return [self._rows[row] for row in rows]


class PickedRows(Rows):
    """Rows of others in an order of their own, sharing what these hold.

    picks  whose, and which, each is
    """

    def __init__(self, picks: Sequence[tuple[Rows, int]]) -> None:
        self._sources = tuple({id(source): source for source, _ in picks}.values())
        number = {id(source): index for index, source in enumerate(self._sources)}
        self._source = np.array([number[id(source)] for source, _ in picks], dtype=np.int64)
        self._place = np.array([place for _, place in picks], dtype=np.int64)
        self.is_kept = all(source.is_kept for source in self._sources)

    def __len__(self) -> int:
        return len(self._place)

    def read(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """See :meth:`Rows.read`."""
        found: dict[int, Tensor] = {}
        for index in np.unique(self._source[rows]):
            mine = np.flatnonzero(self._source[rows] == index)
            found.update(zip(mine.tolist(), self._sources[index].read(self._place[rows[mine]]), strict=True))
        return [found[position] for position in range(len(rows))]


class _ComputedRows(Rows):
    """Rows that are kept nowhere."""

    is_kept = False

    def __init__(self, prefix: FrozenPrefix, inputs: Inputs) -> None:
        self._prefix, self._inputs = prefix, inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def read(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """See :meth:`Rows.read`."""
        return list(self._prefix.gathered([self._inputs[row] for row in rows]))


class _StoredRows(_ComputedRows):
    """Rows on disk, each decrypted when it is read; one that was damaged since the file was opened is computed."""

    is_kept = True

    def __init__(self, prefix: FrozenPrefix, inputs: Inputs, file: SealedFile) -> None:
        super().__init__(prefix, inputs)
        self._file, self._was_damaged = file, False

    def read(self, rows: NDArray[np.int64]) -> list[Tensor]:
        """See :meth:`Rows.read`."""
        return [self._read(int(row)) for row in rows]

    def _read(self, row: int) -> Tensor:
        dtype, shape = self._prefix.dtype, self._prefix.shape(len(self._inputs[row]))
        try:
            plain = self._file.read(row)
        except ConsiliumError as fault:
            if not self._was_damaged:
                _log.warning("%s", fault)
            self._was_damaged = True
            return super().read(np.array([row]))[0]
        return torch.tensor(np.frombuffer(plain, _ON_DISK[dtype]).reshape(shape), dtype=dtype)
