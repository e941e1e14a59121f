"""What an attacker reads in one outgoing delta who knows everything about a site but the coins and the noise.

The attacker knows each real patient's and each canary's clipped gradient at the round's global vector. Under the claim
a delta is then a sum of known vectors, each of which is in it or not by a coin, plus Gaussian noise. The scores are the
log odds of the best linear test: mean removed, everybody else's coins and the noise whitened. How much noise there is,
and how heavy a canary is, the attacker measures, so that a broken mechanism is attacked as it is and not as claimed. No
torch in here, so that hundreds of audits of invented mechanisms take seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WEIGHTS = (1.0, 2.0, 4.0, 8.0)
"""Weights of a canary, in clip norms, that an attacker tries; the likeliest is taken."""
_LEAST_VARIANCE = 0.01
"""Variance of a coin at least assumed in whitening: keeps patients in who are in every step (sampling rate 1)."""
_LEAST_NOISE = 0.01
"""Share of the claimed noise that whitening assumes at least: with none at all it would divide by zero."""
_RANK = 1e-10
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Reading:
    """One round as the attacker reads it; everything in units of the clip norm.

    log_odds    (canaries,) log odds that each canary patient was in the site's data in this round
    standard    (canaries,) what they rest on: normal of variance about one, mean 0 for a canary outside, and mean 0 or
                its amplitude for one inside, by the sampling coin
    amplitudes  (canaries,) distance between the two means if the mechanism is as claimed
    faint       (canaries,) the same if the noise were a quarter of it
    floor       energy where no known gradient reaches, over the claimed noise's variance
    directions  how many directions that is
    pull        how far the delta goes the way of the canaries inside, real patients' mean taken out
    expected    the pull's mean if canaries enter as claimed
    spread      its variance from noise and real patients
    sampling    its variance from the canaries' sampling, if they enter as claimed
    """

    log_odds: NDArray[np.float64]
    standard: NDArray[np.float64]
    amplitudes: NDArray[np.float64]
    faint: NDArray[np.float64]
    floor: float
    directions: int
    pull: float
    expected: float
    spread: float
    sampling: float


class Lens:
    """The known gradients of one round, prepared for reading deltas.

    rows      (patients + canaries, dimension) clipped gradients over the clip norm, real patients first
    patients  how many of them are real
    rate      the claimed sampling rate
    noise     the claimed noise multiplier
    """

    def __init__(self, rows: NDArray[np.float64], patients: int, rate: float, noise: float) -> None:
        self._rows, self._patients, self._rate, self._noise = rows, patients, rate, noise
        gram = rows @ rows.T
        self._whitenings = tuple(_Whitening(gram, patients, rate, weight) for weight in WEIGHTS)

    def read(self, delta: NDArray[np.float64], inside: NDArray[np.bool_]) -> Reading:
        """Read one delta.

        delta   (dimension,) the outgoing sum in clip norms: learning rate, divisor and sign taken out
        inside  (canaries,) which canaries were in the site's data. Only the pull knows it; the log odds do not
        """
        seen, energy = self._rows @ delta, float(delta @ delta)
        claimed = self._whitenings[0]
        left, directions = claimed.beyond(seen, energy, len(delta))
        noise = max(math.sqrt(left / directions), _LEAST_NOISE * self._noise)
        likeliest = max(self._whitenings, key=lambda whitening: whitening.evidence(seen, energy, noise))
        amplitudes = likeliest.amplitudes(noise)
        standard = likeliest.standard(seen, noise)
        shifted = amplitudes * standard - 0.5 * amplitudes**2
        pull, expected, spread, sampling = claimed.pull(seen, inside, self._noise)
        return Reading(
            log_odds=np.logaddexp(_log(1.0 - self._rate), math.log(self._rate) + shifted),
            standard=standard,
            amplitudes=claimed.amplitudes(self._noise),
            faint=claimed.amplitudes(0.25 * self._noise),
            floor=left / self._noise**2,
            directions=directions,
            pull=pull,
            expected=expected,
            spread=spread,
            sampling=sampling,
        )


class _Whitening:
    """Linear algebra with S = noise² I + A' D A for any noise, where A are the known rows and D their coins' variances.

    All of it happens in the space of the rows: with R the root of D, the eigenvectors of R A A' R are the same for
    every noise.

    weight  by which the canaries' rows are multiplied
    """

    def __init__(self, gram: NDArray[np.float64], patients: int, rate: float, weight: float) -> None:
        self._patients, self._rate = patients, rate
        self._scale = np.r_[np.ones(patients), np.full(len(gram) - patients, weight)]
        self._gram = self._scale[:, None] * gram * self._scale
        # A canary is in a step if its coin and its sampling fall so.
        self._chance = np.r_[np.full(patients, rate), np.full(len(gram) - patients, rate / 2.0)]
        self._variance = np.maximum(self._chance * (1.0 - self._chance), _LEAST_VARIANCE)
        self._root = np.sqrt(self._variance)
        values, self._vectors = np.linalg.eigh(self._root[:, None] * self._gram * self._root)
        self._values = np.maximum(values, 0.0)

    def beyond(self, seen: NDArray[np.float64], energy: float, dimension: int) -> tuple[float, int]:
        """Return the energy outside what the rows span, and the number of directions there.

        seen    (rows,) the rows' products with the delta, here as below
        energy  the delta's squared length

        At most half of all directions are given up for the rows; where they span more, the strongest are. What of them
        is left only adds energy, so that a test for too little of it stays right.
        """
        kept = min(int((self._values > _RANK * self._values[-1]).sum()), dimension // 2)
        if not kept:
            return energy, dimension
        along = self._vectors[:, -kept:].T @ (self._root * self._scale * seen)
        return max(energy - float((along**2 / self._values[-kept:]).sum()), 0.0), dimension - kept

    def evidence(self, seen: NDArray[np.float64], energy: float, noise: float) -> float:
        """Return the log likelihood of the delta if all coins were normal, up to a constant."""
        length = (
            energy - 2.0 * float(self._chance @ (self._scale * seen)) + float(self._chance @ self._gram @ self._chance)
        )
        explained = float((self._along(seen) ** 2 / (noise**2 + self._values)).sum())
        return -0.5 * ((length - explained) / noise**2 + float(np.log(noise**2 + self._values).sum()))

    def amplitudes(self, noise: float) -> NDArray[np.float64]:
        """Return (canaries,) how many deviations being in a step moves a canary's reading.

        A row a has a'S^-1 a = h / D with h its leverage; leaving its own coin out of S divides by 1 - h [Sherman and
        Morrison 1950].
        """
        leverage, rest = self._leverage(noise)
        found: NDArray[np.float64] = np.sqrt(leverage / self._variance / np.maximum(rest, _TINY))
        return found[self._patients :]

    def standard(self, seen: NDArray[np.float64], noise: float) -> NDArray[np.float64]:
        """Return (canaries,) standardised readings; 0 for a canary without a gradient of its own."""
        leverage, rest = self._leverage(noise)
        projected = (self._vectors @ (self._along(seen) / (noise**2 + self._values))) / self._root
        own = leverage / self._variance
        readings: NDArray[np.float64] = (projected + self._chance * own) / np.sqrt(np.maximum(own * rest, _TINY))
        return readings[self._patients :]

    def pull(
        self, seen: NDArray[np.float64], inside: NDArray[np.bool_], noise: float
    ) -> tuple[float, float, float, float]:
        """Return the pull, its mean and the two parts of its variance under the claim, given the coins.

        The delta is weighed by S^-1 times the sum of the canaries inside: the matched filter for how heavy they are.
        """
        rate, patients = self._rate, self._patients
        sought = np.r_[np.zeros(patients), inside] / self._root
        weights = self._root * (self._vectors @ (self._vectors.T @ sought / (noise**2 + self._values)))
        reach = self._gram @ weights
        real, planted = reach[:patients], reach[patients:][inside]
        return (
            float(weights @ (self._scale * seen)) - rate * float(real.sum()),
            rate * float(planted.sum()),
            noise**2 * float(weights @ reach) + rate * (1.0 - rate) * float((real**2).sum()),
            rate * (1.0 - rate) * float((planted**2).sum()),
        )

    def _along(self, seen: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the delta less its mean, along the eigenvectors."""
        along: NDArray[np.float64] = self._vectors.T @ (self._root * (self._scale * seen - self._gram @ self._chance))
        return along

    def _leverage(self, noise: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return each row's leverage and one less it, both exact where they are small."""
        squares = self._vectors**2
        return squares @ (self._values / (noise**2 + self._values)), squares @ (noise**2 / (noise**2 + self._values))


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf
