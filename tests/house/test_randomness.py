"""No seed reaches the noise but through a constructor in the simulator (RULES 15)."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from client.config import SiteConfig
from client.daemon import Daemon
from client.preparing import prepare
from client.run import serve
from client.training.noise import SystemNoise
from common.study import Study, TrainingNoise
from server.process import Operator
from simulations import run
from simulations.engines import EntropySource
from simulations.hosting import noise_of
from simulations.scenario import Scenario

ROOT = Path(__file__).resolve().parents[2]
SEEDED = {"default_rng", "manual_seed", "seed", "Random", "RandomState", "PCG64", "MT19937", "Generator", "fork_rng"}
INVENTED = {
    "client/examination.py",
    "client/training/features.py",
    "common/tasks/shaped.py",
    "common/tasks/tabular_classification.py",
    "common/tasks/texts.py",
}
"""Where seeded numbers make invented inputs and shaken weights to judge a model by; no noise comes from them."""


def code(*parts: str) -> Iterator[tuple[str, ast.Module]]:
    for part in parts:
        for path in sorted((ROOT / part).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def calls(tree: ast.Module) -> set[str]:
    """Return the last names of everything that is called."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func
            found.add(name.attr if isinstance(name, ast.Attribute) else name.id if isinstance(name, ast.Name) else "")
    return found


def names(model: type[BaseModel]) -> Iterator[str]:
    """Return the name of every field of a model and of the models within it, as its JSON schema has them."""

    def within(schema: object) -> Iterator[str]:
        if isinstance(schema, dict):
            properties = schema.get("properties")
            yield from properties if isinstance(properties, dict) else ()
            for value in schema.values():
                yield from within(value)
        if isinstance(schema, list):
            for value in schema:
                yield from within(value)

    yield from within(model.model_json_schema())


def test_hospital_operator_and_common_code_seeds_nothing_but_invented_inputs() -> None:
    seeding = {name for name, tree in code("common", "client", "server") if calls(tree) & SEEDED}
    assert seeding == INVENTED


def test_a_planted_seed_is_found() -> None:
    planted = ast.parse("import numpy as np\nnoise = np.random.default_rng(1).normal()")
    assert calls(planted) & SEEDED


def test_the_environment_is_read_nowhere_near_noise() -> None:
    reading = {
        name
        for name, tree in code("client/training", "common/privacy")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv"}
    }
    assert reading == set()


@pytest.mark.parametrize(("model", "allowed"), [(Study, set[str]()), (SiteConfig, set[str]()), (Scenario, {"seed"})])
def test_no_field_of_a_study_or_a_site_selects_noise_and_a_scenarios_seed_is_for_its_data(
    model: type[BaseModel], allowed: set[str]
) -> None:
    """``privacy.noise`` says which distribution, never from where: both are drawn from the system's CSPRNG."""
    suspicious = {name for name in names(model) if "seed" in name or "random" in name}
    assert suspicious == allowed
    assert {noise.value for noise in TrainingNoise} == {"gaussian", "discrete-gaussian"}


def test_the_noise_of_a_site_takes_no_seed() -> None:
    assert list(inspect.signature(SystemNoise).parameters) == []
    assert isinstance(noise_of(EntropySource(None), "site"), SystemNoise)


def given(tree: ast.Module, argument: str) -> Iterator[tuple[str, str]]:
    """Yield who is handed an argument by its name in a call, and what is handed over."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            for keyword in node.keywords:
                if keyword.arg == argument:
                    yield ast.unparse(node.func).rpartition(".")[2], ast.unparse(keyword.value)


def test_no_daemon_hands_over_a_source_of_noise_or_of_entropy_but_the_systems() -> None:
    """Constructors take one, so that simulations and tests can; a shipped process leaves each at what it is."""
    handed = {
        (argument, taker, value)
        for _, tree in code("client", "server")
        for argument in ("noise", "entropy")
        for taker, value in given(tree, argument)
    }
    assert {value for argument, _, value in handed if argument == "noise"} == {"SystemNoise()"}
    # What a party was made with goes to its parts; nobody gives it to a party.
    entropy = {(taker, value) for argument, taker, value in handed if argument == "entropy"}
    assert {value for _, value in entropy} <= {"entropy", "self._entropy"}
    assert not {taker for taker, _ in entropy} & {"Site", "Coordinator", "Daemon", "Operator", "serve"}


@pytest.mark.parametrize("entry", [Daemon, Operator, serve, prepare])
def test_nothing_that_starts_a_daemon_takes_a_source_of_randomness(entry: Callable[..., object]) -> None:
    taken = set(inspect.signature(entry).parameters)
    assert not {name for name in taken if any(word in name for word in ("noise", "entropy", "seed", "random"))}


def test_a_planted_source_is_found() -> None:
    planted = ast.parse("site = client.site.Site(agreed, name, entropy=SeededEntropy(1, name), noise=fixed)")
    assert set(given(planted, "entropy")) == {("Site", "SeededEntropy(1, name)")}
    assert set(given(planted, "noise")) == {("Site", "fixed")}


def test_a_seed_for_noise_comes_from_python_code_alone() -> None:
    """Only `run_scenario` has the argument, and the command does not give it."""
    assert inspect.signature(run.run_scenario).parameters["noise_seed"].default is None
    giving = {
        name
        for name, tree in code("simulations")
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "noise_seed"
    }
    assert giving == set()
