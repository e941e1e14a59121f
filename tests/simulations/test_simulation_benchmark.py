"""The benchmark of engines runs one task everywhere and keeps what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.study import MAX_SIMULATED_SITES
from simulations.benchmarks import _contenders, _private, simulation
from simulations.benchmarks._contenders import Task
from simulations.benchmarks._rows import Row

SMALL = Task(clients=12, examples=20, width=30, hidden=8, labels=3, rounds=3)


@pytest.mark.parametrize("engine", ["inline", "stacked"])
def test_every_engine_of_ours_trains_what_the_loop_trains(engine: str) -> None:
    rounds: list[int] = []
    loop = _contenders.PLAIN["loop"](SMALL, lambda: rounds.append(0))
    found = _contenders.PLAIN[engine](SMALL, lambda: rounds.append(1))
    assert rounds == [0] * SMALL.rounds + [1] * SMALL.rounds
    assert not np.allclose(loop, _contenders.start_of(SMALL))
    np.testing.assert_allclose(found, loop, rtol=1e-4, atol=1e-5)


def test_a_row_holds_what_the_process_did_between_its_first_and_last_round(tmp_path: Path) -> None:
    row = simulation.measure(
        sys.executable, "simulations.benchmarks._contenders", "loop", 12, ("--clients", "12", "--rounds", "30")
    )
    assert {"first_round_s", "first_round_cpu_s", "cpu_ms", "wall_ms"} <= set(row)
    assert float(row["first_round_s"] or 0) > 0
    assert float(row["wall_ms"] or 0) > 0


def test_an_engine_that_dies_is_a_row_that_says_so() -> None:
    row = simulation.measure(sys.executable, "simulations.benchmarks._contenders", "no-such-engine", 1)
    assert "status 2" in str(row["skipped"])


def test_the_time_of_what_a_process_started_counts() -> None:
    busy = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(i * i for i in range(10**7))']); input()"
    with subprocess.Popen([sys.executable, "-c", busy], stdin=subprocess.PIPE) as process:
        while simulation.tree_seconds(process.pid) < 0.3:
            assert process.poll() is None
        process.communicate(b"\n")


def test_an_environment_that_cannot_be_made_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(simulation, "ENVIRONMENT", tmp_path / "file" / "env")
    (tmp_path / "file").write_text("no folder")
    assert simulation.environment(("pfl",)) == (None, "NotADirectoryError")


def test_what_was_measured_is_kept_and_what_was_skipped_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, str]] = []

    def measured(task: str, engine: str) -> Row:
        asked.append((task, engine))
        return {"skipped": "no network"} if engine == "pfl" else {"first_round_s": 1.0, "cpu_ms": 2.0, "wall_ms": 2.0}

    monkeypatch.setattr(simulation, "plain", lambda engine: measured("plain", engine))
    monkeypatch.setattr(simulation, "private", measured)
    out = tmp_path / "simulation.json"
    assert simulation.main(["--out", str(out)]) == 0
    assert asked == simulation.cells()
    asked.clear()
    assert simulation.main(["--out", str(out)]) == 0
    assert asked == [("plain", "pfl")]
    assert len(json.loads(out.read_text())) == len(simulation.cells())
    assert "skipped: no network" in capsys.readouterr().out


def test_ten_thousand_sites_are_what_a_study_may_hold() -> None:
    assert _private.SIZES["many"].sites == MAX_SIMULATED_SITES == 10_000
