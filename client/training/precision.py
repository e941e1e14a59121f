"""How finely the layers behind the frozen prefix are computed in training. Full unless asked otherwise.

On processors with matrix units for bfloat16 the reduced precision halves a step; on others it is slower. It changes a
gradient row by about 0.5 %, as a function of that example alone, and rows are clipped, summed and noised in float64
either way: utility may notice, the guarantee does not.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

_WORTHWHILE = 2.0
_TRIALS = 5


class Precision(StrEnum):
    """What matrix products in training are computed in."""

    FULL = "float32"
    REDUCED = "bfloat16"


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Run a forward pass in a precision; its backward pass follows it, wherever it runs.

    Attention is then spelled out in matrix products on a CPU: torch's fused kernel has a backward pass in bfloat16 that
    is six times slower than the one in float32.
    """
    with ExitStack() as stack:
        if precision is Precision.REDUCED:
            stack.enter_context(torch.autocast(device.type, dtype=torch.bfloat16))
            if device.type == "cpu":
                stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def fastest_precision(width: int = 384) -> Precision:
    """Return the reduced precision where matrix products on this CPU are at least twice as fast in it, by measurement.

    width   of the matrices; about 10 ms are spent at 384
    """
    seconds = {dtype: _seconds(dtype, width) for dtype in (torch.float32, torch.bfloat16)}
    return Precision.REDUCED if seconds[torch.float32] > _WORTHWHILE * seconds[torch.bfloat16] else Precision.FULL


def _seconds(dtype: torch.dtype, width: int) -> float:
    left, right = torch.ones(4 * width, width, dtype=dtype), torch.ones(width, width, dtype=dtype)
    best = float("inf")
    for _ in range(_TRIALS):
        start = time.perf_counter()
        torch.mm(left, right)
        best = min(best, time.perf_counter() - start)
    return best
