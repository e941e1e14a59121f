"""`consilium-sim audit` over a whole tiny study: an honest site is not accused, a broken one is (RULES 17)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from common.study import TrainingNoise
from simulations.audit.command import FEWEST, MOST
from simulations.audit.findings import Audit, Sabotage
from simulations.audit.study import audit_scenario
from simulations.cli import app
from simulations.progress import SilentProgress
from tests.simulations.scenarios import fields, toml, write_csv
from tests.simulations.tiny import scenario

TRAINING = {"rounds": 30, "steps_per_round": 1, "learning_rate": 1.0}


def audited(
    encoder: Path,
    data: Path,
    epsilon: float,
    sabotage: Sabotage | None,
    training: dict[str, object] | None = None,
    noise: TrainingNoise = TrainingNoise.GAUSSIAN,
) -> Audit:
    chosen = scenario(encoder, training={**TRAINING, **(training or {})})
    privacy = {"epsilon": epsilon, "noise": noise}
    chosen = chosen.model_copy(update={"privacy": chosen.privacy.model_copy(update=privacy)})
    return audit_scenario(
        chosen, data, canaries=40, sabotage=sabotage, threads=1, progress=SilentProgress(), noise_seed=5
    )


def test_an_honest_site_is_not_accused(encoder: Path, data: Path) -> None:
    found = audited(encoder, data, 8.0, None)
    assert found.faults == ()
    assert [game.name for game in found.games] == ["whole study", "one charge"]
    assert all(0.0 <= game.bound <= game.claim for game in found.games)
    assert found.games[0].claim < found.epsilon, "releases have their share of the study's epsilon"
    assert all(test.low <= 1.0 <= test.high for test in found.tests)


@pytest.mark.parametrize("sabotage", Sabotage)
def test_a_broken_site_is_accused(encoder: Path, data: Path, sabotage: Sabotage) -> None:
    assert audited(encoder, data, 8.0, sabotage).faults


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [None, *Sabotage])
def test_so_it_is_at_a_small_epsilon(encoder: Path, data: Path, sabotage: Sabotage | None) -> None:
    assert bool(audited(encoder, data, 1.0, sabotage).faults) == (sabotage is not None)


def test_without_noise_the_guesses_alone_refute_the_claim(encoder: Path, data: Path) -> None:
    found = audited(encoder, data, 8.0, Sabotage.NO_NOISE)
    assert found.games[1].is_exceeded
    assert found.games[1].bound > 1.2 * found.games[1].claim


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [None, *Sabotage])
@pytest.mark.parametrize("training", [{"steps_per_round": 2}, {"optimizer": "adam", "learning_rate": 0.01}])
def test_so_it_is_with_several_local_steps_and_with_adam(
    encoder: Path, data: Path, sabotage: Sabotage | None, training: dict[str, object]
) -> None:
    found = audited(encoder, data, 8.0, sabotage, training)
    assert bool(found.faults) == (sabotage is not None)
    assert "several local steps or Adam" in found.notes[0]


@pytest.mark.slow
@pytest.mark.parametrize("sabotage", [None, Sabotage.NO_NOISE])
def test_so_it_is_with_discrete_noise(encoder: Path, data: Path, sabotage: Sabotage | None) -> None:
    found = audited(encoder, data, 8.0, sabotage, noise=TrainingNoise.DISCRETE)
    assert bool(found.faults) == (sabotage is not None)


class Bench:
    """A folder with data, a tiny encoder and a scenario, and the command run over it."""

    def __init__(self, folder: Path, encoder: Path) -> None:
        self.folder, self.encoder = folder, encoder
        write_csv(folder / "notes.csv", rows=120, sites=("North 1", "South 2", "West", "East"))

    def audit(self, *options: str, **changes: object) -> Result:
        """Run the command; ``changes`` are of the scenario's fields."""
        backbone = {"folder": str(self.encoder), "licence": "Apache-2.0", "training_data": "none"}
        path = self.folder / "scenario.toml"
        chosen = fields(backbone=backbone, adapter={"targets": ["query", "value"], "last_layers": 1}, **changes)
        path.write_text(toml(chosen))
        return CliRunner().invoke(app, ["audit", str(path), "--data", str(self.folder), *options])

    def refused(self, code: str, *options: str, **changes: object) -> str:
        """Assert that there is one coded line and nothing else; return it."""
        result = self.audit(*options, **changes)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 2
        assert result.stdout == ""
        line = result.stderr.strip().splitlines()[-1]
        assert line.startswith(code + " "), result.stderr
        assert "Traceback" not in result.stderr
        return line


@pytest.fixture
def bench(tmp_path: Path, encoder: Path) -> Bench:
    return Bench(tmp_path, encoder)


@pytest.mark.parametrize("canaries", [FEWEST - 1, 0, -1, MOST + 1])
def test_too_few_or_too_many_canaries_are_refused(bench: Bench, canaries: int) -> None:
    assert "--canaries" in bench.refused("CSL-511", "--canaries", str(canaries))


@pytest.mark.parametrize("epsilon", ["0", "-1", "nan", "inf"])
def test_an_epsilon_that_is_none_is_refused(bench: Bench, epsilon: str) -> None:
    assert "--epsilon" in bench.refused("CSL-201", "--epsilon", epsilon)


def test_a_site_that_is_not_there_is_refused(bench: Bench) -> None:
    assert "Nowhere" in bench.refused("CSL-511", "--site", "Nowhere")


def test_a_cap_cannot_be_ignored_where_there_is_none(bench: Bench) -> None:
    line = bench.refused("CSL-511", "--sabotage", "ignored-cap", "--canaries", "16")
    assert "no cap" in line


def test_a_folder_that_cannot_be_written_is_refused_before_any_work(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    bench.refused("CSL-513", "--out", str(bench.folder / "file" / "out"))


def test_a_device_that_is_none_is_refused(bench: Bench) -> None:
    bench.refused("CSL-511", "--device", "tpu")


def test_json_alone_is_printed_and_a_broken_claim_ends_with_status_1(bench: Bench) -> None:
    out = bench.folder / "out"
    options = ("--json", "--canaries", "16", "--threads", "1", "--out", str(out))
    training = {"rounds": 12, "steps_per_round": 1}
    broken = bench.audit(*options, "--sabotage", "no-noise", training=training)
    assert broken.exit_code == 1, broken.stderr
    found = Audit.model_validate_json(broken.stdout)
    assert found.faults
    assert found.sabotage is Sabotage.NO_NOISE
    assert json.loads((out / "audit.json").read_text()) == json.loads(broken.stdout)
    assert "SABOTAGED" in (out / "audit.html").read_text()
