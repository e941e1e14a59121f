"""What `consilium-sim` computes is what real daemons over the real link compute, to the last bit.

The very same signed deployment study, with one seed under both: see :mod:`tests.e2e.twins`.
"""

from __future__ import annotations

import pytest
import torch

from tests.e2e.twins import Twins, reversed_grid, twins

SEED = 20


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Twins:
    return twins(tmp_path_factory.mktemp("twins"))


def test_daemons_over_tls_release_the_simulators_adapter_bit_for_bit(made: Twins) -> None:
    simulated, deployed = made.simulated(SEED), made.deployed(SEED)
    assert set(deployed.survivors) == {len(made.laid.sites)}
    assert deployed == simulated
    assert simulated.vector != made.prepared.start.tobytes()
    # A seed more, and nothing is the same: the comparison sees noise and rounding.
    assert made.simulated(SEED + 1).vector != simulated.vector


def test_neither_threads_nor_the_order_of_replies_matter(made: Twins) -> None:
    simulated = made.simulated(SEED)
    with reversed_grid():
        assert made.simulated(SEED) == simulated
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert made.simulated(SEED) == simulated
    finally:
        torch.set_num_threads(before)
