"""Rules that make sites where the data names none: iid, label skew, size skew. Seeded; a unit is never divided.

All of them give every unit to exactly one site.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from simulations.scenario import Partition

_TRIES = 200


def assign(rule: Partition, units: NDArray[np.int64], labels: Sequence[str], seed: int) -> NDArray[np.int64]:
    """Return the site, 0 to ``rule.sites - 1``, of each record.

    units     (n,) int64, dense from 0: the privacy unit of each record
    labels    n label names; a unit counts for the first of its labels in the order given
    returns   (n,) int64; equal for records of one unit

    Raises CSL-512 where no draw gives each site ``rule.minimum`` records.
    """
    count = int(units.max()) + 1 if len(units) else 0
    sizes = np.bincount(units, minlength=count)
    _, first = np.unique(units, return_index=True)
    names = np.asarray(labels, dtype=object)[first]
    rng = np.random.default_rng([seed, 0x51])
    for _ in range(_TRIES):
        owners = _owners(rule, names, rng)
        held = np.bincount(owners, weights=sizes, minlength=rule.sites)
        if held.min() >= rule.minimum:
            return owners[units]
        if rule.rule == "iid":
            break
    raise ConsiliumError(
        errors.PARTITION_IMPOSSIBLE,
        f"partition.minimum: no division into {rule.sites} sites leaves each at least {rule.minimum} records",
    )


def _owners(rule: Partition, labels: NDArray[np.object_], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return the site of each unit."""
    owners = np.empty(len(labels), dtype=np.int64)
    everything = np.arange(len(labels))
    if rule.rule == "dirichlet":
        for name in sorted(set(labels)):
            members = everything[labels == name]
            owners[members] = _shared_out(members, rng.dirichlet([rule.alpha] * rule.sites), rng)
        return owners
    even = np.full(rule.sites, 1.0 / rule.sites)
    owners[:] = _shared_out(everything, even if rule.rule == "iid" else rng.dirichlet([rule.alpha] * rule.sites), rng)
    return owners


def _shared_out(members: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return a site for each member: sizes follow ``shares`` to the nearest whole number, who goes where is random."""
    edges = np.rint(np.cumsum(shares) * len(members)).astype(np.int64)
    return rng.permutation(np.minimum(np.searchsorted(edges, np.arange(len(members)), side="right"), len(shares) - 1))
