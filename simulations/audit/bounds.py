"""What guesses prove: lower bounds on epsilon from how many of an attacker's guesses were right.

One run is enough when many records enter it by independent fair coins: if the mechanism is (epsilon, delta)-private in
every one of them, the number of right guesses is all but dominated by a binomial [Steinke, Nasr and Jagielski 2023,
"Privacy auditing with one (1) training run", arXiv 2305.08846, theorem 5.2]. Guesses may depend on everything that was
seen; only how many are made must be settled beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

GUESSED_SHARES = (1 / 32, 1 / 8, 1 / 2)
"""Shares of the bits on which the attacker guesses, the surest first. Fixed here, before anything runs: each share is
one test, and the level is divided by their number (Bonferroni), so more shares would cost more than they find."""
FEWEST_GUESSES = 8
"""A share that comes to fewer guesses is left out: even if all were right they would prove nothing."""
_MOST_EPSILON = 60.0


@dataclass(frozen=True, slots=True)
class Bound:
    """A lower bound on epsilon, and the guesses that it rests on.

    epsilon   holds at the confidence asked for, over all shares together; 0 where nothing was proven
    right     right ones of the ``guesses``
    """

    epsilon: float
    guesses: int
    right: int


def guess_counts(bits: int) -> tuple[int, ...]:
    """Return the numbers of guesses that are tried for so many bits, rising; all of them where bits are few."""
    counts = {math.ceil(share * bits) for share in GUESSED_SHARES}
    return tuple(sorted(count for count in counts if count >= FEWEST_GUESSES)) or (bits,)


def p_value(bits: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Return a bound on the chance of so many right guesses under (epsilon, delta)-privacy [theorem 5.2].

    bits     coins that were tossed, each fair and independent
    guesses  bits on which a guess was made; the rest are abstentions
    right    right ones among the guesses

    With W binomial(guesses, e^eps / (1 + e^eps)), the chance is at most P[W >= right] + 2 bits delta max over i >= 1 of
    P[right > W >= right - i] / i. Values of i above ``right`` never give the maximum.
    """
    if not 0 <= right <= guesses <= bits:
        raise ValueError(f"{right} right of {guesses} guesses on {bits} bits")
    mass = _binomial(guesses, epsilon)
    tail = float(mass[right:].sum())
    if delta == 0.0 or right == 0:
        return min(tail, 1.0)
    below = np.cumsum(mass[:right][::-1]) / np.arange(1, right + 1)
    return min(tail + 2.0 * bits * delta * float(below.max()), 1.0)


@lru_cache(maxsize=4096)
def fewest_right(bits: int, guesses: int, epsilon: float, delta: float, level: float) -> int:
    """Return the fewest right guesses whose p-value is at most ``level``; ``guesses + 1`` where none is enough."""
    low, high = math.floor(guesses / (1.0 + math.exp(-epsilon))), guesses + 1
    while low < high:
        middle = (low + high) // 2
        if p_value(bits, guesses, middle, epsilon, delta) <= level:
            high = middle
        else:
            low = middle + 1
    return low


@lru_cache(maxsize=4096)
def epsilon_at_least(bits: int, guesses: int, right: int, delta: float, level: float) -> float:
    """Return the largest epsilon that so many right guesses refute at ``level``, to 1e-6 from below; 0 for none."""
    if p_value(bits, guesses, right, 0.0, delta) > level:
        return 0.0
    low, high = 0.0, _MOST_EPSILON
    while high - low > 1e-6:
        middle = 0.5 * (low + high)
        if p_value(bits, guesses, right, middle, delta) <= level:
            low = middle
        else:
            high = middle
    return low


def best_bound(log_odds: NDArray[np.float64], coins: NDArray[np.bool_], delta: float, level: float) -> Bound:
    """Return the best bound over all numbers of guesses, which together are wrong with chance ``level`` at most.

    log_odds  (bits,) how much more likely each coin fell in than out, to the attacker; its sign is the guess, its size
              how sure the guess is
    coins     (bits,) how they fell
    """
    counts = guess_counts(len(coins))
    found = [
        Bound(epsilon_at_least(len(coins), guesses, right, delta, level / len(counts)), guesses, right)
        for guesses, right in zip(counts, right_guesses(log_odds, coins, counts), strict=True)
    ]
    return max(found, key=lambda bound: (bound.epsilon, bound.right / bound.guesses))


def right_guesses(log_odds: NDArray[np.float64], coins: NDArray[np.bool_], counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many of the surest guesses are right, for each number of guesses."""
    surest = np.argsort(-np.abs(log_odds), kind="stable")
    right = np.cumsum((log_odds[surest] > 0.0) == coins[surest])
    return tuple(int(right[count - 1]) for count in counts)


def share_interval(hits: int, trials: int, level: float) -> tuple[float, float]:
    """Return the two-sided Clopper-Pearson interval of a share, each side wrong with chance ``level / 2``."""
    low = 0.0 if hits == 0 else _root(lambda share: _at_least(hits, trials, share) - level / 2)
    high = 1.0 if hits == trials else _root(lambda share: level / 2 - 1.0 + _at_least(hits + 1, trials, share))
    return low, high


def _binomial(trials: int, epsilon: float) -> NDArray[np.float64]:
    """Return the masses of binomial(trials, e^eps / (1 + e^eps)) on 0 to ``trials``."""
    log_right = -math.log1p(math.exp(-epsilon))
    hits = np.arange(trials + 1)
    found: NDArray[np.float64] = np.exp(_log_ways(trials) + hits * log_right + (trials - hits) * (log_right - epsilon))
    return found


def _at_least(hits: int, trials: int, share: float) -> float:
    counts = np.arange(trials + 1)
    mass = np.exp(_log_ways(trials) + counts * math.log(share) + (trials - counts) * math.log1p(-share))
    return float(mass[hits:].sum())


@lru_cache(maxsize=64)
def _log_ways(trials: int) -> NDArray[np.float64]:
    """Return the logarithms of the binomial coefficients of ``trials``."""
    factorials = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1.0, trials + 1.0)))])
    ways: NDArray[np.float64] = factorials[-1] - factorials - factorials[::-1]
    return ways


def _root(rising: Callable[[float], float]) -> float:
    """Return where a rising function of a share crosses zero, to 1e-9."""
    low, high = 1e-12, 1.0 - 1e-12
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if rising(middle) < 0.0 else (low, middle)
    return 0.5 * (low + high)
