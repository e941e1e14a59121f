"""Trials of a search, by the code that trains every arm of a simulation."""

from __future__ import annotations

from pathlib import Path

import torch

from common import errors
from common.errors import ConsiliumError
from common.stopwatch import Stopwatch
from simulations.authoring import privacy_of
from simulations.comparison import FEDERATED, Comparison
from simulations.engines import EntropySource
from simulations.hosting import noise_of
from simulations.preparation import prepare, resolve_device
from simulations.progress import Progress
from simulations.scenario import Scenario, rate_name
from simulations.tune.search import Settings, Tuned, search


def tune_scenario(
    scenario: Scenario,
    data_dir: Path | None,
    *,
    trials: int,
    device: str,
    threads: int,
    progress: Progress,
    command: str = "",
) -> Tuned:
    """Search for a scenario's training settings. The caller has seen to it that its records are nobody's secret.

    trials   settings to try, the scenario's own among them
    threads  torch's threads; 0 leaves torch's choice

    Raises CSL-504 where there is nothing to validate on, and what is wrong with scenario, data or backbone.
    """
    if threads:
        torch.set_num_threads(threads)
    prepared = prepare(scenario, data_dir, resolve_device(device), progress, Stopwatch())
    validated = sum(len(features) for features in prepared.validation.values())
    if not validated:
        raise ConsiliumError(errors.DATA_EMPTY, "tune: no validation record; set split.validation")
    noise = noise_of(EntropySource(None), "arms")
    own = Settings.of(scenario)
    progress.phase("trials", trials + max(1, trials // 4))

    def trial(settings: Settings, rounds: int) -> float:
        tried = settings.applied(scenario)
        comparison = Comparison(tried, prepared, privacy_of(tried), progress, noise)
        accuracy = comparison.validation_accuracy(FEDERATED, tried.training.model_copy(update={"rounds": rounds}))
        progress.advance()
        return accuracy

    ran, best = search(own, trials, scenario.seed, trial)
    return Tuned(
        scenario=scenario.name,
        command=command,
        records="generated" if scenario.synthetic else "public",
        epsilon=scenario.privacy.epsilon,
        delta=scenario.privacy.delta,
        validated=validated,
        adaptive=rate_name(scenario.training) == "server_learning_rate",
        trials=ran,
        best=best,
    )
