"""Labelled records as they come from a query or a generator, before they are divided into sites and splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from common import errors
from common.errors import ConsiliumError


@dataclass(frozen=True, slots=True)
class Records:
    """Columns of one length; a part that the data does not have is None.

    texts, labels   n strings each
    sites           the institution of each record
    units           the privacy unit's own name, unique within a site
    groups          what must stay on one side of a split
    splits          train, validation or test
    subgroups       for each subgroup column n values
    """

    texts: tuple[str, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    sites: tuple[str, ...] | None = field(default=None, repr=False)
    units: tuple[str, ...] | None = field(default=None, repr=False)
    groups: tuple[str, ...] | None = field(default=None, repr=False)
    splits: tuple[str, ...] | None = field(default=None, repr=False)
    subgroups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if any(len(column) != len(self.texts) for column in self._columns()):
            raise ConsiliumError(errors.DATA_VALUE, "columns differ in length")

    def __len__(self) -> int:
        return len(self.texts)

    def in_canonical_order(self) -> Records:
        """Return the same records in an order that depends on their values only, not on the order they came in."""
        rows = sorted(zip(*self._columns(), strict=True))
        columns = iter(zip(*rows, strict=True)) if rows else iter([()] * len(self._columns()))

        def following(column: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if column is None else tuple(next(columns))

        sites, units, groups, splits = (
            following(column) for column in (self.sites, self.units, self.groups, self.splits)
        )
        subgroups = {name: tuple(next(columns)) for name in self.subgroups}
        texts, labels = tuple(next(columns)), tuple(next(columns))
        return Records(texts, labels, sites, units, groups, splits, subgroups)

    def _columns(self) -> tuple[tuple[str, ...], ...]:
        parts = (self.sites, self.units, self.groups, self.splits)
        present = tuple(column for column in parts if column is not None)
        return (*present, *self.subgroups.values(), self.texts, self.labels)
