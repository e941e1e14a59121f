"""The benches of a study's time and of its accuracy: they measure what they say, on a tiny study."""

from __future__ import annotations

import numpy as np
import pytest

from common.study import Unit
from simulations.benchmarks import study as bench_of_study
from simulations.benchmarks import utility
from simulations.benchmarks._rows import Row
from simulations.benchmarks.study import WAYS, Bench, Drawn, Study, compared, four_ways, whole_study
from simulations.scenario import Scenario
from tests.encoders import write_encoder
from tests.simulations.tiny import scenario, write_notes


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("study")
    write_notes(folder)
    write_encoder(folder / "encoder")
    return Bench.load(records(scenario(folder / "encoder")), folder)


def records(chosen: Scenario) -> Scenario:
    """Return the scenario with records as units, as the real one has them."""
    privacy = chosen.privacy.model_copy(update={"unit": Unit.RECORD, "max_records_per_unit": 1})
    return chosen.model_copy(update={"privacy": privacy})


def test_each_way_is_what_it_is_called(bench: Bench) -> None:
    for cache, buckets in WAYS.values():
        for features in Study(bench, layers=1, cache=cache, buckets=buckets).features:
            assert features.is_cached == cache
            assert isinstance(features, Drawn) != buckets


def test_records_stay_in_the_order_in_which_they_were_drawn(bench: Bench) -> None:
    features = next(iter(Study(bench, layers=1, buckets=False).features))
    rows = np.array([9, 2, 30, 4, 17], dtype=np.int64)
    assert [part.tolist() for part in features.micro_batches(rows, 2)] == [[9, 2], [30, 4], [17]]


def test_whole_studies_are_compared_with_the_one_that_computes_nothing_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_of_study, "LAYERS", {"last 2 layers": 1, "all layers": 0})
    monkeypatch.setattr(bench_of_study, "TURNS", 1)
    ways = {row["name"]: row for row in four_ways(bench)}
    assert ways["neither"]["times_faster"] == 1.0
    assert ways["buckets"]["seconds_prefix"] == 0.0
    assert all(
        row["seconds_study"] == pytest.approx(float(str(row["seconds_prefix"])) + 4 * float(str(row["seconds_round"])))
        for row in ways.values()
    )
    last, every = compared([whole_study(bench, name) for name in ("last 2 layers", "all layers")])
    assert every["times_faster"] == 1.0
    assert float(str(last["times_faster"])) == pytest.approx(
        float(str(every["seconds_study"])) / float(str(last["seconds_study"]))
    )
    assert 0.0 <= float(str(last["accuracy"])) <= 1.0


def test_a_study_in_rounds_moves_the_vector_and_every_site_trains(bench: Bench) -> None:
    study = Study(bench, layers=1)
    before = study.vector.copy()
    study.round()
    assert not np.array_equal(study.vector, before)
    assert sum(len(features) for features in study.features) == sum(bench.units.values())


def test_the_default_way_has_all_seeds_and_every_cell_is_there_once() -> None:
    cells = utility.cells()
    assert len(set(cells)) == len(cells) == 2 * 4 * (3 + 1)
    assert {cell.seed for cell in cells if cell.way == "head only"} == {utility.SEEDS[0]}
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)


def test_a_later_seed_takes_over_the_rate_that_the_first_one_chose() -> None:
    rows: list[Row] = [{"data": "sst2", "way": "last 2", "epsilon": 3.0, "seed": 7, "rate": 0.0125}]
    chosen = utility.variant(utility.Cell("sst2", "last 2", 3.0, 8))
    training = utility.Bench(utility.DATA, rows)._training(
        utility.Cell("sst2", "last 2", 3.0, 8),
        chosen,
        comparison=None,  # type: ignore[arg-type]
    )
    assert training.server_learning_rate == 0.0125


def test_a_variant_changes_adapter_epsilon_and_seed_and_nothing_else() -> None:
    cell = utility.Cell("medquad", "head only", 1.0, 9)
    plain, changed = utility.variant(utility.Cell("medquad", "last 2", 8.0, 7)), utility.variant(cell)
    assert (changed.adapter.method, changed.privacy.epsilon, changed.seed) == ("head-only", 1.0, 9)
    same = {"adapter": plain.adapter, "seed": plain.seed, "privacy": plain.privacy}
    assert changed.model_copy(update=same) == plain


def test_the_table_has_means_spreads_and_how_many_there_were() -> None:
    rows: list[Row] = [
        {"data": "sst2", "way": "last 2", "epsilon": 8.0, "seed": seed, "accuracy": accuracy}
        for seed, accuracy in ((7, 0.8), (8, 0.82))
    ]
    assert "81.0 ± 1.4 (2)" in utility.table(rows)
