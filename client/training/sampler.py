"""Poisson sampling of privacy units: each enters a step by its own coin, exactly as the accountant assumes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.training.noise import NoiseSource
from common import errors
from common.errors import ConsiliumError
from common.privacy.sensitive import PrivateCount


def poisson_sample(units: PrivateCount, sampling_rate: float, noise: NoiseSource) -> NDArray[np.int64]:
    """Return the units drawn for one step, in rising order; none at all is an answer like any other.

    units          number of units the site holds
    sampling_rate  probability of each unit, in (0, 1], used as it is and never rounded to a batch size

    A coin falls on a grid of 2**-53, so its probability exceeds ``sampling_rate`` by less than 2**-53.
    Raises CSL-201 for a rate out of range.
    """
    if not 0.0 < sampling_rate <= 1.0:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, f"sampling_rate is {sampling_rate:g}, not within (0, 1]")
    return np.flatnonzero(noise.uniform(units.on_site()) < sampling_rate).astype(np.int64)


def cap_records(units: NDArray[np.int64], drawn: NDArray[np.int64], most: int, noise: NoiseSource) -> NDArray[np.int64]:
    """Return the records of the drawn units, in rising order; of a unit with more than ``most``, that many at random.

    units  (records,) int64, the unit that owns each record
    drawn  the units of this step
    most   the Study's max_records_per_unit, >= 1

    The choice concerns one unit's own records, so it changes no other unit's contribution.
    """
    rows = np.flatnonzero(np.isin(units, drawn))
    if len(rows) == 0:
        return rows
    order = np.lexsort((noise.uniform(len(rows)), units[rows]))
    owners = units[rows][order]
    starts = np.flatnonzero(np.r_[True, np.diff(owners) != 0])
    rank = np.arange(len(rows)) - np.repeat(starts, np.diff(np.r_[starts, len(rows)]))
    return np.sort(rows[order][rank < most])
