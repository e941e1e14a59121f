"""The recipe fills what a scenario leaves open, never changes what it says, and explains both."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from common.errors import ConsiliumError
from simulations.cli import app
from simulations.recipe import RECIPE, Origin, completed
from simulations.scenario import explained, from_fields, shipped
from tests.simulations.scenarios import fields, toml


def by_name(path: Path, full: bool = False) -> dict[str, tuple[object, Origin]]:
    return {setting.name: (setting.value, setting.origin) for setting in explained(path, full)}


def test_a_scenario_that_says_nothing_of_training_is_the_recipe() -> None:
    scenario = from_fields(fields(training=None, privacy={"sampling_rate": None}))
    for advice in RECIPE:
        assert scenario.model_dump(mode="json")[advice.table][advice.key] == advice.value, advice.name


def test_what_a_scenario_says_is_never_changed() -> None:
    said = fields(training={"rounds": 3, "steps_per_round": 4, "learning_rate": 0.25, "schedule": "linear"})
    kept = completed(said)
    for table, keys in said.items():
        if isinstance(keys, dict):
            part = kept[table]
            assert isinstance(part, dict)
            assert {key: part[key] for key in keys} == keys


def test_rates_that_belong_together_come_together_or_not_at_all() -> None:
    """A site's rate is right beside FedAdam alone, and FedAdam's beside nothing else."""
    alone = from_fields(fields(training={"learning_rate": 0.25})).training
    assert (alone.server_optimizer, alone.server_learning_rate) == ("fedavg", 1.0)
    with pytest.raises(ConsiliumError, match=r"training\.learning_rate"):
        from_fields(fields(training={"learning_rate": None, "server_optimizer": "fedavg"}))


def test_a_table_of_a_wrong_form_is_refused_and_not_repaired() -> None:
    with pytest.raises(ConsiliumError, match="training"):
        from_fields({**fields(), "training": 3})


def test_it_is_told_who_decided_each_setting(tmp_path: Path) -> None:
    path = tmp_path / "scenario.toml"
    path.write_text(
        toml({**fields(training={"steps_per_round": None}), "full": {}}) + "\n[full.training]\nrounds = 9\n"
    )
    told, full = by_name(path), by_name(path, full=True)
    assert told["training.rounds"] == (2, Origin.SCENARIO)
    assert full["training.rounds"] == (9, Origin.SCENARIO)
    assert told["training.steps_per_round"] == (1, Origin.RECIPE)
    assert told["training.server_optimizer"] == ("fedavg", Origin.DEFAULT)
    assert told["privacy.clip_norm"] == (0.5, Origin.RECIPE)


@pytest.mark.parametrize("name", shipped())
def test_explain_prints_each_setting_with_its_reason_and_runs_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner().invoke(app, ["run", name, "--explain"])
    assert shown.exit_code == 0, shown.stderr
    printed = " ".join(shown.stdout.split())
    for advice in RECIPE:
        assert f"{advice.name} = " in printed
        assert advice.why in printed
    told = json.loads(CliRunner().invoke(app, ["run", name, "--explain", "--json"]).stdout)
    assert [setting["name"] for setting in told] == [advice.name for advice in RECIPE]
    assert not list(tmp_path.iterdir())
