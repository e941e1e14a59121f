"""What `consilium-sim` computes is what real daemons over the real link compute, to the last bit.

The very same signed deployment study, with one seed under both: see :mod:`tests.e2e.twins`.
"""

from __future__ import annotations

import numpy as np
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


def test_the_order_in_which_sites_are_asked_and_answer_does_not_matter(made: Twins) -> None:
    with reversed_grid():
        backwards = made.simulated(SEED)
    assert backwards == made.simulated(SEED)


@pytest.mark.slow  # threads that wait by spinning take minutes where others want the cores
def test_as_many_threads_give_the_same_bits_and_other_ones_the_same_numbers(made: Twins) -> None:
    """Kernels that divide a sum among threads add in another order: such bits are promised for equal threads only."""
    before = torch.get_num_threads()
    single = made.simulated(SEED)
    try:
        torch.set_num_threads(2)
        double = made.simulated(SEED)
        assert made.simulated(SEED) == double
    finally:
        torch.set_num_threads(before)
    one, two = (np.frombuffer(ended.vector, dtype=np.float32) for ended in (single, double))
    # Rounding to 16 bits may fall the other way where an update differs in its last bits.
    np.testing.assert_allclose(two, one, atol=2e-3)
