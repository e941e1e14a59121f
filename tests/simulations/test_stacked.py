"""Sites that train in one forward pass get the updates that they would get alone, and disturb each other in nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.training.features import Features
from client.training.gradients import PerExampleGradients
from client.training.loop import train_privately
from common.adapters import AdaptedModel, Vector, attach
from common.backbone import Backbone, load
from common.errors import ConsiliumError
from common.privacy.plan import PrivacyPlan
from common.study import TrainingNoise, Unit
from common.task_specs import TextClassification
from common.tasks import Task, task_for
from common.transfer import AdapterSpec, Training
from simulations.noise import SeededNoise
from simulations.stacked import Charged, Found, Stack, StackedTraining
from tests.encoders import WORDS, write_encoder

LABELS = ("home", "ward", "theatre")
TRAINING = Training(rounds=4, steps_per_round=3, learning_rate=0.5, micro_batch=4)
PLAN = PrivacyPlan(
    unit=Unit.RECORD,
    max_records_per_unit=1,
    sampling_rate=0.5,
    noise_multiplier=1.25,
    clip_norm=0.2,
    steps_per_charge=3,
    max_charges=4,
    evaluation_noise_multiplier=5.0,
    evaluation_releases=1,
    delta=1e-5,
    population=10,
)
PATIENTS = dataclasses.replace(PLAN, unit=Unit.PATIENT, max_records_per_unit=2)
SIZES = (9, 1, 0, 30, 4)
"""Records of each site: one has none, and one has a single record, which half of its steps leave out."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder: Path = tmp_path_factory.mktemp("encoder")
    return load(folder, write_encoder(folder))


@pytest.fixture(scope="module")
def task(backbone: Backbone) -> Task:
    return task_for(TextClassification(labels=LABELS, max_tokens=24), backbone)


def adapted(backbone: Backbone, task: Task, method: str, last_layers: int = 1) -> AdaptedModel:
    spec = AdapterSpec.model_validate({"method": method, "rank": 2, "last_layers": last_layers})
    return attach(backbone, spec, task, "5a" * 32)


def away(model: AdaptedModel) -> Vector:
    """Return a vector away from the start, so that no gradient is trivially zero."""
    start = model.read_vector()
    return start + np.random.default_rng(5).normal(0, 0.3, len(start)).astype(np.float32)


def records(model: AdaptedModel, size: int, seed: int, *, cache: bool = True) -> Features:
    dice = np.random.default_rng(seed)
    texts = [" ".join(dice.choice(WORDS, size=int(dice.integers(1, 20)))) for _ in range(size)]
    labels = [LABELS[int(dice.integers(len(LABELS)))] for _ in range(size)]
    # Three records a patient, so that the cap of two leaves one out.
    return Features(model, model.task.encode(texts, labels, np.arange(size, dtype=np.int64) // 3), cache=cache)


def sites(model: AdaptedModel, plan: PrivacyPlan, *, cache: bool = True) -> list[Charged]:
    return [
        Charged(
            records(model, size, place, cache=cache),
            dataclasses.replace(plan, population=10 * (place + 1)),
            SeededNoise(3, f"site-{place}"),
            away(model),
            round_index=1,
        )
        for place, size in enumerate(SIZES)
    ]


def alone(model: AdaptedModel, training: Training, made: list[Charged]) -> list[Vector]:
    return [
        train_privately(
            model, site.features, site.plan, training, site.noise, start=site.start, round_index=site.round_index
        )
        for site in made
    ]


def updates(found: list[Found]) -> list[Vector]:
    assert not [each for each in found if isinstance(each, ConsiliumError)]
    return [each for each in found if not isinstance(each, ConsiliumError)]


@pytest.mark.parametrize("method", ["head-only", "ffa-lora", "lora"])
@pytest.mark.parametrize("plan", [PLAN, PATIENTS], ids=["record", "patient"])
def test_stacked_sites_get_the_updates_of_the_loop(
    backbone: Backbone, task: Task, method: str, plan: PrivacyPlan
) -> None:
    model = adapted(backbone, task, method)
    together = updates(StackedTraining(model, TRAINING, plan.noise)(sites(model, plan)))
    for mine, theirs in zip(together, alone(model, TRAINING, sites(model, plan)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.9), ("adam", 0.0)])
def test_the_optimizer_is_each_sites_own(backbone: Backbone, task: Task, optimizer: str, momentum: float) -> None:
    model = adapted(backbone, task, "ffa-lora")
    training = Training.model_validate(TRAINING.model_dump() | {"optimizer": optimizer, "momentum": momentum})
    together = updates(StackedTraining(model, training, PLAN.noise)(sites(model, PLAN)))
    for mine, theirs in zip(together, alone(model, training, sites(model, PLAN)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("optimizer", "strength"), [("sgd", 0.5), ("sgd", 1.5), ("adam", 0.5)])
def test_each_site_is_pulled_towards_its_own_start(
    backbone: Backbone, task: Task, optimizer: str, strength: float
) -> None:
    model = adapted(backbone, task, "ffa-lora")
    training = Training.model_validate(TRAINING.model_dump() | {"optimizer": optimizer, "proximal": strength})
    together = updates(StackedTraining(model, training, PLAN.noise)(sites(model, PLAN)))
    free = updates(StackedTraining(model, TRAINING, PLAN.noise)(sites(model, PLAN)))
    for mine, theirs, other in zip(together, alone(model, training, sites(model, PLAN)), free, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-3, atol=1e-5)
        assert not np.allclose(mine, other, rtol=1e-2, atol=1e-5)


def test_layers_that_are_not_cached_are_stacked_too(backbone: Backbone, task: Task) -> None:
    model = adapted(backbone, task, "lora", last_layers=0)
    together = updates(StackedTraining(model, TRAINING, PLAN.noise)(sites(model, PLAN, cache=False)))
    for mine, theirs in zip(together, alone(model, TRAINING, sites(model, PLAN, cache=False)), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["head-only", "ffa-lora", "lora", "bottleneck"])
def test_each_copys_gradient_is_the_examples_own_by_opacus(backbone: Backbone, task: Task, method: str) -> None:
    model = adapted(backbone, task, method)
    vector = away(model)
    model.write_vector(vector)
    features = records(model, 7, 0)
    batch = features.batch(np.arange(7))
    copies = torch.from_numpy(np.stack([vector] * 7))
    mine = Stack(model).gradients(copies, lambda: features.losses(model, batch))
    with PerExampleGradients(model, model.trainable()) as gradients:
        theirs = gradients.rows(features.losses(model, batch))
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_the_model_is_as_before_whether_or_not_the_pass_succeeds(backbone: Backbone, task: Task) -> None:
    model = adapted(backbone, task, "lora")
    before, forwards = model.read_vector(), [layer.forward for layer in model.modules()]
    copies = torch.from_numpy(np.stack([away(model)] * 2))

    def broken() -> torch.Tensor:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError):
        Stack(model).gradients(copies, broken)
    StackedTraining(model, TRAINING, PLAN.noise)(sites(model, PLAN))
    assert np.array_equal(model.read_vector(), before)
    assert [layer.forward for layer in model.modules()] == forwards


def test_a_site_whose_noise_fails_has_an_error_and_the_others_their_updates(backbone: Backbone, task: Task) -> None:
    class Broken(SeededNoise):
        def gaussian(self, size: int) -> NDArray[np.float64]:
            return np.full(size, np.nan)

    model = adapted(backbone, task, "ffa-lora")
    made = sites(model, PLAN)
    made[1] = dataclasses.replace(made[1], noise=Broken(3, "site-1"))
    found = StackedTraining(model, TRAINING, PLAN.noise)(made)
    assert isinstance(found[1], ConsiliumError)
    assert found[1].code == "CSL-206"
    expected = alone(model, TRAINING, [site for place, site in enumerate(sites(model, PLAN)) if place != 1])
    for mine, theirs in zip(updates([each for place, each in enumerate(found) if place != 1]), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_broken_record_counts_as_zero_and_only_at_its_own_site(backbone: Backbone, task: Task) -> None:
    model = adapted(backbone, task, "head-only")
    made, sound = sites(model, PLAN), sites(model, PLAN)
    hidden = made[0].features._hidden
    assert hidden is not None
    hidden.read(np.array([3]))[0][0] = float("nan")
    found, expected = updates(StackedTraining(model, TRAINING, PLAN.noise)(made)), alone(model, TRAINING, sound)
    assert all(np.isfinite(update).all() for update in found)
    assert not np.allclose(found[0], expected[0], atol=1e-5)
    for mine, theirs in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_sites_of_different_rounds_take_the_rates_of_their_own(backbone: Backbone, task: Task) -> None:
    model = adapted(backbone, task, "head-only")

    def made() -> list[Charged]:
        return [dataclasses.replace(site, round_index=place % 3) for place, site in enumerate(sites(model, PLAN))]

    together = updates(StackedTraining(model, TRAINING, PLAN.noise)(made()))
    for mine, theirs in zip(together, alone(model, TRAINING, made()), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_plan_of_other_steps_is_refused_as_in_the_loop(backbone: Backbone, task: Task) -> None:
    model = adapted(backbone, task, "head-only")
    made = sites(model, dataclasses.replace(PLAN, steps_per_charge=1))
    assert {str(each)[:7] for each in StackedTraining(model, TRAINING, PLAN.noise)(made)} == {"CSL-201"}


@pytest.mark.parametrize("method", ["ia3", "layer-norm", "bitfit"])
def test_what_trains_outside_linear_layers_is_refused_by_name(backbone: Backbone, task: Task, method: str) -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-520.*is not in a linear layer"):
        StackedTraining(adapted(backbone, task, method), TRAINING, TrainingNoise.GAUSSIAN)


def test_discrete_noise_is_refused_since_it_needs_each_record_alone(backbone: Backbone, task: Task) -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-520.*one by one"):
        StackedTraining(adapted(backbone, task, "head-only"), TRAINING, TrainingNoise.DISCRETE)
