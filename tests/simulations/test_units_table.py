"""The table of units runs whole studies that differ in their unit alone, and measures no cell twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.study import Unit
from simulations import scenario as scenarios
from simulations.benchmarks import units
from simulations.benchmarks._rows import Row
from simulations.scenario import Scenario, from_fields
from tests.encoders import write_encoder

HOSPITALS = [{"name": name, "patients": 25} for name in ("North", "East", "South", "West")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    folder = tmp_path_factory.mktemp("encoder")
    write_encoder(folder)
    return from_fields(
        {
            "name": "tiny",
            "title": "A tiny study",
            "data": {"corpus": {"kind": "triage", "hospitals": HOSPITALS}},
            "backbone": {"folder": str(folder), "licence": "Apache-2.0", "training_data": "none"},
            "task": {"labels": ["immediate", "urgent", "soon", "routine"], "max_tokens": 16},
            "adapter": {"rank": 2, "last_layers": 1},
            "training": {"rounds": 2, "steps_per_round": 1, "learning_rate": 1.0},
            "privacy": {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5},
        }
    )


def test_both_units_see_the_same_notes_and_spend_the_same_on_what_they_protect(base: Scenario) -> None:
    rows = {unit: units.measure(units.variant(unit, 8.0, 3, base)) for unit in Unit}
    record, patient = rows[Unit.RECORD], rows[Unit.PATIENT]
    assert (record["records"], record["patients"]) == (patient["records"], patient["patients"])
    assert float(record["records"] or 0) > 2 * float(record["patients"] or 0)
    assert record["noise_multiplier"] == patient["noise_multiplier"]
    assert {patient[f"epsilon_{records}"] for records in units.SHOWN} == {record["epsilon_1"]}
    spent = [float(record[f"epsilon_{records}"] or 0) for records in units.SHOWN]
    assert spent == sorted(spent)
    assert spent[-1] > 3 * spent[0]
    for row in rows.values():
        assert 0 <= float(row["accuracy"] or 0) <= 1
        assert row["low"] is not None
        assert row["high"] is not None
        assert row["released"] is not None
        assert float(row["low"]) <= float(row["released"]) <= float(row["high"])


def test_the_cells_are_the_demo_with_repeated_patients() -> None:
    assert {(unit, epsilon) for unit, epsilon, _ in units.cells()} == {
        (unit, epsilon) for unit in Unit for epsilon in (8.0, 3.0)
    }
    demo = scenarios.load(scenarios.locate("demo"))
    for unit, epsilon, seed in units.cells():
        chosen = units.variant(unit, epsilon, seed)
        assert chosen.data.corpus is not None
        assert chosen.data.corpus.max_notes == 6
        assert chosen.privacy.max_records_per_unit == (6 if unit is Unit.PATIENT else 1)
        assert (chosen.privacy.unit, chosen.privacy.epsilon, chosen.seed) == (unit, epsilon, seed)
        assert (chosen.training, chosen.adapter, chosen.split) == (demo.training, demo.adapter, demo.split)


def test_a_cell_that_was_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[str, float, int]] = []

    def invented(chosen: Scenario) -> Row:
        privacy = chosen.privacy
        measured.append((privacy.unit.value, privacy.epsilon, chosen.seed))
        row: Row = {"unit": privacy.unit.value, "epsilon": privacy.epsilon, "seed": chosen.seed}
        spent = {f"epsilon_{records}": None if records == 6 else 1.0 * records for records in units.SHOWN}
        figures = {"noise_multiplier": 1.5, "accuracy": 0.8, "released": 0.81, "low": 0.7, "high": 0.9}
        return {**row, **spent, **figures}

    monkeypatch.setattr(units, "measure", invented)
    out = tmp_path / "units.json"
    assert units.main(["--out", str(out)]) == 0
    assert len(measured) == len(set(measured)) == len(units.cells())
    rows = json.loads(out.read_text())
    out.write_text(json.dumps(rows[:-1]))
    assert units.main(["--out", str(out)]) == 0
    assert measured[len(units.cells()) :] == [(rows[-1]["unit"], rows[-1]["epsilon"], rows[-1]["seed"])]
    assert json.loads(out.read_text()) == rows
    assert json.loads(out.with_suffix(".meta.json").read_text())["command"] == "make bench NAME=units"
    printed = capsys.readouterr().out
    assert "80.0 ± 0.0" in printed
    assert "none" in printed
