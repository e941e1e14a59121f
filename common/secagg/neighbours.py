"""Neighbourhoods for simulations of many sites: how many neighbours are enough, computed and never guessed.

Each of n sites shares its secrets with k neighbours, any t of which open one. Neighbours are the next k/2 on both sides
of a random ring, so a site's neighbours are a uniformly random k of the others: of C corrupt sites X, hypergeometric,
are among them, and of L lost ones Y. After Bell et al. 2020 (CCS), sections 3 and 4, with a union bound over all sites:

    liveness   every secret is opened:           n P(Y > k - t)  <= 2**-liveness
    privacy    the server follows the protocol:  n P(X >= t)     <= 2**-privacy
               the server cheats:                n P(2t <= k + X) <= 2**-privacy

A cheating server tells a of the honest neighbours of a site one story and b the other, a + b <= k - X, and adds what
the X corrupt ones hold: both of the site's secrets open only if a + X >= t and b + X >= t, so not where 2t > k + X.
And the honest survivors must hang together, or the sum of a part of them could be read by itself. A ring falls apart
only where two runs of k/2 neighbours are corrupt or lost each: n**2 / 2 times the chance that k given sites are, which
is bounded by 2**-privacy too. The last condition takes losses at random; against a server that chooses them the
quorum of t among each site's own neighbours stands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """What is enough for so many sites.

    degree     neighbours of each site: even, or all the others
    threshold  shares of them that open a secret
    """

    degree: int
    threshold: int


@lru_cache(maxsize=64)
def required(
    n: int,
    *,
    corrupt: float,
    lost: float,
    privacy_bits: float = 40.0,
    liveness_bits: float = 20.0,
    cheating: bool,
) -> Neighbourhood:
    """Return the smallest neighbourhood that keeps both bounds of the module's docstring.

    n              sites in the cohort
    corrupt        share of the sites that collude with the server, in [0, 1)
    lost           share of the sites that are lost in a sum, in [0, 1)
    privacy_bits   privacy fails with a probability of at most 2**-privacy_bits, over all sites
    liveness_bits  the sum is lost with a probability of at most 2**-liveness_bits, over all sites
    cheating       whether the server may tell its sites different things

    Raises CSL-404 where even n - 1 neighbours are too few.
    """
    bad, away = int(corrupt * n), int(np.ceil(lost * n))
    log_factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, max(n, 2))))])
    privacy, liveness = -privacy_bits * np.log(2.0) - np.log(n), -liveness_bits * np.log(2.0) - np.log(n)
    for degree in (*range(2, n - 1, 2), n - 1):
        most_bad = _quantile(_log_tails(log_factorials, n - 1, bad, degree), privacy)
        most_away = _quantile(_log_tails(log_factorials, n - 1, away, degree), liveness)
        threshold = (degree + most_bad) // 2 + 1 if cheating else most_bad + 1
        if threshold <= degree - most_away and _log_apart(log_factorials, n, bad + away, degree) <= privacy:
            return Neighbourhood(degree, threshold)
    raise ConsiliumError(errors.SECAGG_THRESHOLD, f"{n} sites are too few for such neighbourhoods")


def circles(n: int, degree: int, seed: bytes) -> list[tuple[int, ...]]:
    """Return each site's neighbours, rising, by place from 0: the next ``degree`` / 2 on both sides of a random ring.

    seed    32 bytes, public; the ring is drawn from an AES-256-CTR keystream under it
    degree  even, or n - 1 for all the others
    """
    if degree >= n - 1:
        return [tuple(other for other in range(n) if other != place) for place in range(n)]
    ring = _ring(n, seed)
    found: list[tuple[int, ...]] = [()] * n
    steps = [step for step in range(-(degree // 2), degree // 2 + 1) if step]
    for at, place in enumerate(ring):
        found[place] = tuple(sorted(ring[(at + step) % n] for step in steps))
    return found


def _ring(n: int, seed: bytes) -> list[int]:
    """Return a random order: sorted by 64 random bits each, whose ties (n**2 / 2**65) fall to the lower place."""
    key = HKDF(hashes.SHA256(), 32, salt=b"consilium/v1/secagg/ring", info=n.to_bytes(4, "big")).derive(seed)
    words = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(8 * n))
    return [int(place) for place in np.argsort(np.frombuffer(words, dtype="<u8"), kind="stable")]


def _log_tails(log_factorials: NDArray[np.float64], total: int, marked: int, drawn: int) -> NDArray[np.float64]:
    """Return log P(at least i marked) for i = 0 .. drawn + 1, where ``drawn`` of ``total`` are drawn."""
    counts = np.arange(drawn + 1)
    possible = (counts <= marked) & (drawn - counts <= total - marked)
    i = counts[possible]

    def choose(above: int, below: NDArray[np.int64]) -> NDArray[np.float64]:
        logs: NDArray[np.float64] = log_factorials[above] - log_factorials[below] - log_factorials[above - below]
        return logs

    masses = np.full(drawn + 2, -np.inf)
    whole = log_factorials[total] - log_factorials[drawn] - log_factorials[total - drawn]
    masses[:-1][possible] = choose(marked, i) + choose(total - marked, drawn - i) - whole
    tails: NDArray[np.float64] = np.logaddexp.accumulate(masses[::-1])[::-1]
    return tails


def _quantile(log_tails: NDArray[np.float64], bound: float) -> int:
    """Return the least i for which more than i has no more than the bound's probability."""
    return int(np.argmax(log_tails <= bound)) - 1 if (log_tails <= bound).any() else len(log_tails)


def _log_apart(log_factorials: NDArray[np.float64], n: int, bad: int, degree: int) -> float:
    """Return the log of n / 2 times the chance that ``degree`` given sites are all bad; the caller has the other n."""
    if degree > bad or degree >= n - 1:
        return -np.inf
    chance = log_factorials[bad] - log_factorials[bad - degree]
    chance -= (log_factorials[n - 1] + np.log(n)) - log_factorials[n - degree]
    return float(chance + np.log(n / 2.0))
