"""From a scenario to what each site holds: read or generate records, find their sites, divide them into splits.

A unit, and a group where one is named, is on one side of the split only, at all sites together: a disease that one
hospital trains on is never in another's test records. Nothing here depends on the order in which a query returns rows.

Dividing looks at all sites' records together, as only a simulator can: the division belongs to the experiment's set-up,
and the guarantee is for units within it. No hospital's own records are divided here (RULES 12).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.contents import pretrains_unlabelled
from client.data import Examples, SiteData
from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from simulations import corpora, partition, query
from simulations.records import Records
from simulations.scenario import Data, Scenario, Split

SPLITS = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
_NOWHERE = -1


def load_sites(scenario: Scenario, data_dir: Path | None) -> tuple[SiteData, ...]:
    """Return every site's splits, sorted by the sites' names.

    data_dir   the folder below which a query may read; None for a generated corpus

    Raises CSL-321 for a label that the task does not have, CSL-501 to CSL-505 for what is wrong with the data, CSL-511
    for a query without a folder, CSL-512 for fewer than three sites or a partition that cannot be had.
    """
    records = _records(scenario, data_dir).in_canonical_order()
    if not len(records):
        raise ConsiliumError(errors.DATA_EMPTY, "the query returns no rows, or none that can be read")
    _check_labels(records, scenario)
    sites, names = _sites(scenario, records)
    units = _units(records, sites)
    splits = divide(scenario.split, records, sites, units, scenario.seed)
    # Without a label nothing can be judged: what is for pretraining alone trains, or is left out with its unit's side.
    splits[[not scenario.task.accepts(label) for label in records.labels] & (splits != TRAIN)] = _NOWHERE
    return tuple(_site_data(records, units, splits, np.flatnonzero(sites == i), name) for i, name in enumerate(names))


def divide(
    rule: Split, records: Records, sites: NDArray[np.int64], units: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Return the split of each record: (n,) int64, 0 train, 1 validation, 2 test.

    sites, units   (n,) int64, dense from 0; units are distinct between sites

    Units and groups that share a record move together. Raises CSL-505 where a given split column tears one apart.
    """
    blocks = _blocks(units, records.groups)
    if records.splits is None:
        return _by_fractions(blocks, sites, (1 - rule.test - rule.validation, rule.validation, rule.test), seed)
    given = _given_splits(records.splits)
    if len(np.unique(blocks)) != len({*zip(blocks.tolist(), given.tolist(), strict=True)}):
        raise ConsiliumError(errors.DATA_VALUE, "split.column: a unit or a group is in two splits")
    training = np.flatnonzero(given == TRAIN)
    if rule.validation > 0 and len(training) and not (given == VALIDATION).any():
        _, own = np.unique(blocks[training], return_inverse=True)
        given[training] = _by_fractions(own, sites[training], (1 - rule.validation, rule.validation, 0.0), seed)
    return given


def site_name(text: str) -> SiteId:
    """Return a name of the form that a study allows: other characters become hyphens, at most 64 of them remain."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("._-")[:64].strip("._-")
    if not name or name in {"operator", "anyone"}:
        raise ConsiliumError(errors.DATA_VALUE, "a site's name has no letter or digit, or is 'operator' or 'anyone'")
    return SiteId(name)


def _records(scenario: Scenario, data_dir: Path | None) -> Records:
    if scenario.data.corpus is not None:
        return corpora.generate(scenario.data.corpus, scenario.seed)
    if scenario.data.query is None or scenario.columns is None:
        raise ConsiliumError(errors.SCENARIO_INVALID, "data: a query and its columns are needed")
    if data_dir is None:
        raise ConsiliumError(errors.SCENARIO_INVALID, "data.query: give the folder it reads with --data")
    return query.read_records(
        scenario.data.query, scenario.columns, scenario.split.column, data_dir, scenario.task, scenario.pretraining
    )


def _check_labels(records: Records, scenario: Scenario) -> None:
    unlabelled = {""} if pretrains_unlabelled(scenario.task, scenario.pretraining) else set()
    unknown = sorted(label for label in set(records.labels) - unlabelled if not scenario.task.accepts(label))
    if unknown:
        shown = ", ".join(repr(label[:40]) for label in unknown[:5])
        raise ConsiliumError(errors.TASK_LABEL_UNKNOWN, f"{shown}{' and others' if len(unknown) > 5 else ''}")


def _sites(scenario: Scenario, records: Records) -> tuple[NDArray[np.int64], tuple[SiteId, ...]]:
    """Return each record's index into the names, and the sorted names of the sites."""
    if scenario.partition is not None:
        units = _units(records, np.zeros(len(records), dtype=np.int64))
        owners = partition.assign(scenario.partition, units, records.labels, scenario.seed)
        return owners, tuple(SiteId(f"site-{i:03d}") for i in range(scenario.partition.sites))
    if records.sites is None:
        raise ConsiliumError(errors.SCENARIO_INVALID, "columns.site: needed without a partition")
    written = sorted(set(records.sites))
    names = {text: site_name(text) for text in written}
    if len(set(names.values())) != len(names):
        raise ConsiliumError(
            errors.DATA_VALUE, "columns.site: two sites have one name once it is written as a study needs"
        )
    _check_declared(scenario.data, written)
    if len(names) < 3:
        raise ConsiliumError(errors.PARTITION_IMPOSSIBLE, f"{len(names)} sites; a study needs at least 3")
    ordered = sorted(names.values())
    index = {text: ordered.index(name) for text, name in names.items()}
    return np.asarray([index[text] for text in records.sites], dtype=np.int64), tuple(ordered)


def _check_declared(data: Data, found: Sequence[str]) -> None:
    if not data.sites:
        return
    for site in data.sites:
        if site not in found:
            raise ConsiliumError(errors.DATA_EMPTY, f"data.sites: {site!r} has no records")
    for site in found:
        if site not in data.sites:
            raise ConsiliumError(errors.DATA_VALUE, f"data.sites does not name {site!r}, which has records")


def _units(records: Records, sites: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return each record's privacy unit, dense from 0, distinct between sites; without a column each record is one."""
    if records.units is None:
        return np.arange(len(records), dtype=np.int64)
    return _dense(zip(sites.tolist(), records.units, strict=True))


def _blocks(units: NDArray[np.int64], groups: Sequence[str] | None) -> NDArray[np.int64]:
    """Return the connected components of records that share a unit or a group, dense from 0."""
    if groups is None:
        return units
    parent = list(range(int(units.max()) + 1))

    def root(unit: int) -> int:
        while parent[unit] != unit:
            parent[unit] = parent[parent[unit]]
            unit = parent[unit]
        return unit

    first: dict[str, int] = {}
    for unit, group in zip(units.tolist(), groups, strict=True):
        parent[root(unit)] = root(first.setdefault(group, unit))
    return _dense(root(unit) for unit in units.tolist())


def _dense(keys: Iterable[Hashable]) -> NDArray[np.int64]:
    """Number keys from 0 in order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.asarray([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)


def _by_fractions(
    blocks: NDArray[np.int64], sites: NDArray[np.int64], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """Give whole blocks, in random order, to the split that lacks most at the sites concerned.

    blocks      (n,) int64, dense from 0
    fractions   of train, validation and test, adding up to one
    """
    width = int(sites.max()) + 1
    wanted = np.maximum(np.outer(fractions, np.bincount(sites, minlength=width)), 1e-9)
    have = np.zeros_like(wanted)
    chosen = np.zeros(int(blocks.max()) + 1, dtype=np.int64)
    open_splits = [split for split, fraction in enumerate(fractions) if fraction > 0]
    order = np.argsort(blocks, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(blocks[order])) + 1)
    for block in np.random.default_rng([seed, 0x5B]).permutation(len(members)):
        held = sites[members[block]]
        lacking = [float((1.0 - have[split, held] / wanted[split, held]).sum()) for split in open_splits]
        split = open_splits[int(np.argmax(lacking))]
        chosen[block] = split
        np.add.at(have[split], held, 1.0)
    return chosen[blocks]


def _given_splits(values: Sequence[str]) -> NDArray[np.int64]:
    unknown = sorted(set(values) - set(SPLITS))
    if unknown:
        raise ConsiliumError(errors.DATA_VALUE, f"split.column: {unknown[0][:40]!r} is none of {', '.join(SPLITS)}")
    return np.asarray([SPLITS.index(value) for value in values], dtype=np.int64)


def _site_data(
    records: Records, units: NDArray[np.int64], splits: NDArray[np.int64], rows: NDArray[np.int64], name: SiteId
) -> SiteData:
    parts = [_examples(records, units, rows[splits[rows] == split]) for split in range(3)]
    for split in (TRAIN, TEST):
        if not len(parts[split]):
            raise ConsiliumError(errors.DATA_EMPTY, f"{name} has no {SPLITS[split]} records")
    return SiteData(name, *parts)


def _examples(records: Records, units: NDArray[np.int64], rows: NDArray[np.int64]) -> Examples:
    subgroups = {name: tuple(values[i] for i in rows) for name, values in records.subgroups.items()}
    contents, labels = tuple(records.contents[i] for i in rows), tuple(records.labels[i] for i in rows)
    return Examples(contents, labels, _dense(units[rows].tolist()), subgroups)
