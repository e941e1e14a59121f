"""What an audit says: its findings as frozen data, and the verdict that follows from them. Loads without torch.

Every chance of a false alarm is fixed here, before anything runs: five in a hundred for both bounds together, one in a
hundred for both tests of the mechanism.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from common.parts import Part
from common.study import Unit

BOUND_LEVEL = 0.05
"""Chance that any bound on epsilon is above the truth; each of the two games has half of it."""
MECHANISM_LEVEL = 0.01
"""Chance that any test of the mechanism raises a false alarm; each of the two has half of it."""
GAME_LEVEL, TEST_LEVEL = BOUND_LEVEL / 2.0, MECHANISM_LEVEL / 2.0


class Sabotage(StrEnum):
    """Ways in which a mechanism is broken on purpose (RULES 17)."""

    NOISE_QUARTER = "noise-quarter"
    NO_NOISE = "no-noise"
    IGNORED_CAP = "ignored-cap"
    MICROBATCH_CLIPPING = "microbatch-clipping"


class Game(Part):
    """One of the two games: whose coins, what was guessed, what follows, and what could have followed.

    bits          coins tossed
    guesses       on which the best bound rests, ``right`` of them right
    bound         lower bound on epsilon at the game's level; 0 where nothing was proven
    claim         epsilon that the mechanism claims for what the game attacks
    typical       bound that canaries as distinct as these would typically give if all is as claimed
    ideal         the same for canaries that nothing resembles
    noticed       chance that a quarter of the noise would have put the bound above the claim
    """

    name: Literal["whole study", "one charge"]
    bits: int
    guesses: int
    right: int
    bound: float
    claim: float
    typical: float
    ideal: float
    noticed: float

    @property
    def is_exceeded(self) -> bool:
        """Whether the claim is refuted."""
        return self.bound > self.claim


class MechanismTest(Part):
    """A test of the mechanism itself: what was measured over what was claimed.

    low, high  limits of ``measured``, each wrong with chance ``TEST_LEVEL``
    notices    measured share (noise) or multiple (weight) from which an alarm is as good as certain
    """

    name: Literal["noise", "weight of a canary"]
    measured: float
    low: float
    high: float
    notices: float
    alarm: bool


class Membership(Part):
    """How well the released adapter tells who was trained on.

    auc      1/2 is chance; ``low`` and ``high`` bound it with 95 % confidence
    at_1, at_5  share of members found at 1 % and 5 % false alarms
    epsilon  bound that follows if patients were independent trials: evidence, and no verdict rests on it
    """

    members: int
    others: int
    auc: float
    low: float
    high: float
    at_1: float
    at_5: float
    epsilon: float


class Audit(Part):
    """Everything that an audit found. Simulator only: nothing in it is ever released."""

    title: str
    command: str
    site: str
    unit: Unit
    epsilon: float
    delta: float
    noise_multiplier: float
    sampling_rate: float
    rounds: int
    patients: int
    canaries: int
    sabotage: Sabotage | None
    games: tuple[Game, ...]
    tests: tuple[MechanismTest, ...]
    membership: Membership
    notes: tuple[str, ...]
    log_odds_in: tuple[float, ...]
    log_odds_out: tuple[float, ...]

    @property
    def faults(self) -> tuple[str, ...]:
        """What refutes the claim, in words; empty where nothing does."""
        refuted = [
            f"{game.name}: at least epsilon {game.bound:.3g} where {game.claim:.3g} is claimed"
            for game in self.games
            if game.is_exceeded
        ]
        wrong = {
            "noise": "less noise left than is claimed",
            "weight of a canary": "a canary weighs more than is claimed",
        }
        alarms = [
            f"{wrong[test.name]}: {test.measured:.3f} times, between {test.low:.3f} and {test.high:.3f}"
            for test in self.tests
            if test.alarm
        ]
        return (*refuted, *alarms)

    @property
    def verdict(self) -> str:
        """One sentence for people."""
        return "the claim does not hold" if self.faults else "nothing was found that contradicts the claim"
