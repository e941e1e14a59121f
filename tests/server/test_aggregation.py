"""The server's optimisers move the vector as their papers say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from common.errors import ConsiliumError
from common.transfer import Training
from server.aggregation import (
    OPTIMIZERS,
    FedAdam,
    FedAvg,
    FedMomentum,
    FedYogi,
    ServerOptimizer,
    Vector,
    moved,
    server_optimizer,
)


def training(**changes: object) -> Training:
    fields = {"rounds": 10, "steps_per_round": 1, "learning_rate": 1.0, "schedule": "constant", **changes}
    return Training(**fields)  # type: ignore[arg-type]


def run(
    optimizer: ServerOptimizer, first: int = 0, end: int = 8, vector: Vector | None = None, *, scale: float = 1.0
) -> Vector:
    """Take the rounds of one fixed course of updates, from ``first`` to before ``end``."""
    updates = scale * np.random.default_rng(5).normal(size=(8, 6))
    reached = np.zeros(6, dtype=np.float32) if vector is None else vector
    for round_index in range(first, end):
        reached = optimizer.step(reached, updates[round_index], round_index)
    return reached


def test_fedavg_adds_the_mean_update_times_the_server_rate() -> None:
    start = np.array([1.0, 2.0], dtype=np.float32)
    moved = FedAvg(training(server_learning_rate=0.5)).step(start, np.array([2.0, -4.0]), 0)
    assert moved.dtype == np.float32
    assert moved.tolist() == [2.0, 0.0]


@pytest.mark.parametrize("make", [FedAdam, FedYogi])
def test_an_adaptive_server_moves_by_its_rate_in_the_first_step_whatever_the_scale(
    make: Callable[[Training], ServerOptimizer],
) -> None:
    for scale in (1e-3, 1e3):
        optimizer = make(training(server_learning_rate=0.1))
        moved = optimizer.step(np.zeros(2, dtype=np.float32), scale * np.array([1.0, -2.0]), 0)
        assert moved == pytest.approx(np.array([0.1, -0.1]), rel=1e-3)


@pytest.mark.parametrize("make", [FedAdam, FedYogi])
def test_an_adaptive_server_goes_the_same_way_whatever_the_scale_of_all_updates(
    make: Callable[[Training], ServerOptimizer],
) -> None:
    ends = [run(make(training(server_learning_rate=0.1)), scale=scale) for scale in (1.0, 1e4)]
    assert ends[1] == pytest.approx(ends[0], abs=1e-5)
    # With momentum, where a scale is a rate, it is not so.
    sums = [run(FedMomentum(training()), scale=scale) for scale in (1.0, 2.0)]
    assert sums[1] == pytest.approx(2 * sums[0], rel=1e-5)


def test_fedadam_agrees_with_torch_adam() -> None:
    import torch

    generator = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    reference = torch.optim.Adam([parameter], lr=0.05, betas=(FedAdam.beta1, FedAdam.beta2), eps=FedAdam.epsilon)
    optimizer = FedAdam(training(server_optimizer="fedadam", server_learning_rate=0.05))
    vector = np.zeros(5, dtype=np.float32)
    for round_index in range(10):
        update = generator.normal(size=5)
        vector = optimizer.step(vector, update, round_index)
        parameter.grad = -torch.from_numpy(update)
        reference.step()
    assert vector == pytest.approx(parameter.detach().numpy(), abs=1e-6)


def test_fedyogi_agrees_with_its_formula_coordinate_by_coordinate() -> None:
    """In plain floats, written from algorithm 2 of the paper and FedAdam's correction of the bias."""
    updates = np.random.default_rng(1).normal(size=(12, 3)) * np.geomspace(1.0, 1e-2, 12)[:, None]
    optimizer = FedYogi(training(rounds=12, server_learning_rate=0.05))
    vector = np.zeros(3, dtype=np.float32)
    for round_index, update in enumerate(updates):
        vector = optimizer.step(vector, update, round_index)
    for coordinate, found in zip(updates.T.tolist(), vector.tolist(), strict=True):
        place = first = second = 0.0
        for number, update in enumerate(coordinate, start=1):
            first = 0.9 * first + 0.1 * update
            if second > update * update:
                second -= 0.01 * update * update
            elif second < update * update:
                second += 0.01 * update * update
            assert second >= 0.0
            root = math.sqrt(second / (1 - 0.99**number))
            place += 0.05 * first / (1 - 0.9**number) / (root + 1e-8)
        assert found == pytest.approx(place, abs=1e-6)


def test_after_large_updates_fedyogis_steps_grow_again_more_slowly_than_fedadams() -> None:
    moved = {}
    for make in (FedAdam, FedYogi):
        optimizer = make(training(rounds=200, server_learning_rate=0.1))
        for round_index in range(20):
            optimizer.step(np.zeros(1, dtype=np.float32), np.full(1, 10.0), round_index)
        for round_index in range(20, 200):
            last = optimizer.step(np.zeros(1, dtype=np.float32), np.full(1, 0.1), round_index)
        moved[make] = float(last[0])
    assert 0 < 1.5 * moved[FedYogi] < moved[FedAdam]


def test_momentum_agrees_with_torch_sgd() -> None:
    import torch

    generator = np.random.default_rng(2)
    parameter = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    reference = torch.optim.SGD([parameter], lr=0.3, momentum=0.7)
    optimizer = FedMomentum(training(server_momentum=0.7, server_learning_rate=0.3))
    vector = np.zeros(5, dtype=np.float32)
    for round_index in range(10):
        update = generator.normal(size=5)
        vector = optimizer.step(vector, update, round_index)
        parameter.grad = -torch.from_numpy(update)
        reference.step()
    assert vector == pytest.approx(parameter.detach().numpy(), abs=1e-5)


def test_without_momentum_it_is_fedavg_bit_for_bit() -> None:
    plain, momentum = (run(make(training(server_momentum=0.0))) for make in (FedAvg, FedMomentum))
    assert plain.tobytes() == momentum.tobytes()


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
@pytest.mark.parametrize("stop", [0, 1, 4])
def test_who_goes_on_from_a_dump_ends_with_the_same_bytes(name: str, stop: int) -> None:
    asked = training(server_optimizer=name, server_learning_rate=0.1)
    through = server_optimizer(asked)
    whole = run(through)
    before, after = server_optimizer(asked), server_optimizer(asked)
    vector = run(before, 0, stop)
    after.restore(before.dump())
    assert after.dump() == before.dump()
    assert run(after, stop, 8, vector).tobytes() == whole.tobytes()
    assert after.dump() == through.dump()


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"fedavg"}))
def test_a_dump_that_is_cut_or_of_another_model_is_refused(name: str) -> None:
    optimizer = server_optimizer(training(server_optimizer=name))
    run(optimizer)
    state = optimizer.dump()
    for damaged in (state[:4], state[:8], state[:-1], state + b"\0"):
        with pytest.raises(ConsiliumError, match=f"CSL-631.*{type(optimizer).__name__}"):
            server_optimizer(training(server_optimizer=name)).restore(damaged)
    smaller = server_optimizer(training(server_optimizer=name))
    smaller.restore(state)
    with pytest.raises(ConsiliumError, match=r"CSL-631.*another model"):
        smaller.step(np.zeros(2, dtype=np.float32), np.zeros(2), 8)


def test_the_schedule_acts_on_the_server_with_fedadam() -> None:
    optimizer = FedAdam(training(server_optimizer="fedadam", server_learning_rate=0.1, schedule="linear"))
    moved = optimizer.step(np.zeros(1, dtype=np.float32), np.ones(1), 5)
    assert moved[0] == pytest.approx(0.05, rel=1e-3)


def test_every_optimiser_that_a_study_may_name_is_there() -> None:
    named = get_args(Training.model_fields["server_optimizer"].annotation)
    assert {type(server_optimizer(training(server_optimizer=name))) for name in named} == {
        FedAvg, FedMomentum, FedAdam, FedYogi,
    }  # fmt: skip
    assert set(OPTIMIZERS) == set(named)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_rests_in_a_round_keeps_still_whatever_a_sum_s_rounding_says(name: str) -> None:
    optimizer = server_optimizer(training(server_optimizer=name, server_learning_rate=0.5, rounds=4))
    vector, moves = np.zeros(4, dtype=np.float32), np.array([True, False, True, False])
    for round_index in range(4):
        noise = np.array([0.1, 1e-9, -0.2, -1e-9])
        vector = moved(optimizer, vector, noise, round_index, moves if round_index < 3 else ~moves)
        if round_index < 3:
            assert (vector[1], vector[3]) == (0.0, 0.0)
            assert vector[0] > 0 > vector[2]
    # What moves then starts as at the beginning of a study.
    assert vector[1] > 0 > vector[3]


def test_where_all_moves_a_step_is_the_optimizers_own() -> None:
    one, other = (server_optimizer(training(server_optimizer="fedyogi")) for _ in range(2))
    mean = np.array([0.3, -0.1])
    start = np.zeros(2, dtype=np.float32)
    assert np.array_equal(moved(one, start, mean, 0, None), other.step(start, mean, 0))
