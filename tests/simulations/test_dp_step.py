"""The benchmark of the private step takes every step for real, on batches of one size, and keeps what it measured."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common import backbone as backbones
from common.adapters import AdaptedModel, attach
from common.tasks import Task
from common.transfer import AdapterSpec
from simulations.benchmarks import dp_step
from tests.encoders import write_encoder

KEYS = ["targets", "batch", "tokens", "ours", "hooks", "ghost", "memory_ours"]
QUIET = pytest.mark.filterwarnings("ignore:Secure RNG turned off", "ignore:Full backward hook is firing")
CELL = ("all-linear", 4, 8)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> backbones.Backbone:
    folder: Path = tmp_path_factory.mktemp("encoder")
    return backbones.load(folder, write_encoder(folder))


def test_coins_draw_one_number_of_units_and_other_ones_each_time() -> None:
    noise = dp_step.ExactBatch(5)
    drawn = [np.flatnonzero(noise.uniform(100) < 1 / 20) for _ in range(20)]
    assert {len(units) for units in drawn} == {5}
    assert len({tuple(units) for units in drawn}) > 10
    assert len(np.unique(noise.uniform(5))) == 5


@QUIET
def test_a_cell_measures_all_contenders_and_has_the_promised_keys(tiny: backbones.Backbone) -> None:
    memory = dp_step.memory_over_plain(tiny, ("qv", 64, 20))
    row = dp_step.measure(tiny, CELL, 2, memory)
    assert list(row) == KEYS
    assert (row["targets"], row["batch"], row["tokens"]) == CELL
    for name in ("ours", "hooks", "ghost", "memory_ours"):
        assert float(row[name] or 0.0) > 0.0


@QUIET
def test_every_contender_trains_the_same_parameters(tiny: backbones.Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    models = list[AdaptedModel]()

    def seen(backbone: backbones.Backbone, spec: AdapterSpec, task: Task, stream: str) -> AdaptedModel:
        models.append(attach(backbone, spec, task, stream))
        return models[-1]

    monkeypatch.setattr(dp_step, "attach", seen)
    bench = dp_step.Bench(tiny, CELL)
    models.clear()
    steps = bench.steps()
    before = [model.read_vector() for model in models]
    for step in steps.values():
        step()
    assert len(models) == len(steps) == 4
    assert len({model.names for model in models}) == 1
    for model, start in zip(models, before, strict=True):
        assert np.array_equal(start, before[0])
        assert not np.array_equal(model.read_vector(), start)


def test_the_cells_are_those_that_are_promised() -> None:
    assert set(dp_step.CELLS) == {
        (targets, batch, tokens) for targets in ("qv", "all-linear") for batch in (16, 64) for tokens in (64, 128)
    }


def test_a_cell_that_was_measured_is_not_measured_again(
    tmp_path: Path, tiny: backbones.Backbone, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, asked = tmp_path / "dp_step.json", list[dp_step.Cell]()

    def measure(backbone: object, cell: dp_step.Cell, turns: int, memory: float) -> dict[str, float | str]:
        asked.append(cell)
        return dict(zip(KEYS, (*cell, 1.0, 1.1, 1.6, memory), strict=True))

    monkeypatch.setattr(backbones, "load", lambda *_: tiny)
    monkeypatch.setattr(backbones, "locate_package", lambda _: Path())
    monkeypatch.setattr(dp_step, "memory_over_plain", lambda *_: 1.01)
    monkeypatch.setattr(dp_step, "measure", measure)
    monkeypatch.setattr(dp_step, "CELLS", dp_step.CELLS[:2])
    assert dp_step.main(["--out", str(out)]) == 0
    monkeypatch.setattr(dp_step, "CELLS", (*dp_step.CELLS, ("qv", 64, 64)))
    assert dp_step.main(["--out", str(out)]) == 0
    assert len(asked) == 3
    assert [list(row) for row in json.loads(out.read_text())] == [KEYS] * 3
    assert "ghost" in capsys.readouterr().out
