"""A recording at another rate: frequencies stay where they were, and what the new rate cannot carry is gone."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.contents import Recording
from common.resampling import resampled

RATES = [(44_100, 16_000), (48_000, 8_000), (8_000, 16_000), (16_000, 44_100), (11_025, 8_000), (8_000, 7_999)]


def tone(frequency: float, rate: int, seconds: float = 1.0) -> Recording:
    at = np.arange(int(rate * seconds)) / rate
    return Recording((0.5 * np.sin(2 * np.pi * frequency * at)).astype(np.float32), rate)


def middle(recording: Recording) -> NDArray[np.float32]:
    """Return all but a tenth at each end, where a tone that starts at once rings."""
    edge = len(recording.samples) // 10
    return recording.samples[edge:-edge]


@pytest.mark.parametrize(("before", "after"), RATES)
@pytest.mark.parametrize("frequency", [50.0, 440.0, 3_000.0])
def test_a_tone_that_both_rates_carry_is_the_same_tone(before: int, after: int, frequency: float) -> None:
    made = resampled(tone(frequency, before), after)
    assert (made.rate, str(made.samples.dtype)) == (after, "float32")
    assert len(made.samples) == after
    assert np.abs(middle(made) - middle(tone(frequency, after))).max() < 0.01


@pytest.mark.parametrize("frequency", [4_500.0, 6_000.0, 7_900.0])
def test_a_tone_above_what_the_new_rate_carries_is_heard_nowhere(frequency: float) -> None:
    """Taking every second sample would put it at 8,000 Hz less its frequency, as loud as before."""
    made = resampled(tone(frequency, 16_000), 8_000)
    assert np.abs(middle(made)).max() < 0.01
    assert np.abs(tone(frequency, 16_000).samples[::2]).max() > 0.4


def test_two_tones_become_the_one_that_can_be_carried() -> None:
    both = Recording(tone(1_000, 16_000).samples + tone(6_000, 16_000).samples, 16_000)
    assert np.abs(middle(resampled(both, 8_000)) - middle(tone(1_000, 8_000))).max() < 0.01


def test_the_end_does_not_ring_in_the_start() -> None:
    """Silence, and a click at the very end: a transform without a margin would put a tenth of it at the start."""
    samples = np.zeros(16_000, dtype=np.float32)
    samples[-1] = 1.0
    assert np.abs(resampled(Recording(samples, 16_000), 8_000).samples[:100]).max() < 1e-3


def test_samples_stay_between_one_and_minus_one() -> None:
    square = Recording(np.sign(tone(100, 16_000).samples).astype(np.float32), 16_000)
    made = resampled(square, 44_100).samples
    assert np.abs(made).max() <= 1.0


@pytest.mark.parametrize("length", [0, 1, 2, 7])
def test_the_shortest_recordings_stay_as_long(length: int) -> None:
    made = resampled(Recording(np.full(length, 0.5, dtype=np.float32), 44_100), 16_000)
    assert len(made.samples) == -(-length * 16_000 // 44_100)


def test_at_its_own_rate_nothing_changes() -> None:
    whole = tone(440, 8_000)
    assert resampled(whole, 8_000).samples is whole.samples
