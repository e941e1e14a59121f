"""A recording at another rate: what both rates can carry keeps its frequency, and nothing else takes its place."""

from __future__ import annotations

from math import gcd

import numpy as np

from common.contents import Recording

_MARGIN = 0.05
"""Seconds of silence after the end: a transform takes a recording for periodic, and its end would ring in its start."""


def resampled(recording: Recording, rate: int) -> Recording:
    """Return a recording with ``rate`` samples a second, from its own samples and both rates alone (RULES 12).

    Band-limited by one Fourier transform of the whole: all below half of the lower rate stays, all at or above it is
    gone, so that nothing is heard at a frequency that it never had. What overshoots is cut at -1 and 1.

    rate     samples a second, > 0
    returns  as long in seconds, to the next whole sample
    """
    if rate == recording.rate or not len(recording.samples):
        return Recording(recording.samples, rate)
    common = gcd(rate, recording.rate)
    step, out = recording.rate // common, rate // common
    # Whole steps, so that both grids end together and no frequency is moved by a fraction of a sample.
    steps = -(-(len(recording.samples) + int(_MARGIN * recording.rate)) // step)
    spectrum = np.fft.rfft(recording.samples.astype(np.float64), n=steps * step)
    kept = (min(steps * step, steps * out) + 1) // 2
    samples = np.fft.irfft(spectrum[:kept], n=steps * out) * (out / step)
    length = -(-len(recording.samples) * rate // recording.rate)
    return Recording(samples[:length].clip(-1.0, 1.0).astype(np.float32), rate)
