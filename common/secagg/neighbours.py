"""Being written."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    degree: int
    threshold: int


def required(n: int, *, corrupt: float, lost: float, privacy_bits: float = 40, liveness_bits: float = 20, cheating: bool) -> Neighbourhood:
    raise NotImplementedError


def circles(n: int, degree: int, seed: bytes) -> list[tuple[int, ...]]:
    raise NotImplementedError
