"""The server's optimiser: how the decoded mean update moves the global vector.

It sees only the mean over the survivors, never one site's update.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.transfer import Training

Vector = NDArray[np.float32]


class ServerOptimizer(Protocol):
    """Moves the global vector by the mean update of one round."""

    def step(self, vector: Vector, mean_update: NDArray[np.float64], round_index: int) -> Vector:
        """Return the next global vector; all arrays have shape (dimension,)."""

    def dump(self) -> bytes:
        """Return what it remembers between rounds, empty for nothing."""

    def restore(self, state: bytes) -> None:
        """Remember what :meth:`dump` returned; raises CSL-631 for bytes that are not that."""


class FedAvg:
    """Adds the mean update times the server learning rate [McMahan et al. 2017, alg. 1]."""

    def __init__(self, training: Training) -> None:
        self._learning_rate = training.server_learning_rate

    def step(self, vector: Vector, mean_update: NDArray[np.float64], round_index: int) -> Vector:
        """Return ``vector + learning_rate * mean_update``."""
        del round_index
        return (vector + self._learning_rate * mean_update).astype(np.float32)

    def dump(self) -> bytes:
        """Return nothing: a step depends on no other."""
        return b""

    def restore(self, state: bytes) -> None:
        """Remember nothing."""
        if state:
            raise ConsiliumError(errors.OPERATOR_DAMAGED, "FedAvg keeps no state")


class FedAdam:
    """Adam on the mean update as a pseudo-gradient [Reddi et al. 2021, alg. 2], with bias correction.

    Its step does not depend on the update's scale, so the study's schedule acts on the server learning rate here.
    """

    beta1 = 0.9
    beta2 = 0.99
    epsilon = 1e-8

    def __init__(self, training: Training) -> None:
        self._training = training
        self._steps = 0
        self._first: NDArray[np.float64] | None = None
        self._second: NDArray[np.float64] | None = None

    def step(self, vector: Vector, mean_update: NDArray[np.float64], round_index: int) -> Vector:
        """Return the next global vector; the moments live in this object."""
        first = np.zeros_like(mean_update) if self._first is None else self._first
        second = np.zeros_like(mean_update) if self._second is None else self._second
        self._steps += 1
        self._first = self.beta1 * first + (1 - self.beta1) * mean_update
        self._second = self.beta2 * second + (1 - self.beta2) * mean_update**2
        corrected_first = self._first / (1 - self.beta1**self._steps)
        corrected_second = self._second / (1 - self.beta2**self._steps)
        rate = self._training.server_rate(round_index / self._training.rounds)
        return (vector + rate * corrected_first / (np.sqrt(corrected_second) + self.epsilon)).astype(np.float32)

    def dump(self) -> bytes:
        """Return the number of steps, 8 bytes, and both moments, little-endian float64."""
        if self._first is None or self._second is None:
            return b""
        moments = (np.ascontiguousarray(moment, dtype="<f8").tobytes() for moment in (self._first, self._second))
        return self._steps.to_bytes(8, "big") + b"".join(moments)

    def restore(self, state: bytes) -> None:
        """Remember what :meth:`dump` returned."""
        if not state:
            return
        if len(state) < 8 or (len(state) - 8) % 16:
            raise ConsiliumError(errors.OPERATOR_DAMAGED, "the moments of FedAdam")
        self._steps = int.from_bytes(state[:8], "big")
        moments = np.frombuffer(state[8:], dtype="<f8").astype(np.float64)
        self._first, self._second = moments[: len(moments) // 2], moments[len(moments) // 2 :]


def server_optimizer(training: Training) -> ServerOptimizer:
    """Return the optimiser that the study names."""
    return FedAdam(training) if training.server_optimizer == "fedadam" else FedAvg(training)
