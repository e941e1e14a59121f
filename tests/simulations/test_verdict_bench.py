"""The benchmark of verdicts draws what it says, plants what it says, and measures no row twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client.training.features import Features
from common.transfer import Personal
from simulations.benchmarks import verdict
from simulations.benchmarks._rows import Row
from simulations.scenario import Scenario, from_fields
from tests.encoders import write_encoder

HOSPITALS = [{"name": name, "patients": 60} for name in ("North", "East", "South", "West")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder)
    return from_fields(
        {
            "name": "tiny",
            "title": "A tiny study",
            "data": {"corpus": {"kind": "triage", "hospitals": HOSPITALS, "max_notes": 2}},
            "backbone": {"folder": str(folder), "licence": "Apache-2.0", "training_data": "none"},
            "task": {"labels": ["immediate", "urgent", "soon", "routine"], "max_tokens": 16},
            "adapter": {"rank": 2, "last_layers": 1},
            "training": {"rounds": 1, "steps_per_round": 1, "learning_rate": 1.0},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5},
        }
    )


@pytest.fixture
def whole(base: Scenario, monkeypatch: pytest.MonkeyPatch) -> verdict.Notes:
    monkeypatch.setattr(verdict, "SITES", 3)
    monkeypatch.setattr(verdict, "TRAINING", 20)
    monkeypatch.setattr(verdict, "HELD_OUT", 20)
    return verdict.notes(base)


def rows_of(features: Features) -> list[tuple[int, ...]]:
    return [tuple(row.tolist()) for row in features.batch(np.arange(len(features))).inputs[:, :4]]


@pytest.mark.parametrize(("kind", "recorded"), [("swapped", (0, 2, 1, 3)), ("coarser", (1, 1, 3, 3))])
def test_a_planted_site_differs_from_a_harmless_one_in_its_labels_alone(
    whole: verdict.Notes, kind: str, recorded: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = verdict.drawn(whole, kind, 3)
    monkeypatch.setattr(verdict, "_PLANTED", {})
    without = verdict.drawn(whole, kind, 3)
    (planted, *others), (honest, *rest) = made.sites, without.sites
    assert {len(side) for side in planted} == {20}
    for side, truth in zip((*planted, made.elsewhere), (*honest, without.elsewhere), strict=True):
        assert rows_of(side) == rows_of(truth)
        assert side.targets.tolist() == [recorded[target] for target in truth.targets]
        assert not np.array_equal(side.targets, truth.targets)
    for sides, truths in zip(others, rest, strict=True):
        assert all(np.array_equal(side.targets, truth.targets) for side, truth in zip(sides, truths, strict=True))


def test_a_row_counts_every_study_once(whole: verdict.Notes) -> None:
    for kind in ("harmless", "level"):
        row = verdict.measure(whole, kind, 0, size=2)
        assert 0 <= int(row["accused"] or 0) <= min(int(row["harmed"] or 0), 2 - int(row["worse"] or 0))
        assert row["studies"] == 2
        assert sum(int(row[name] or 0) for name in ("helped", "harmed", "undecided")) == 2
        assert 0 <= float(row["mean_shared"] or 0) <= 1


def test_a_whole_scenario_gives_each_site_a_verdict(base: Scenario) -> None:
    rows = verdict.federated(base, None, Personal(method="head", steps=3))
    assert [row["block"] for row in rows] == ["East", "North", "South", "West"]
    assert all("mean_backbone_only" in row for row in rows)


def test_finished_rows_are_kept_and_the_table_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def row(kind: str, block: int) -> Row:
        counts: Row = {
            "studies": 20,
            "harmed": 1,
            "helped": 4,
            "undecided": 15,
            "claims": 6,
            "another": 2,
            "accused": 1,
        }
        return {"kind": kind, "block": block, **counts, "mean_shared": 0.7, "mean_local_only": 0.6}

    out = tmp_path / "verdict.json"
    out.write_text(json.dumps([row(kind, block) for kind, block in verdict.cells()]))
    monkeypatch.setattr(verdict, "notes", lambda: pytest.fail("measured again"))
    assert verdict.main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "heart: give the folder of the public data sets with --data" in printed
    monkeypatch.setattr(verdict, "heart", lambda _: [row("heart", 0)])
    assert verdict.main(["--out", str(out), "--data", str(tmp_path)]) == 0
    assert "   heart      20" in capsys.readouterr().out
    assert json.loads(out.read_text())[-1]["kind"] == "heart"
    assert "harmless     200       -      10      10      60      40      20   2.4 to  9.0 %" in printed
