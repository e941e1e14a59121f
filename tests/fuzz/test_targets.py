"""Every fuzz target is alive, and holds on its seeds, their truncations and a few hundred mutations."""

from __future__ import annotations

import random
import tracemalloc
from functools import cache

import pytest

from common.errors import ConsiliumError
from tests.fuzz.targets import TARGETS

MUTATIONS = 200
MOST_BYTES = 64 << 20


@cache
def seeds(name: str) -> tuple[bytes, ...]:
    return tuple(TARGETS[name].seeds())


def mutated(raw: bytes, dice: random.Random) -> bytes:
    """Return bytes with one to four places changed, cut out, doubled or filled."""
    changed = bytearray(raw)
    for _ in range(dice.randrange(1, 5)):
        start = dice.randrange(len(changed) + 1)
        stop = min(len(changed), start + dice.choice((1, 2, 8, 64)))
        piece = changed[start:stop]
        changed[start:stop] = dice.choice(
            (dice.randbytes(len(piece)), b"", piece + piece, b"\xff" * len(piece), bytes(len(piece)))
        )
    return bytes(changed)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_real_messages(name: str) -> None:
    def read(raw: bytes) -> bool:
        try:
            TARGETS[name].run(raw)
        except ConsiliumError:
            return False
        return True

    assert sum(read(seed) for seed in seeds(name)) >= 1


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_the_same_every_time(name: str) -> None:
    assert tuple(TARGETS[name].seeds()) == seeds(name)


@pytest.mark.parametrize("name", TARGETS)
def test_bytes_cut_or_changed_are_read_or_refused_with_a_code(name: str) -> None:
    target, dice = TARGETS[name], random.Random(name)
    target(b"")
    for seed in seeds(name):
        for end in dice.sample(range(len(seed)), min(len(seed), 40)):
            target(seed[:end])
    for _ in range(MUTATIONS):
        target(mutated(dice.choice(seeds(name)), dice))


@pytest.mark.parametrize("name", TARGETS)
def test_reading_takes_little_memory_whatever_the_bytes_claim(name: str) -> None:
    target, dice = TARGETS[name], random.Random(name)
    target(seeds(name)[0])
    tracemalloc.start()
    try:
        for _ in range(20):
            target(mutated(dice.choice(seeds(name)), dice))
        assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    finally:
        tracemalloc.stop()
