"""What a site trains and tests on: contents, labels and the privacy unit that owns each record.

These values never leave the site. Splits keep a unit, and a group where one is named, on one side only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.contents import Content
from common.errors import ConsiliumError
from common.identity import SiteId


@dataclass(frozen=True, slots=True)
class Examples:
    """Records with their labels.

    contents   n of one kind: texts, images, recordings or rows
    labels     n label names; an empty one where the study does not look at it, or pretrains on the record alone
    units      (n,) int64, the privacy unit of each record, dense from 0
    subgroups  for each subgroup column n values, used only in local reports
    """

    contents: tuple[Content, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)
    units: NDArray[np.int64] = field(repr=False)
    subgroups: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        sizes = {
            len(self.contents),
            len(self.labels),
            len(self.units),
            *(len(values) for values in self.subgroups.values()),
        }
        if len(sizes) != 1:
            raise ConsiliumError(errors.DATA_VALUE, "columns differ in length")

    def __len__(self) -> int:
        return len(self.contents)


@dataclass(frozen=True, slots=True)
class SiteData:
    """One site's three splits, disjoint in units."""

    site: SiteId
    train: Examples
    validation: Examples
    test: Examples
