"""Public bounds that a study states before it is signed: a site's size as a band, an update's clamp (RULES 4, 6)."""

from __future__ import annotations

import math

from common.study import Privacy
from common.transfer import Training

_BAND_STEPS = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0)
_CLAMP_DEVIATIONS = 6.0


def band(units: int) -> int:
    """Return the public band of a site: its number of units rounded to 1, 1.5, 2, 3, 5, 7 times a power of ten."""
    power = math.pow(10.0, math.floor(math.log10(max(units, 1))))
    nearest: float = min((step * power for step in _BAND_STEPS), key=lambda size: abs(size - units))
    return max(1, round(nearest))


def clamp(training: Training, privacy: Privacy, *, smallest_band: int, dimension: int) -> float:
    """Return a bound that a rotated coordinate of an update leaves about once in 2e9.

    After a random rotation a coordinate of an update is close to normal. Its deviation is that of the noise of all
    steps plus the update's own norm spread over the vector; six of them are allowed. With Adam a step moves a
    coordinate by about one learning rate.
    """
    steps, rate = training.steps_per_round, training.learning_rate / (1.0 - training.momentum)
    if training.optimizer == "adam":
        deviation = rate * steps
    else:
        divisor = privacy.sampling_rate * smallest_band
        noise = privacy.noise_multiplier * privacy.clip_norm / divisor * math.sqrt(steps)
        # A Poisson batch holds at most about its mean and six deviations; each unit adds at most the clip norm.
        signal = privacy.clip_norm * steps * (1.0 + 6.0 / math.sqrt(divisor)) / math.sqrt(dimension)
        deviation = rate * math.hypot(noise, signal)
    return _CLAMP_DEVIATIONS * deviation
