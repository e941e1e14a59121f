"""A batch is divided into micro-batches at the least cost there is."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from client.training.bucketing import OVERHEAD_TOKENS, divide


@given(lengths=st.lists(st.integers(1, 200), max_size=9), size=st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_division_is_the_cheapest_there_is(lengths: list[int], size: int) -> None:
    ordered = np.array(sorted(lengths), dtype=np.int64)

    def cost(ends: tuple[int, ...]) -> float:
        starts = (0, *ends[:-1])
        return sum(
            OVERHEAD_TOKENS + (end - start) * int(ordered[end - 1]) for start, end in zip(starts, ends, strict=True)
        )

    chosen = tuple(divide(ordered, size))
    if not lengths:
        assert chosen == ()
        return
    every = (
        (*cuts, len(lengths))
        for number in range(len(lengths))
        for cuts in itertools.combinations(range(1, len(lengths)), number)
    )
    allowed = [ends for ends in every if max(np.diff((0, *ends))) <= size]
    assert cost(chosen) == min(cost(ends) for ends in allowed)
