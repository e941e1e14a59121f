"""The table of epsilons is made by every accountant, and ours is never below PLD's."""

from __future__ import annotations

import pytest

from simulations.benchmarks import epsilon

CELLS = [(0.8, 0.01, 100, 1e-5), (1.0, 0.1, 100, 1e-7), (2.0, 0.5, 1, 1e-5), (8.0, 0.1, 1000, 1e-5)]


@pytest.mark.parametrize("cell", CELLS)
def test_ours_is_not_below_pld_and_lies_between_prv_and_rdp(cell: tuple[float, float, int, float]) -> None:
    assert cell in epsilon.cells()
    row = epsilon.measure(*cell)
    ours, pld, prv, rdp = (row[key] for key in ("ours", "pld", "prv", "rdp"))
    assert ours is not None
    assert pld is not None
    assert rdp is not None
    assert pld <= ours <= pld + 1e-6
    assert prv is None or ours == pytest.approx(prv, abs=0.02, rel=0.01)
    assert ours <= rdp
    assert not epsilon.below_pld([row])


def test_a_row_below_pld_is_found() -> None:
    assert epsilon.below_pld([{"ours": 1.0, "pld": 1.1}])
    assert not epsilon.below_pld([{"ours": 1.0, "pld": None}])
