from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import ConsiliumError
from simulations.partition import assign
from simulations.scenario import Partition

LABELS = ("a", "b", "c", "d")


def cells(owners: NDArray[np.int64], labels: list[str], sites: int) -> NDArray[np.float64]:
    """Return (sites, labels) shares of each label within each site."""
    seen = Counter(zip(owners.tolist(), labels, strict=True))
    found = [seen[site, name] for site in range(sites) for name in LABELS]
    counts = np.asarray(found, dtype=np.float64).reshape(sites, len(LABELS))
    shares: NDArray[np.float64] = counts / counts.sum(axis=1, keepdims=True)
    return shares


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(["iid", "dirichlet", "quantity"]),
    records=st.integers(60, 300),
    notes=st.integers(1, 4),
    sites=st.integers(3, 6),
    seed=st.integers(0, 10_000),
)
def test_every_record_has_one_site_and_no_unit_is_divided(
    rule: str, records: int, notes: int, sites: int, seed: int
) -> None:
    units = np.arange(records) // notes
    labels = [LABELS[unit % 4] for unit in units]
    chosen = Partition.model_validate({"rule": rule, "sites": sites, "alpha": 5.0, "minimum": 1})
    owners = assign(chosen, units, labels, seed)
    assert owners.shape == (records,)
    assert set(owners.tolist()) == set(range(sites))
    assert len(set(zip(units.tolist(), owners.tolist(), strict=True))) == len(set(units.tolist()))
    assert (assign(chosen, units, labels, seed) == owners).all()


def test_iid_sites_differ_by_at_most_one_unit() -> None:
    owners = assign(Partition(rule="iid", sites=7), np.arange(1000), ["a"] * 1000, 3)
    sizes = np.bincount(owners)
    assert sizes.max() - sizes.min() <= 1


def test_a_small_alpha_skews_labels_and_a_large_one_does_not() -> None:
    labels = [LABELS[i % 4] for i in range(4000)]

    def spread(alpha: float) -> float:
        owners = assign(Partition(rule="dirichlet", sites=5, alpha=alpha), np.arange(4000), labels, 1)
        return float(np.abs(cells(owners, labels, 5) - 0.25).max())

    assert spread(1000.0) < 0.05 < 0.3 < spread(0.3)


def test_a_small_alpha_skews_sizes_but_not_labels() -> None:
    labels = [LABELS[i % 4] for i in range(4000)]
    owners = assign(Partition(rule="quantity", sites=4, alpha=0.8, minimum=100), np.arange(4000), labels, 5)
    sizes = np.bincount(owners)
    assert sizes.max() > 2 * sizes.min()
    assert np.abs(cells(owners, labels, 4) - 0.25).max() < 0.12


@pytest.mark.parametrize("rule", ["iid", "dirichlet", "quantity"])
def test_what_cannot_be_divided_is_refused(rule: str) -> None:
    chosen = Partition.model_validate({"rule": rule, "sites": 5, "minimum": 10})
    with pytest.raises(ConsiliumError, match="CSL-512"):
        assign(chosen, np.arange(30), ["a"] * 30, 0)
