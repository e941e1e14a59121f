"""Where time goes: named totals of wall seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up wall seconds under names."""

    def __init__(self) -> None:
        self._totals: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time spent inside the block to ``name``, whether it ends well or not."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._totals[name] = self._totals.get(name, 0.0) + time.perf_counter() - start

    def seconds(self, name: str) -> float:
        """Return the total under ``name``; 0 if nothing was timed."""
        return self._totals.get(name, 0.0)
