"""Public randomness is the same everywhere, differs by purpose, and looks random."""

from __future__ import annotations

import numpy as np

from common.stream import public_bytes, public_gaussian, public_signs

STREAM = "5a" * 32


def test_the_numbers_are_fixed_for_ever() -> None:
    """A changed constant here would give sites of two versions different frozen matrices."""
    assert public_bytes(STREAM, "test", 8).hex() == "24fde0cf1c405cae"
    assert public_signs(STREAM, "test", 8).tolist() == [1, 1, -1, 1, 1, -1, 1, 1]
    assert public_gaussian(STREAM, "test", 3).tolist() == [0.02294921875, -0.27685546875, -0.876220703125]


def test_purposes_and_streams_give_different_numbers() -> None:
    drawn = {public_bytes(STREAM, "a", 16), public_bytes(STREAM, "b", 16), public_bytes("00" * 32, "a", 16)}
    assert len(drawn) == 3


def test_signs_are_fair_and_gaussians_are_standard() -> None:
    """Fixed inputs, so nothing here can flake; bounds are four standard errors."""
    signs = public_signs(STREAM, "fair", 100_000).astype(np.float64)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    assert abs(signs.mean()) < 4 / np.sqrt(100_000)
    normal = public_gaussian(STREAM, "normal", 100_001).astype(np.float64)
    assert len(normal) == 100_001
    assert abs(normal.mean()) < 4 / np.sqrt(100_000)
    assert abs(normal.var() - 1) < 4 * np.sqrt(2 / 100_000)
