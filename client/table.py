"""The columns of a query's result that a site needs, as text, in little more memory than the text itself.

A result arrives in batches of rows, whatever it comes from; columns that play no part are let go at once. Millions of
rows as Python objects would take several times what is kept here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError

BATCH_ROWS = 20_000
"""How many rows a source should hand over at a time."""
_NULL = -1
_TEXT: frozenset[type] = frozenset({str, int, type(None)})
_NUMBERS: frozenset[type] = _TEXT | {float, Decimal}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Values one after the other in UTF-8, and how many bytes each has; -1 for NULL."""

    text: bytes = field(repr=False)
    sizes: NDArray[np.int32] = field(repr=False)

    @classmethod
    def of(cls, values: Iterable[str | None]) -> _Chunk:
        # Half a surrogate pair is no text, but must not stop the others.
        raw = [None if value is None else value.encode(errors="replace") for value in values]
        sizes = np.array([_NULL if value is None else len(value) for value in raw], dtype=np.int32)
        return cls(b"".join(value for value in raw if value is not None), sizes)

    def __iter__(self) -> Iterator[str | None]:
        sizes = self.sizes.tolist()
        ends = accumulate((max(size, 0) for size in sizes), initial=0)
        for size, (start, end) in zip(sizes, pairwise(ends), strict=True):
            yield None if size == _NULL else self.text[start:end].decode()


class TextColumn:
    """One column of a result: text, or None for NULL, in the result's order; it can be read again and again."""

    def __init__(self, values: Iterable[str | None] = ()) -> None:
        self._chunks: list[_Chunk] = []
        self._length = 0
        self.extend(values)

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str | None]:
        for chunk in self._chunks:
            yield from chunk

    def extend(self, values: Iterable[str | None]) -> None:
        """Add what comes next."""
        chunk = _Chunk.of(values)
        self._chunks.append(chunk)
        self._length += len(chunk.sizes)


def collect(
    names: Sequence[str],
    batches: Iterable[Sequence[Sequence[object]]],
    wanted: Mapping[str, str],
    numbers: Collection[str] = (),
) -> dict[str, TextColumn]:
    """Keep the columns wanted of a result.

    names    of all the columns, in order
    batches  rows, each with one value a column
    wanted   what each column that is kept is for, as the field that names it is called; by the column's name
    numbers  names of columns that may also hold fractions

    Raises CSL-501 where two columns have one name, CSL-503 for a column that is not there, CSL-505 for one that is
    neither text nor whole numbers.
    """
    if len({name.casefold() for name in names}) != len(names):
        raise ConsiliumError(errors.DATA_QUERY, "two columns of the result have one name")
    for name, role in wanted.items():
        if name not in names:
            raise ConsiliumError(errors.DATA_COLUMN, f"{role} = {name!r}; the query returns {', '.join(names)}")
    columns = {name: (names.index(name), TextColumn()) for name in wanted}
    for rows in batches:
        for name, (place, column) in columns.items():
            column.extend(
                _as_text([row[place] for row in rows], wanted[name], name, _NUMBERS if name in numbers else _TEXT)
            )
    return {name: column for name, (_, column) in columns.items()}


def _as_text(values: Sequence[object], role: str, name: str, known: frozenset[type]) -> Iterator[str | None]:
    kinds = {type(value) for value in values} - known
    if kinds:
        kind = sorted(kind.__name__ for kind in kinds)[0]
        raise ConsiliumError(errors.DATA_VALUE, f"{role}: {name!r} is {kind}; read or cast it as text")
    return (None if value is None else str(value) for value in values)
