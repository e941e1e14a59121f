"""A search for settings: it reads no patient's records, keeps to its budget, and ends no worse than it began."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from simulations.cli import app
from simulations.scenario import from_fields
from simulations.tune.command import MOST
from simulations.tune.search import CLIP_NORMS, RATES, ROUNDS, SAMPLING_RATES, Settings, Tuned, candidates, search
from tests.encoders import write_encoder
from tests.simulations.scenarios import fields, toml, write_csv

OWN = Settings(learning_rate=0.1, clip_norm=0.3, sampling_rate=0.3, rounds=40)


def planted(best: Settings) -> tuple[list[tuple[Settings, int]], Settings]:
    """Search where one setting is best, and the longer the better; return what was tried and what won."""
    asked: list[tuple[Settings, int]] = []

    def trial(settings: Settings, rounds: int) -> float:
        asked.append((settings, rounds))
        return (0.9 if settings == best else 0.5) + rounds / 10_000

    return asked, search(OWN, 20, 3, trial)[1]


def test_what_is_planted_among_the_candidates_is_found() -> None:
    for best in candidates(OWN, 20, 3):
        asked, won = planted(best)
        assert won == best
        assert asked[-1][0] == best or (best, best.rounds) in asked


def test_few_go_on_to_all_rounds_and_the_scenarios_own_always_does() -> None:
    asked, _ = planted(candidates(OWN, 20, 3)[7])
    full = [settings for settings, rounds in asked if rounds == settings.rounds]
    assert full[0] == OWN
    assert len(full) <= 1 + 20 // 4
    assert len(asked) == 20 + len(full)


def test_where_nothing_is_better_the_scenarios_own_settings_stay() -> None:
    assert search(OWN, 20, 3, lambda *_: 0.5)[1] == OWN


def test_candidates_are_distinct_repeatable_and_no_more_than_there_are() -> None:
    assert len(RATES) * len(CLIP_NORMS) * len(SAMPLING_RATES) * len(ROUNDS) == MOST
    inside = Settings(learning_rate=0.1, clip_norm=CLIP_NORMS[0], sampling_rate=SAMPLING_RATES[0], rounds=ROUNDS[0])
    every = candidates(inside, MOST, 1)
    assert len(set(every)) == MOST
    assert candidates(inside, 9, 1) == every[:9]
    assert candidates(inside, 9, 2) != every[:9]


def test_settings_are_applied_to_rates_rounds_and_privacy_and_to_nothing_else() -> None:
    plain = from_fields(fields())
    changed = OWN.applied(plain)
    assert Settings.of(changed) == OWN
    assert changed.training.learning_rate == 0.1
    assert changed.training.server_learning_rate == plain.training.server_learning_rate
    adaptive = from_fields(fields(training={"server_optimizer": "fedadam"}))
    assert OWN.applied(adaptive).training.server_learning_rate == 0.1
    assert OWN.applied(adaptive).training.learning_rate == 0.5
    assert changed.privacy.epsilon == plain.privacy.epsilon
    assert changed.model_copy(update={"training": plain.training, "privacy": plain.privacy}) == plain


class Bench:
    """A folder with data, a tiny encoder and a scenario, and the command run over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_encoder(folder / "encoder")
        write_csv(folder / "notes.csv", rows=160, sites=("North 1", "South 2", "West", "East"))

    def tune(self, *options: str, **changes: object) -> Result:
        backbone = {"folder": str(self.folder / "encoder"), "licence": "Apache-2.0", "training_data": "none"}
        path = self.folder / "scenario.toml"
        path.write_text(toml(fields(backbone=backbone, adapter={"last_layers": 1}, **changes)))
        return CliRunner().invoke(app, ["tune", str(path), "--data", str(self.folder), "--threads", "1", *options])


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_records_that_may_be_patients_are_not_searched(bench: Bench) -> None:
    refused = bench.tune()
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith("CSL-511 ")
    assert "--public" in refused.stderr


@pytest.mark.parametrize("trials", ["1", "0", "-3", str(MOST + 1)])
def test_a_number_of_trials_that_makes_no_search_is_refused(bench: Bench, trials: str) -> None:
    refused = bench.tune("--public", "--trials", trials)
    assert refused.exit_code == 2
    assert refused.stderr.startswith("CSL-511 --trials") or "--trials" in refused.stderr


def test_without_validation_records_nothing_is_searched(bench: Bench) -> None:
    refused = bench.tune("--public", split={"validation": 0.0})
    assert refused.exit_code == 2
    assert "CSL-504" in refused.stderr


def test_the_result_is_a_scenarios_tables_and_says_on_whose_records(bench: Bench) -> None:
    out = bench.folder / "out"
    options = ("--public", "--trials", "2", "--out", str(out))
    ran = bench.tune(*options, training={"rounds": 4, "steps_per_round": 1, "server_optimizer": "fedadam"})
    assert ran.exit_code == 0, ran.stderr
    text = (out / "tuned.toml").read_text()
    found = Tuned.model_validate_json((out / "tuned.json").read_text())
    assert "TUNED on records that were said to be public: no patient's budget was spent" in text
    assert found.mark in ran.stdout
    merged = fields()
    for table, settings in tomllib.loads(text).items():
        old = merged[table]
        assert isinstance(old, dict)
        old.update(settings)
    merged["training"] = {**tomllib.loads(text)["training"], "learning_rate": 1.0, "steps_per_round": 1,
                          "server_optimizer": "fedadam"}  # fmt: skip
    assert Settings.of(from_fields(merged)) == found.best
    assert {trial.settings.rounds for trial in found.trials} >= {4}
    assert json.loads((out / "tuned.json").read_text())["records"] == "public"
