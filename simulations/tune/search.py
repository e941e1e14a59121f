"""A random search with halving: many settings for a short time, the best of them for the whole time.

Trials train privately, with the noise of a whole study at the scenario's epsilon, so that what wins is what wins under
noise. They are judged on validation records, exactly: that is not private, and is therefore done on public or generated
records alone (RULES 10).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Literal, Self

from pydantic import model_validator

from common.parts import Part
from simulations.scenario import Scenario, rate_of, with_rate

RATES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Learning rates that are tried, over the scenario's own."""
CLIP_NORMS = (0.1, 0.2, 0.5, 1.0)
SAMPLING_RATES = (0.1, 0.2, 0.5)
ROUNDS = (25, 50, 100)
SHORT = 4
"""A first trial has one ``SHORT``-th of the rounds; as few in ``SHORT`` go on to all of them."""

Records = Literal["generated", "public"]


class Settings(Part):
    """What is searched for. ``learning_rate`` is an adaptive server's, else the sites' own."""

    learning_rate: float
    clip_norm: float
    sampling_rate: float
    rounds: int

    @classmethod
    def of(cls, scenario: Scenario) -> Self:
        """Return a scenario's own."""
        training, privacy = scenario.training, scenario.privacy
        return cls(
            learning_rate=rate_of(training),
            clip_norm=privacy.clip_norm,
            sampling_rate=privacy.sampling_rate,
            rounds=training.rounds,
        )

    def applied(self, scenario: Scenario) -> Scenario:
        """Return the scenario with these settings; its noise is calibrated anew."""
        training = with_rate(scenario.training, self.learning_rate).model_copy(update={"rounds": self.rounds})
        privacy = scenario.privacy.model_copy(
            update={
                "clip_norm": self.clip_norm,
                "sampling_rate": self.sampling_rate,
                "noise_multiplier": None,
                "max_charges": None,
            }
        )
        return scenario.model_copy(update={"training": training, "privacy": privacy, "tuning": None})


class Tried(Part):
    """One trial: its settings, for how many rounds it trained, and its exact accuracy on validation records."""

    settings: Settings
    rounds: int
    accuracy: float


class Tuned(Part):
    """What a search came to.

    validated  validation records that trials were judged on
    adaptive   whether the learning rate is the server's
    trials     in the order in which they ran, the scenario's own settings first
    """

    scenario: str
    command: str
    records: Records
    epsilon: float
    delta: float
    validated: int
    adaptive: bool
    trials: tuple[Tried, ...]
    best: Settings

    @model_validator(mode="after")
    def _best_was_tried(self) -> Self:
        if self.best not in {trial.settings for trial in self.trials}:
            raise ValueError("the best settings were never tried")
        return self

    @property
    def mark(self) -> str:
        """What must be said wherever these settings are."""
        what = "generated records" if self.records == "generated" else "records that were said to be public"
        return f"TUNED on {what}: no patient's budget was spent"

    def fragment(self) -> str:
        """Return the tables of a scenario that hold the best settings, as TOML."""
        return "\n".join(
            [
                f"# {self.mark}.",
                f"# Epsilon {self.epsilon:g} at delta {self.delta:g}, {len(self.trials)} trials on scenario "
                f"{self.scenario}, {self.validated} validation records.",
                "[training]",
                f"rounds = {self.best.rounds}",
                f"{self._rate_name} = {self.best.learning_rate:g}",
                "",
                "[privacy]",
                f"sampling_rate = {self.best.sampling_rate:g}",
                f"clip_norm = {self.best.clip_norm:g}",
                "",
            ]
        )

    @property
    def _rate_name(self) -> str:
        return "server_learning_rate" if self.adaptive else "learning_rate"


Trial = Callable[[Settings, int], float]
"""Trains settings for so many rounds and returns the accuracy on validation records."""


def candidates(own: Settings, count: int, seed: int) -> tuple[Settings, ...]:
    """Return settings to try: the scenario's own, then others at random from the space, none twice.

    count  how many, at most as many as the space holds
    """
    space = [
        Settings(learning_rate=own.learning_rate * rate, clip_norm=clip, sampling_rate=share, rounds=rounds)
        for rate in RATES
        for clip in CLIP_NORMS
        for share in SAMPLING_RATES
        for rounds in ROUNDS
    ]
    others = [settings for settings in space if settings != own]
    random.Random(seed).shuffle(others)  # noqa: S311  which settings are tried is no secret
    return (own, *others[: count - 1])


def search(own: Settings, count: int, seed: int, trial: Trial) -> tuple[tuple[Tried, ...], Settings]:
    """Try settings briefly, the best of them in full; return all trials and the best of those in full.

    The scenario's own settings always go on, so that the best is never worse than they are on these records.
    """
    short = [_tried(settings, max(1, settings.rounds // SHORT), trial) for settings in candidates(own, count, seed)]
    kept = ranked(short)[: max(1, len(short) // SHORT)]
    finalists = [own, *(tried.settings for tried in kept if tried.settings != own)]
    full = [_tried(settings, settings.rounds, trial) for settings in finalists]
    return (*short, *full), ranked(full)[0].settings


def ranked(trials: Sequence[Tried]) -> list[Tried]:
    """Return trials from the best to the worst; of equals the earlier one first."""
    return sorted(trials, key=lambda tried: -tried.accuracy)


def _tried(settings: Settings, rounds: int, trial: Trial) -> Tried:
    return Tried(settings=settings, rounds=rounds, accuracy=trial(settings, rounds))
