"""The cells of a curve: each a whole study, or the same sites together without clipping and noise."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.data import Examples, SiteData
from client.preflight import check
from common.stopwatch import Stopwatch
from simulations.arms import Quality
from simulations.authoring import Consortium, privacy_of
from simulations.comparison import Comparison
from simulations.curve.cells import Cell, Curve, Row, variant
from simulations.engines import EntropySource
from simulations.federation import agree, federate
from simulations.findings import wilson
from simulations.hosting import noise_of
from simulations.options import Engine
from simulations.preparation import Prepared, prepare, resolve_device
from simulations.progress import Progress, SilentProgress
from simulations.scenario import Baseline, Scenario
from simulations.summary import own_tests


def curve_scenario(
    scenario: Scenario,
    data_dir: Path | None,
    asked: Sequence[Cell],
    *,
    device: str,
    threads: int,
    progress: Progress,
    engine: Engine = Engine.INLINE,
    command: str = "",
) -> Curve:
    """Measure cells, preparing data and model once for those that share them.

    asked    cells that share seed and way stand together; at least one
    threads  torch's threads; 0 leaves torch's choice

    Raises what is wrong with scenario, data or backbone, and CSL-330 for a model whose gradients are not per example.
    """
    if threads:
        torch.set_num_threads(threads)
    progress.phase("cells", len(asked))
    rows: list[Row] = []
    whole: tuple[tuple[str, int], Prepared] | None = None
    for cell in asked:
        chosen = variant(scenario, cell)
        if whole is None or whole[0] != (cell.way, cell.seed):
            # Let go of the last one first: two may not fit in memory.
            whole = None
            narrow = partial(drawn, labels=max(other.labels for other in asked), seed=cell.seed)
            ready = prepare(chosen, data_dir, resolve_device(device), SilentProgress(), Stopwatch(), narrow=narrow)
            check(ready.model)
            whole = (cell.way, cell.seed), ready
        prepared = limited(whole[1], cell.labels)
        quality = quality_of(chosen, prepared, private=cell.epsilon is not None, engine=engine)
        rows.append(
            Row(
                way=cell.way,
                labels=cell.labels,
                epsilon=cell.epsilon,
                seed=cell.seed,
                accuracy=quality.accuracy,
                interval=wilson(quality.accuracy, quality.examples),
                trained=sum(len(site.train) for site in prepared.sites),
                tested=quality.examples,
            )
        )
        progress.advance()
    return Curve.of(scenario, rows, command)


def quality_of(scenario: Scenario, prepared: Prepared, *, private: bool, engine: Engine = Engine.INLINE) -> Quality:
    """Train prepared sites together and return the exact quality on all test records.

    private  the whole study: signed, in rounds, through secure aggregation, with real noise; else the same steps
             without clipping and noise
    """
    entropy, privacy, silent = EntropySource(None), privacy_of(scenario), SilentProgress()
    if not private:
        comparison = Comparison(scenario, prepared, privacy, silent, noise_of(entropy, "arms"))
        found = comparison.run(Baseline.FEDERATED_NONPRIVATE, scenario.training)
        return next(iter(found.pooled.values()))
    consortium = Consortium.draw(tuple(prepared.units), entropy)
    authored = agree(scenario, prepared, privacy, consortium)
    federation = federate(prepared, authored, consortium, entropy, silent, engine=engine)
    return Quality.pooled(own_tests(prepared, federation).values())


def drawn(site: SiteData, labels: int, seed: int) -> SiteData:
    """Return a site with its training units numbered in an order that seed and name alone decide, and the first kept.

    labels  most training records that remain, as in :func:`first_units`; there are no validation records
    """
    dice = np.random.default_rng([seed, zlib.crc32(site.site.encode())])
    places = dice.permutation(len(np.unique(site.train.units)))
    train = dataclasses.replace(site.train, units=places[site.train.units])
    nothing = np.empty(0, dtype=np.int64)
    return dataclasses.replace(
        site, train=_some(train, first_units(train.units, labels)), validation=_some(site.validation, nothing)
    )


def limited(prepared: Prepared, labels: int) -> Prepared:
    """Return drawn sites of which each trains on no more than so many records; more hold all of the fewer."""
    sites, training = [], {}
    for site in prepared.sites:
        rows = first_units(site.train.units, labels)
        train = _some(site.train, rows)
        sites.append(dataclasses.replace(site, train=train))
        training[site.site] = prepared.training[site.site].subset(rows, train.units)
    return dataclasses.replace(prepared, sites=tuple(sites), training=training)


def first_units(units: NDArray[np.int64], labels: int) -> NDArray[np.int64]:
    """Return the records, rising, of the first units that together have at most ``labels``, and of one unit at least.

    units  (records,) int64, the unit of each record, dense from 0
    """
    fitting = int(np.searchsorted(np.cumsum(np.bincount(units)), labels, side="right"))
    return np.flatnonzero(units < max(1, fitting))


def _some(examples: Examples, rows: NDArray[np.int64]) -> Examples:
    """Return some records, all of the first units or none, so that these stay dense from 0."""
    return Examples(
        tuple(examples.contents[row] for row in rows),
        tuple(examples.labels[row] for row in rows),
        examples.units[rows],
        {name: tuple(values[row] for row in rows) for name, values in examples.subgroups.items()},
    )
