"""The server's optimiser: how the decoded mean update moves the global vector.

It sees only the mean over the survivors, never one site's update.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.transfer import Training

Vector = NDArray[np.float32]
Mean = NDArray[np.float64]


class ServerOptimizer(Protocol):
    """Moves the global vector by the mean update of one round."""

    def step(self, vector: Vector, mean_update: Mean, round_index: int) -> Vector:
        """Return the next global vector; all arrays have shape (dimension,)."""

    def dump(self) -> bytes:
        """Return what it remembers between rounds, empty for nothing."""

    def restore(self, state: bytes) -> None:
        """Remember what :meth:`dump` returned; raises CSL-631 for bytes that are not that."""


class FedAvg:
    """Adds the mean update times the server learning rate [McMahan et al. 2017, alg. 1]."""

    def __init__(self, training: Training) -> None:
        self._learning_rate = training.server_learning_rate

    def step(self, vector: Vector, mean_update: Mean, round_index: int) -> Vector:
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


class _Remembering:
    """What an optimiser remembers between rounds: how many steps it took, and vectors that are zero before the first.

    The order of the vectors is the subclass's own; a dump is of one optimiser and of one dimension.
    """

    kept: ClassVar[int]
    """How many vectors."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._steps = 0
        self._vectors: tuple[Mean, ...] = ()

    def dump(self) -> bytes:
        """Return the number of steps, 8 bytes, and the vectors, little-endian float64; nothing before a step."""
        if not self._vectors:
            return b""
        vectors = (np.ascontiguousarray(vector, dtype="<f8").tobytes() for vector in self._vectors)
        return self._steps.to_bytes(8, "big") + b"".join(vectors)

    def restore(self, state: bytes) -> None:
        """Remember what :meth:`dump` returned; raises CSL-631 for bytes that are not that."""
        if not state:
            return
        if len(state) <= 8 or (len(state) - 8) % (8 * self.kept):
            raise ConsiliumError(errors.OPERATOR_DAMAGED, f"what {type(self).__name__} remembers")
        self._steps = int.from_bytes(state[:8], "big")
        self._vectors = tuple(np.split(np.frombuffer(state[8:], dtype="<f8").astype(np.float64), self.kept))

    def _before(self, mean_update: Mean) -> tuple[Mean, ...]:
        """Return the vectors as the last step left them; raises CSL-631 for those of another dimension."""
        if not self._vectors:
            return tuple(np.zeros_like(mean_update) for _ in range(self.kept))
        if self._vectors[0].shape != mean_update.shape:
            raise ConsiliumError(errors.OPERATOR_DAMAGED, f"what {type(self).__name__} remembers is of another model")
        return self._vectors


class FedMomentum(_Remembering):
    """FedAvgM: each round adds to a velocity, which fades by the server momentum [Hsu et al. 2019].

    A constant update moves the vector by up to ``1 / (1 - server_momentum)`` times as much as FedAvg does.
    """

    kept = 1

    def step(self, vector: Vector, mean_update: Mean, round_index: int) -> Vector:
        """Return ``vector + learning_rate * velocity``, with ``velocity = momentum * velocity + mean_update``."""
        (velocity,) = self._before(mean_update)
        velocity = self._training.server_momentum * velocity + mean_update
        self._steps, self._vectors = self._steps + 1, (velocity,)
        rate = self._training.server_rate(round_index / self._training.rounds)
        return (vector + rate * velocity).astype(np.float32)


class FedAdam(_Remembering):
    """Adam on the mean update as a pseudo-gradient [Reddi et al. 2021, alg. 2], with bias correction.

    Both moments begin at zero: a step does not depend on the update's scale, but for ``epsilon``, so the study's
    schedule acts on the server learning rate here.
    """

    kept = 2
    beta1 = 0.9
    beta2 = 0.99
    epsilon = 1e-8

    def step(self, vector: Vector, mean_update: Mean, round_index: int) -> Vector:
        """Return the next global vector; the moments live in this object."""
        first, second = self._before(mean_update)
        first = self.beta1 * first + (1 - self.beta1) * mean_update
        second = self.second_moment(second, mean_update**2)
        self._steps, self._vectors = self._steps + 1, (first, second)
        corrected_first = first / (1 - self.beta1**self._steps)
        corrected_second = second / (1 - self.beta2**self._steps)
        rate = self._training.server_rate(round_index / self._training.rounds)
        return (vector + rate * corrected_first / (np.sqrt(corrected_second) + self.epsilon)).astype(np.float32)

    def second_moment(self, before: Mean, square: Mean) -> Mean:
        """Return the next second moment from the last one and from the update's square: a fading mean."""
        return self.beta2 * before + (1 - self.beta2) * square


class FedYogi(FedAdam):
    """FedAdam whose second moment moves by no more than the update's square [Reddi et al. 2021, alg. 2].

    After a few large updates FedAdam's steps grow again within some ``1 / (1 - beta2)`` rounds; here they do so slowly.
    """

    def second_moment(self, before: Mean, square: Mean) -> Mean:
        """Return the next second moment: towards the update's square, by ``1 - beta2`` of that square."""
        return before - (1 - self.beta2) * square * np.sign(before - square)


OPTIMIZERS: Mapping[str, Callable[[Training], ServerOptimizer]] = {
    "fedavg": FedAvg,
    "fedmomentum": FedMomentum,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}
"""By the name that a study gives."""


def server_optimizer(training: Training) -> ServerOptimizer:
    """Return the optimiser that the study names, before its first step."""
    return OPTIMIZERS[training.server_optimizer](training)


def moved(
    optimizer: ServerOptimizer,
    vector: Vector,
    mean_update: NDArray[np.float64],
    round_index: int,
    moves: NDArray[np.bool_] | None,
) -> Vector:
    """Return the next global vector, of which only what a round moves changes.

    moves  (dimension,), None for all. A sum's rounding puts a little into every number, and a step that knows no scale
           would make as much of it as of an update
    """
    if moves is None:
        return optimizer.step(vector, mean_update, round_index)
    return np.where(moves, optimizer.step(vector, np.where(moves, mean_update, 0.0), round_index), vector)
