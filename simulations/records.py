"""Records as they come from a query or a generator, before they are divided into sites and splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from common import errors
from common.contents import Content, ordinal
from common.errors import ConsiliumError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Records:
    """Columns of one length; a part that the data does not have is None.

    contents        n of one kind: texts, images, recordings or rows
    labels          n strings; an empty one where the task does not look at it, or the record is for pretraining only
    sites           the institution of each record
    units           the privacy unit's own name, unique within a site
    groups          what must stay on one side of a split
    splits          train, validation or test
    subgroups       for each subgroup column n values
    """

    contents: tuple[Content, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    sites: tuple[str, ...] | None = field(default=None, repr=False)
    units: tuple[str, ...] | None = field(default=None, repr=False)
    groups: tuple[str, ...] | None = field(default=None, repr=False)
    splits: tuple[str, ...] | None = field(default=None, repr=False)
    subgroups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if any(len(column) != len(self.contents) for column in (self.labels, *self._columns())):
            raise ConsiliumError(errors.DATA_VALUE, "columns differ in length")

    def __len__(self) -> int:
        return len(self.contents)

    def in_canonical_order(self) -> Records:
        """Return the same records in an order that depends on their values only, not on the order they came in."""
        keys = list(zip(*self._columns(), map(ordinal, self.contents), self.labels, strict=True))
        order = sorted(range(len(self)), key=keys.__getitem__)

        def arranged(column: tuple[T, ...]) -> tuple[T, ...]:
            return tuple(column[row] for row in order)

        sites, units, groups, splits = (
            None if column is None else arranged(column)
            for column in (self.sites, self.units, self.groups, self.splits)
        )
        subgroups = {name: arranged(values) for name, values in self.subgroups.items()}
        return Records(arranged(self.contents), arranged(self.labels), sites, units, groups, splits, subgroups)

    def _columns(self) -> tuple[tuple[str, ...], ...]:
        """Return the columns that there are beside content and label."""
        parts = (self.sites, self.units, self.groups, self.splits)
        return (*(column for column in parts if column is not None), *self.subgroups.values())
