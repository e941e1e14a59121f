"""A round of private training: weights move, the optimizer holds the model's parameters, the update is finite."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from client.training import loop
from client.training.features import Features
from client.training.loop import make_optimizer, take_steps, train_privately
from client.training.noise import SystemNoise
from client.training.plain import plain_sum, train_plainly
from common.adapters import METHODS, AdaptedModel, attach
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec, Training
from simulations.noise import SeededNoise
from tests.client.training.test_step import PLAN, Chosen

Encode = Callable[..., Encoded]
TRAINING = Training(rounds=4, steps_per_round=2, learning_rate=0.5, micro_batch=4)
TWO_STEPS = dataclasses.replace(PLAN, steps_per_charge=2)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", METHODS)
def test_every_trained_parameter_moves(
    backbone: Backbone, task: Task, encode: Encode, method: str, optimizer: str
) -> None:
    spec = AdapterSpec.model_validate({"method": method, "rank": 2, "last_layers": 1})
    model = attach(backbone, spec, task, "5a" * 32)
    start = model.read_vector()
    training = Training.model_validate(TRAINING.model_dump() | {"optimizer": optimizer})
    features, update = Features(model, encode(6)), np.zeros(model.dimension, dtype=np.float32)
    for round_index in model.phases():
        update += train_privately(
            model, features, TWO_STEPS, training, SystemNoise(), start=start + update, round_index=round_index
        )
    assert update.dtype == np.float32
    assert np.isfinite(update).all()
    offset = 0
    for name, parameter in model.trainable():
        assert np.abs(update[offset : offset + parameter.numel()]).max() > 0, name
        offset += parameter.numel()
    # An update that nearly cancels its start is rounded at the size of the start.
    assert np.allclose(model.read_vector(), start + update, atol=1e-6)


def test_the_optimizer_holds_exactly_the_models_parameters(model: AdaptedModel) -> None:
    parameters = [parameter for _, parameter in model.trainable()]
    for kind in ("sgd", "adam"):
        optimizer = make_optimizer(Training.model_validate(TRAINING.model_dump() | {"optimizer": kind}), parameters)
        held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        assert [id(p) for p in held] == [id(p) for p in model.parameters() if p.requires_grad]


def test_an_optimizer_on_other_parameters_is_noticed(
    model: AdaptedModel, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opacus issue 820: training runs, epsilon is spent, and the weights never move."""

    def stale(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return make_optimizer(training, [nn.Parameter(parameter.detach().clone()) for parameter in parameters])

    monkeypatch.setattr(loop, "make_optimizer", stale)
    with pytest.raises(ConsiliumError, match=r"CSL-330.*did not move"):
        train_privately(
            model,
            Features(model, encode(4)),
            TWO_STEPS,
            TRAINING,
            SystemNoise(),
            start=model.read_vector(),
            round_index=0,
        )


def test_only_empty_batches_still_give_a_noise_update(model: AdaptedModel, encode: Encode) -> None:
    start = model.read_vector()
    update = train_privately(
        model,
        Features(model, encode(4)),
        TWO_STEPS,
        TRAINING,
        Chosen(drawn=(), shock=1.0),
        start=start,
        round_index=0,
    )
    rate = 0.5 * (1.0 + TRAINING.schedule_factor(1 / 8))
    assert np.allclose(update, -rate * TWO_STEPS.noise_deviation / TWO_STEPS.divisor, rtol=1e-3)


def test_a_site_with_no_records_sends_noise(model: AdaptedModel, encode: Encode) -> None:
    update = train_privately(
        model,
        Features(model, encode(0)),
        TWO_STEPS,
        TRAINING,
        SystemNoise(),
        start=model.read_vector(),
        round_index=0,
    )
    assert np.isfinite(update).all()


def test_a_round_depends_on_its_start_and_not_on_the_models_past(model: AdaptedModel, encode: Encode) -> None:
    features, start = Features(model, encode(6)), model.read_vector()
    first = train_privately(model, features, TWO_STEPS, TRAINING, SeededNoise(1, "x"), start=start, round_index=1)
    model.write_vector(np.zeros(model.dimension, dtype=np.float32))
    again = train_privately(model, features, TWO_STEPS, TRAINING, SeededNoise(1, "x"), start=start, round_index=1)
    assert np.array_equal(first, again)


def test_two_sites_never_draw_the_same_noise(model: AdaptedModel, encode: Encode) -> None:
    features, start = Features(model, encode(0)), model.read_vector()
    updates = [
        train_privately(model, features, TWO_STEPS, TRAINING, SystemNoise(), start=start, round_index=0)
        for _ in range(2)
    ]
    assert abs(np.corrcoef(updates[0], updates[1])[0, 1]) < 6 / np.sqrt(model.dimension)


def test_the_schedule_runs_over_the_whole_study(model: AdaptedModel) -> None:
    rates = []
    for round_index in range(TRAINING.rounds):
        update = take_steps(
            model,
            TRAINING.model_copy(update={"steps_per_round": 1}),
            lambda: np.ones(model.dimension),
            start=np.zeros(model.dimension, dtype=np.float32),
            round_index=round_index,
        )
        rates.append(-float(update[0]))
    assert rates == pytest.approx([0.5 * TRAINING.schedule_factor(r / 4) for r in range(4)], rel=1e-5)
    assert rates[0] > rates[-1] > 0


def pulled(model: AdaptedModel, features: Features, strength: float, steps: int = 2, **changes: object) -> bytes:
    """Return the bytes of a seeded round's update under FedProx."""
    training = Training.model_validate(
        TRAINING.model_dump() | {"proximal": strength, "steps_per_round": steps} | changes
    )
    plan = dataclasses.replace(PLAN, steps_per_charge=steps)
    start, noise = away(model), SeededNoise(1, "x")
    return train_privately(model, features, plan, training, noise, start=start, round_index=0).tobytes()


def away(model: AdaptedModel) -> NDArray[np.float32]:
    """Return one start that is not zero."""
    return np.linspace(-0.5, 0.5, model.dimension, dtype=np.float32)


def test_a_pull_changes_nothing_where_it_is_zero_or_a_round_has_one_step(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(6))
    plain = train_privately(
        model, features, TWO_STEPS, TRAINING, SeededNoise(1, "x"), start=away(model), round_index=0
    ).tobytes()
    assert pulled(model, features, 0.0) == plain
    assert pulled(model, features, 0.5) != plain
    assert pulled(model, features, 0.5, steps=1) == pulled(model, features, 0.0, steps=1)


def test_a_strong_pull_keeps_the_weights_near_the_rounds_start(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(6))
    rate = {"learning_rate": 0.05, "schedule": "constant"}
    lengths = [
        float(np.linalg.norm(np.frombuffer(pulled(model, features, strength, steps=40, **rate), dtype=np.float32)))
        for strength in (0.0, 1.0, 20.0)
    ]
    assert lengths[0] > 1.2 * lengths[1] > 1.2 * 2.0 * lengths[2]


def test_the_pull_is_the_strength_times_the_distance_whatever_the_gradient(model: AdaptedModel) -> None:
    """In closed form: with a gradient of one, a step leaves ``1 - rate * strength`` of the distance, minus ``rate``."""
    training = Training(
        rounds=1, steps_per_round=5, learning_rate=0.1, schedule="constant", proximal=2.0, optimizer="sgd"
    )
    update = take_steps(model, training, lambda: np.ones(model.dimension), start=away(model), round_index=0)
    distance = 0.0
    for _ in range(5):
        distance = distance * (1 - 0.1 * 2.0) - 0.1
    assert update == pytest.approx(np.full(model.dimension, distance), rel=1e-4)


@pytest.mark.parametrize(
    "adapter",
    [{"method": "rolora"}, {"method": "ffa-lora", "rank": 4, "site_ranks": {"site-000": 2}}],
    ids=["factors by turns", "ranks that differ"],
)
def test_the_pull_is_of_each_weight_towards_its_own_start(
    backbone: Backbone, task: Task, adapter: dict[str, object]
) -> None:
    """Where some weights rest in a round, and where the vector has another order than the gradient."""
    spec = AdapterSpec.model_validate({"rank": 2, "last_layers": 1, **adapter})
    model = attach(backbone, spec, task, "5a" * 32)
    training = Training(rounds=2, steps_per_round=3, learning_rate=0.1, schedule="constant", proximal=2.0)
    with model.in_round(0):
        gradient = np.linspace(0.5, 1.5, model.active_dimension)
        update = take_steps(model, training, lambda: gradient, start=away(model), round_index=0)
        moving = {name for name, _ in model.trainable()}
    parts = [np.full(model.get_parameter(name).numel(), float(name in moving)) for name in model.names]
    wanted = np.concatenate(parts)
    wanted[wanted == 1.0] = gradient * -0.1 * (1 + 0.8 + 0.8**2)
    assert update == pytest.approx(model.as_vector(wanted), rel=1e-4)


def test_a_plan_for_other_steps_is_refused(model: AdaptedModel, encode: Encode) -> None:
    with pytest.raises(ConsiliumError, match="CSL-201"):
        train_privately(
            model, Features(model, encode(2)), PLAN, TRAINING, SystemNoise(), start=model.read_vector(), round_index=0
        )


def test_plain_gradients_are_the_private_ones_without_clip_and_noise(model: AdaptedModel, encode: Encode) -> None:
    features = Features(model, encode(7))
    wide = dataclasses.replace(TWO_STEPS, clip_norm=1e6, sampling_rate=0.5, population=7)
    start = model.read_vector()
    private = train_privately(model, features, wide, TRAINING, Chosen(), start=start, round_index=0)
    plain = train_plainly(model, features, TRAINING, Chosen(), start=start, round_index=0, sampling_rate=0.5)
    assert np.allclose(private, plain, rtol=1e-3, atol=1e-6)


def test_a_plain_round_whose_samples_are_empty_moves_nothing_and_is_no_fault(
    model: AdaptedModel, encode: Encode
) -> None:
    update = train_plainly(
        model,
        Features(model, encode(4)),
        TRAINING,
        Chosen(drawn=()),
        start=away(model),
        round_index=0,
        sampling_rate=0.5,
    )
    assert not update.any()


def test_plain_training_lowers_the_loss(model: AdaptedModel, encode: Encode) -> None:
    features, start = Features(model, encode(12)), model.read_vector()
    everything = np.arange(12)

    def loss() -> float:
        with torch.no_grad():
            return float(features.losses(model, features.batch(everything)).mean())

    before = loss()
    train_plainly(model, features, TRAINING, SeededNoise(2, "x"), start=start, round_index=0, sampling_rate=1.0)
    assert loss() < before
    found: NDArray[np.float64] = plain_sum(model, features, everything, micro_batch=5)
    assert found.shape == (model.dimension,)
