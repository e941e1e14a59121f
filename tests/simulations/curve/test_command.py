"""`consilium-sim curve`: nested labels, whole patients, one row a cell, and no figure without its marks."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from common.stopwatch import Stopwatch
from simulations.cli import app
from simulations.cohort import load_sites
from simulations.curve import study
from simulations.curve.cells import Curve
from simulations.curve.study import drawn, first_units, limited
from simulations.preparation import Prepared, prepare
from simulations.progress import SilentProgress
from simulations.scenario import load
from tests.simulations.scenarios import fields, toml
from tests.simulations.tiny import scenario


@pytest.fixture(scope="module")
def prepared(data: Path, encoder: Path) -> Prepared:
    narrow = partial(drawn, labels=20, seed=4)
    return prepare(scenario(encoder), data, "cpu", SilentProgress(), Stopwatch(), narrow=narrow)


def curve(data: Path, encoder: Path, *options: str, rate: float = 0.5, **changes: object) -> Result:
    """Run the command on the tiny notes."""
    tables: dict[str, object] = {
        "backbone": {"folder": str(encoder), "licence": "Apache-2.0", "training_data": "none"},
        "columns": {"unit": "patient"},
        "task": {"labels": ["sore", "hot"]},
        "adapter": {"last_layers": 1, "rank": 2},
        "privacy": {"unit": "patient", "max_records_per_unit": 4, "sampling_rate": rate},
    }
    chosen = fields(**{**tables, **changes})
    path = data / "curve.toml"
    path.write_text(toml(chosen))
    return CliRunner().invoke(app, ["curve", str(path), "--data", str(data), "--threads", "1", *options])


def test_more_labels_hold_all_of_the_fewer_and_never_exceed_what_is_said() -> None:
    units = np.unique(np.random.default_rng(1).integers(0, 40, size=200), return_inverse=True)[1]
    before: set[int] = set()
    for labels in (10, 30, 100, 1000):
        rows = first_units(units, labels).tolist()
        assert before < set(rows)
        assert len(rows) <= labels
        # Nothing of a unit is left behind, and another would have been too many.
        kept = set(units[rows].tolist())
        assert set(np.flatnonzero(np.isin(units, sorted(kept))).tolist()) == set(rows)
        assert kept == set(range(len(kept)))
        assert len(rows) == 200 or len(rows) + int((units == len(kept)).sum()) > labels
        before = set(rows)
    assert len(before) == 200


def test_one_unit_is_kept_even_where_it_has_more_records_than_asked_for() -> None:
    units = np.array([0, 0, 0, 1, 1, 1])
    assert len(first_units(units, 1)) == 3
    assert len(first_units(units[:0], 5)) == 0


def test_who_is_drawn_first_depends_on_the_seed_and_the_site_and_not_on_how_many_are_asked_for(
    data: Path, encoder: Path
) -> None:
    site, other, *_ = load_sites(scenario(encoder), data)
    few, more = drawn(site, 6, 4), drawn(site, 20, 4)
    assert 0 < len(few.train) <= 6 < len(more.train) <= 20
    assert set(few.train.contents) < set(more.train.contents) < set(site.train.contents)
    assert few.test is site.test
    assert len(few.validation) == 0
    assert drawn(site, 6, 5).train.contents != few.train.contents
    # The patients of one site say nothing of those of another: the same records elsewhere are drawn otherwise.
    moved = dataclasses.replace(site, site=other.site)
    assert drawn(moved, 6, 4).train.contents != few.train.contents
    np.testing.assert_array_equal(np.unique(few.train.units), np.arange(few.train.units.max() + 1))


def test_limited_sites_train_on_the_first_of_the_drawn_and_are_tested_on_the_same_records(prepared: Prepared) -> None:
    few = limited(prepared, 6)
    for site, small in zip(prepared.sites, few.sites, strict=True):
        assert 0 < len(small.train) <= 6
        assert set(small.train.contents) < set(site.train.contents)
        assert small.test is site.test
        features = few.training[site.site]
        np.testing.assert_array_equal(features.units, small.train.units)
        encoded = prepared.task.encode(small.train.contents, small.train.labels, small.train.units)
        np.testing.assert_array_equal(features.targets, encoded.targets)
        assert few.units[site.site] == len(np.unique(small.train.units))
        assert few.testing[site.site] is prepared.testing[site.site]


def test_each_cell_has_one_row_and_the_outputs_agree(
    data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--ways", "ffa-lora,feature-extraction", "--labels", "5,20", "--epsilon", "none,8", "--json")
    ran = curve(data, encoder, *options, "--out", str(tmp_path / "out"))
    assert ran.exit_code == 0, ran.stderr
    found = Curve.model_validate_json(ran.stdout)
    assert {(row.way, row.labels, row.epsilon, row.seed) for row in found.rows} == {
        (way, labels, epsilon, 0)
        for way in ("ffa-lora", "feature-extraction") for labels in (5, 20) for epsilon in (None, 8.0)
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "curve.json").read_text()) == json.loads(ran.stdout)
    assert "epsilon 32 at delta 4e-05 for one patient" in (tmp_path / "out" / "curve.html").read_text()
    chosen = load(data / "curve.toml")
    sites = load_sites(chosen, data)
    asked: list[int] = []

    def seen(*arguments: object, **named: object) -> Prepared:
        made = prepare(*arguments, **named)  # type: ignore[arg-type]
        asked.append(sum(len(features) for features in made.training.values()))
        return made

    monkeypatch.setattr(study, "prepare", seen)
    assert curve(data, encoder, "--labels", "5,20", "--epsilon", "none").exit_code == 0
    assert asked == [max(row.trained for row in found.rows)]
    for row in found.rows:
        assert row.interval[0] <= row.accuracy <= row.interval[1]
        # What trained is what was drawn, computed on no more than that.
        assert row.trained == sum(len(drawn(site, row.labels, row.seed).train) for site in sites)
        assert row.tested == found.rows[0].tested
    assert len({row.trained for row in found.rows}) == 2


def test_seeds_draw_other_records_and_the_stacked_engine_runs_private_cells(data: Path, encoder: Path) -> None:
    ran = curve(data, encoder, "--labels", "12", "--epsilon", "8", "--seeds", "2", "--engine", "stacked", "--json")
    assert ran.exit_code == 0, ran.stderr
    assert [row.seed for row in Curve.model_validate_json(ran.stdout).rows] == [0, 1]


def test_a_way_that_the_engine_cannot_run_is_refused_before_anything_is_read_where_its_cells_are_private(
    encoder: Path, tmp_path: Path
) -> None:
    options = ("--ways", "lora,ia3", "--labels", "12", "--engine", "stacked")
    refused = curve(tmp_path, encoder, *options, "--epsilon", "none,8")
    assert refused.stderr.startswith("CSL-520")
    assert "ia3 trains vectors" in refused.stderr
    # No engine runs what is not a study; what is missing then is the data.
    assert "CSL-501" in curve(tmp_path, encoder, *options, "--epsilon", "none").stderr


def test_a_step_that_samples_nobody_is_no_fault_without_privacy_either(data: Path, encoder: Path) -> None:
    options = ("--labels", "1", "--epsilon", "none", "--json")
    ran = curve(data, encoder, *options, rate=1e-6, training={"rounds": 1, "steps_per_round": 1})
    assert ran.exit_code == 0, ran.stderr


@pytest.mark.parametrize("options", [("--ways", "quantum"), ("--labels", "0"), ("--epsilon", "-1"), ("--seeds", "0")])
def test_what_cannot_be_asked_for_is_refused_before_anything_is_read(
    data: Path, encoder: Path, options: tuple[str, str]
) -> None:
    refused = curve(data, encoder, *options)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert options[0] in refused.stderr
