"""Hundreds of audits of an invented mechanism: harmless ones are not accused, broken ones are (RULES 17).

The mechanism is DP-SGD's own: patients and canaries are vectors of length one in clip norms, each enters a step by its
coin, Gaussian noise is added. What an audit reads of it, and judges, is the real code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from common.privacy.accounting import epsilon_of
from simulations.audit.bounds import best_bound
from simulations.audit.coins import Coins, Observed
from simulations.audit.findings import GAME_LEVEL, TEST_LEVEL
from simulations.audit.mechanism import NoiseTest, WeightTest
from simulations.audit.power import Rules, replay
from simulations.audit.reading import Lens

PATIENTS, FIXED, FRESH, DIMENSION, ROUNDS = 50, 20, 20, 400, 20
RATE, DELTA = 0.5, 1e-5
Floats = NDArray[np.float64]


class Dice:
    """Numpy's generator as a tosser of coins."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def uniform(self, size: int) -> Floats:
        return self.generator.random(size)


@dataclass(frozen=True)
class World:
    """Known vectors and a claim."""

    rows: Floats
    lens: Lens
    noise: float

    def claim(self, steps: int) -> float:
        return epsilon_of(
            noise_multiplier=self.noise,
            sampling_rate=RATE,
            steps=steps,
            delta=DELTA,
            evaluation_noise_multiplier=5.0,
            evaluation_releases=0,
        )


def world(noise: float) -> World:
    dice = np.random.default_rng(17)
    rows = dice.standard_normal((PATIENTS + FIXED + FRESH, DIMENSION))
    # Patients have much in common, canaries little.
    rows[:PATIENTS] += 3.0 * dice.standard_normal(DIMENSION)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return World(rows, Lens(rows, PATIENTS, RATE, noise), noise)


def audited(
    made: World, seed: int, *, noise: float = 1.0, summed: Callable[[Floats, NDArray[np.bool_]], Floats] | None = None
) -> Observed:
    """Play one game. ``noise`` is a share of the claimed; ``summed`` makes the sum of who is in the step, if broken."""
    dice = Dice(seed)
    coins = Coins.toss(FIXED, FRESH, ROUNDS, dice)
    readings = []
    for round_index in range(ROUNDS):
        inside = coins.inside(round_index)
        there = np.concatenate([np.ones(PATIENTS, dtype=np.bool_), inside])
        drawn = there & (dice.uniform(len(there)) < RATE)
        total = made.rows[drawn].sum(axis=0) if summed is None else summed(made.rows, drawn)
        total = total + noise * made.noise * dice.generator.standard_normal(DIMENSION)
        readings.append(made.lens.read(total, inside))
    return Observed(coins, tuple(readings))


def heavy_canaries(rows: Floats, drawn: NDArray[np.bool_]) -> Floats:
    """An ignored cap: every canary has four times the records, each clipped alone."""
    weights = np.where(np.arange(len(rows)) < PATIENTS, 1.0, 4.0) * drawn
    total: Floats = weights @ rows
    return total


def micro_batches(rows: Floats, drawn: NDArray[np.bool_]) -> Floats:
    """Mean gradients of micro-batches are clipped: canaries, whose gradients are long, take them over."""
    raw = np.where(np.arange(len(rows)) < PATIENTS, 1.5, 20.0)[:, None] * rows
    chosen = np.flatnonzero(drawn)
    total = np.zeros(rows.shape[1])
    for start in range(0, len(chosen), 16):
        part = chosen[start : start + 16]
        mean = raw[part].mean(axis=0)
        total += len(part) * mean / max(1.0, float(np.linalg.norm(mean)))
    return total


def findings(made: World, observed: Observed, level: float = TEST_LEVEL) -> set[str]:
    """Return what an audit would accuse the mechanism of."""
    whole = best_bound(observed.study_log_odds(), observed.coins.fixed, DELTA, GAME_LEVEL)
    charge = best_bound(observed.charge_log_odds(), observed.coins.fresh.ravel(), DELTA, GAME_LEVEL)
    found = {
        "whole study": whole.epsilon > made.claim(ROUNDS),
        "one charge": charge.epsilon > made.claim(1),
        "noise": NoiseTest.of(observed.readings, level).alarm,
        "weight": WeightTest.of(observed.readings, level).alarm,
    }
    return {name for name, accused in found.items() if accused}


@pytest.fixture(scope="module", params=[1.5, 8.0])
def made(request: pytest.FixtureRequest) -> World:
    """Noise as for an epsilon of about 8, and of about 1, over the whole study."""
    return world(request.param)


def test_four_hundred_harmless_mechanisms_are_accused_no_more_often_than_stated(made: World) -> None:
    """Expected at most 24 in 400 (6 %); 50 or more has a chance below 1e-5."""
    accused = [findings(made, audited(made, seed)) for seed in range(400)]
    assert sum(bool(found) for found in accused) < 50
    # Each test by itself: half a per cent, 2 expected, 15 or more below 1e-8.
    for name in ("noise", "weight"):
        assert sum(name in found for found in accused) < 15


def test_the_tests_of_the_mechanism_keep_a_level_that_can_be_measured(made: World) -> None:
    """At 10 % each, 40 of 400 are expected; 75 or more has a chance below 1e-7, and fewer than 8 below 1e-10."""
    accused = [findings(made, audited(made, 1000 + seed), level=0.1) for seed in range(400)]
    for name in ("noise", "weight"):
        assert 8 <= sum(name in found for found in accused) < 75


@pytest.mark.parametrize("share", [0.25, 0.0])
def test_a_quarter_of_the_noise_and_none_are_noticed_every_time(made: World, share: float) -> None:
    for seed in range(20):
        assert "noise" in findings(made, audited(made, seed, noise=share))


@pytest.mark.parametrize("broken", [heavy_canaries, micro_batches])
def test_an_ignored_cap_and_micro_batch_clipping_are_noticed(
    made: World, broken: Callable[[Floats, NDArray[np.bool_]], Floats]
) -> None:
    """19 of 20 at epsilon 8; where the noise is five times as large, the power that is reported decides."""
    observed = [audited(made, seed, summed=broken) for seed in range(20)]
    found = sum("weight" in findings(made, one) for one in observed)
    test = WeightTest.of(observed[0].readings, TEST_LEVEL)
    if test.noticed_above < 3.0:
        assert found >= 19
    else:
        assert found / 20 >= test.chance_to_notice(3.0) - 0.35


def test_guesses_alone_see_missing_noise_too(made: World) -> None:
    for seed in range(5):
        assert {"whole study", "one charge"} & findings(made, audited(made, seed, noise=0.0))


def test_what_the_power_says_is_what_happens() -> None:
    """The replayed bound is that of real games with canaries as distinct, to a third of it."""
    made = world(0.5)
    observed = [audited(made, seed) for seed in range(20)]
    real = np.median(
        [best_bound(one.charge_log_odds(), one.coins.fresh.ravel(), DELTA, GAME_LEVEL).epsilon for one in observed]
    )
    amplitudes = [reading.amplitudes[FIXED:] for reading in observed[0].readings]
    replayed = replay(amplitudes, Rules(DELTA, RATE, GAME_LEVEL), np.random.default_rng(0), fresh=True).typical_bound()
    assert replayed == pytest.approx(float(real), rel=0.34)
    assert 0.0 < real < made.claim(1)
