"""The server's optimisers move the vector as their papers say."""

from __future__ import annotations

import numpy as np
import pytest

from common.transfer import Training
from server.aggregation import FedAdam, FedAvg, server_optimizer


def training(**changes: object) -> Training:
    fields = {"rounds": 10, "steps_per_round": 1, "learning_rate": 1.0, "schedule": "constant", **changes}
    return Training(**fields)  # type: ignore[arg-type]


def test_fedavg_adds_the_mean_update_times_the_server_rate() -> None:
    start = np.array([1.0, 2.0], dtype=np.float32)
    moved = FedAvg(training(server_learning_rate=0.5)).step(start, np.array([2.0, -4.0]), 0)
    assert moved.dtype == np.float32
    assert moved.tolist() == [2.0, 0.0]


def test_fedadam_moves_by_its_rate_in_the_first_step_whatever_the_scale() -> None:
    for scale in (1e-3, 1e3):
        optimizer = FedAdam(training(server_optimizer="fedadam", server_learning_rate=0.1))
        moved = optimizer.step(np.zeros(2, dtype=np.float32), scale * np.array([1.0, -2.0]), 0)
        assert moved == pytest.approx(np.array([0.1, -0.1]), rel=1e-3)


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


def test_the_schedule_acts_on_the_server_with_fedadam() -> None:
    optimizer = FedAdam(training(server_optimizer="fedadam", server_learning_rate=0.1, schedule="linear"))
    moved = optimizer.step(np.zeros(1, dtype=np.float32), np.ones(1), 5)
    assert moved[0] == pytest.approx(0.05, rel=1e-3)


def test_the_study_names_the_optimiser() -> None:
    assert isinstance(server_optimizer(training()), FedAvg)
    assert isinstance(server_optimizer(training(server_optimizer="fedadam")), FedAdam)
