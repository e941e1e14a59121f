"""Engines: how the simulated sites are run. All of them run the same ServerApp and the same ClientApps as a deployment.

Seeded randomness enters here, through a constructor, and nowhere else (RULES 15).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from flwr.app import Context, RecordDict

from common.errors import ConsiliumError
from common.link.inprocess import OPERATOR_NODE, RUN, InProcessGrid
from server.coordinator import Coordinator, Outcome

Entropy = Callable[[int], bytes]


class EntropySource:
    """Where simulated parties draw keys from: the operating system, or a seed for runs that must repeat.

    seed    None for the operating system's CSPRNG; with a seed nothing is secret, and every output says so
    """

    def __init__(self, seed: int | None = None) -> None:
        self.seed = seed

    def of(self, party: str) -> Entropy:
        """Return the source of one party; two parties with one seed draw different bytes."""
        return os.urandom if self.seed is None else SeededEntropy(self.seed, party)


class SeededEntropy:
    """An AES-256-CTR keystream keyed by a seed and a party's name. NOT PRIVATE: who knows the seed knows every key."""

    def __init__(self, seed: int, party: str) -> None:
        key = HKDF(hashes.SHA256(), 32, salt=b"consilium/v1/simulation/entropy", info=party.encode()).derive(
            seed.to_bytes(8, "big")
        )
        self._encryptor = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()

    def __call__(self, size: int) -> bytes:
        """Return the next ``size`` bytes."""
        return self._encryptor.update(bytes(size))


@dataclass(frozen=True, slots=True)
class Finished:
    """A study that ran to its end in this process."""

    outcome: Outcome
    seconds_transport: float


def node_of(number: int) -> int:
    """Return the Flower node on which the site with this number, from 0, sits."""
    return OPERATOR_NODE + 1 + number


def run_study(coordinator: Coordinator, grid: InProcessGrid, incidents: Callable[[], Iterable[str]]) -> Finished:
    """Run a study over a grid to its end.

    incidents   returns the reasons that the sites keep to themselves
    Raises what the coordinator raises, with the sites' reasons; their own failures stay in their logs, as on site.
    """
    context = Context(run_id=RUN, node_id=OPERATOR_NODE, node_config={}, state=RecordDict(), run_config={})
    try:
        coordinator.app()(grid, context)
    except ConsiliumError as error:
        # On one machine there is nobody to hide a site's reason from: the researcher is told it.
        reasons = sorted(set(incidents()))
        if reasons:
            raise ConsiliumError(error.fault, f"{error.detail}; sites say: {'; '.join(reasons[:3])}") from error
        raise
    return Finished(coordinator.outcome, grid.seconds)
