"""What leaves a site has the noise that its plan charges for: measured on whole updates, not on the source.

False-alarm rates are stated; the source is seeded, so what passes once passes always.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from client.training.features import Features
from client.training.loop import train_privately
from common.adapters import AdaptedModel, attach
from common.backbone import load
from common.privacy.plan import PrivacyPlan
from common.study import Unit
from common.task_specs import TextClassification
from common.tasks import task_for
from common.transfer import AdapterSpec, Training
from simulations.noise import SeededNoise
from tests.encoders import write_encoder

ALARM = 1e-6
TRAINING = Training(rounds=1, steps_per_round=3, learning_rate=0.5, schedule="constant")
PLAN = PrivacyPlan(
    unit=Unit.RECORD,
    max_records_per_unit=1,
    sampling_rate=0.1,
    noise_multiplier=1.7,
    clip_norm=0.3,
    steps_per_charge=3,
    max_charges=1,
    evaluation_noise_multiplier=5.0,
    evaluation_releases=0,
    delta=1e-5,
    population=50,
)


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> NDArray[np.float64]:
    """Updates of a site without records, which are noise alone, in units of the deviation that the plan charges for."""
    folder: Path = tmp_path_factory.mktemp("encoder")
    backbone = load(folder, write_encoder(folder))
    task = task_for(TextClassification(labels=("no", "yes")), backbone)
    model: AdaptedModel = attach(backbone, AdapterSpec(rank=4, last_layers=1), task, "5a" * 32)
    nobody = Features(model, task.encode([], [], np.zeros(0, dtype=np.int64)))
    noise = SeededNoise(21, "updates")
    start = np.zeros(model.dimension, dtype=np.float32)
    found = [
        train_privately(model, nobody, PLAN, TRAINING, noise, start=start, round_index=0).astype(np.float64)
        for _ in range(300)
    ]
    deviation = TRAINING.learning_rate * PLAN.noise_deviation / PLAN.divisor * math.sqrt(PLAN.steps_per_charge)
    return np.array(found) / deviation


def test_an_update_is_normal_with_the_charged_deviation(updates: NDArray[np.float64]) -> None:
    """Kolmogorov-Smirnov on all coordinates, false alarm 1e-6; a deviation wrong by 5 % is found."""
    assert stats.kstest(updates.ravel(), "norm").pvalue > ALARM
    assert stats.kstest(1.05 * updates.ravel(), "norm").pvalue < ALARM


def test_missing_noise_and_a_quarter_of_it_are_found(updates: NDArray[np.float64]) -> None:
    """The sum of squares is chi-square: what sabotage would leave is far outside its 1e-6 quantile."""
    size = updates.size
    low, high = stats.chi2.ppf(ALARM / 2, size), stats.chi2.ppf(1 - ALARM / 2, size)
    assert low < float((updates**2).sum()) < high
    assert float(((updates / 4.0) ** 2).sum()) < low


def test_coordinates_and_rounds_share_no_noise(updates: NDArray[np.float64]) -> None:
    """Correlations between neighbouring coordinates and between successive updates: 5.3 sigma each, 2e-7 in all."""
    for one, two in ((updates[:, :-1], updates[:, 1:]), (updates[:-1], updates[1:])):
        assert abs(float((one * two).mean())) < 5.3 / math.sqrt(one.size)


def test_a_smaller_band_gives_proportionally_more_noise() -> None:
    assert dataclasses.replace(PLAN, population=25).divisor == PLAN.divisor / 2
