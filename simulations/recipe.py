"""The recipe: what a scenario need not say about training and privacy, what it is then, and why.

Every reason is a measurement: text classification on frozen MiniLM, epsilon 0.3 to 8, see ``docs/recipes.md``. The
recipe fills gaps and never changes what a scenario says. Loads without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

Value = str | int | float


class Origin(StrEnum):
    """Who decided a setting; the default is the Study's, of a group of which the scenario says a part."""

    SCENARIO = "scenario"
    RECIPE = "recipe"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Advice:
    """One setting of the recipe.

    table, key  where it stands in a scenario
    value       what it is where the scenario does not say
    why         a sentence or two for people
    group       settings that make sense together alone: none of them is filled in where a scenario says one
    """

    table: str
    key: str
    value: Value
    why: str
    group: str | None = None

    @property
    def name(self) -> str:
        """``table.key``."""
        return f"{self.table}.{self.key}"


@dataclass(frozen=True, slots=True)
class Explained:
    """A setting that is in force, who decided it, what the recipe says, and why."""

    name: str
    value: Value
    origin: Origin
    recipe: Value
    why: str


RECIPE: tuple[Advice, ...] = (
    Advice(
        "adapter", "method", "ffa-lora",
        "only B trains, so averaging is exact and half the coordinates carry noise: 75.7 % where LoRA has 74.6 % at "
        "epsilon 3. With few records and a small epsilon, head-only is as good at a fortieth of the time",
    ),
    Advice(
        "adapter", "last_layers", 2,
        "the frozen layers in front are computed once a text; all layers cost many times as much for a fraction of a "
        "point",
    ),
    Advice("adapter", "rank", 8, "4 to 8 are enough for a classification; more weights carry more noise"),
    Advice(
        "adapter", "alpha", 2.0,
        "a quarter of the rank: the adapter's gradient then does not crowd the head's out of the clip norm",
    ),
    Advice(
        "training", "rounds", 50,
        "with large batches accuracy has settled after 50 to 100 noisy steps; further ones mostly add noise",
    ),
    Advice(
        "training", "steps_per_round", 1,
        "one noisy step is averaged over all sites before the next; several local ones wander with each site's noise",
    ),
    Advice(
        "training", "optimizer", "sgd", "a site sends its one noised gradient; the server's optimizer scales it", "rate"
    ),
    Advice("training", "learning_rate", 1.0, "of no effect beside FedAdam or FedYogi, which know no scale", "rate"),
    Advice(
        "training", "server_optimizer", "fedadam",
        "after a few noisy rounds it has learned each coordinate's scale, which under noise is hard to guess: one rate "
        "fits head and adapter", "rate",
    ),
    Advice(
        "training", "server_learning_rate", 0.1,
        "the best or next to it on MedQuAD and SST-2; `consilium-sim tune` finds a better one", "rate",
    ),
    Advice(
        "training", "schedule", "cosine",
        "late steps correct little and are noised like the first: a falling rate is worth 1.4 to 2 points",
    ),
    Advice("training", "micro_batch", 64, "speed is flat from 16 to 64; memory is not"),
    Advice(
        "privacy", "sampling_rate", 0.2,
        "large batches win: 100 steps of 1,000 records gave 75.8 %, 400 steps of 125 gave 72.2 %, at one epsilon",
    ),
    Advice(
        "privacy", "clip_norm", 0.5,
        "0.1 to 1 beats 10 by 2 to 4 points: beyond what most gradients measure, a larger norm buys noise",
    ),
)  # fmt: skip
"""All settings with a default, in the order in which they are explained."""


def completed(fields: Mapping[str, object]) -> dict[str, object]:
    """Return a scenario's parsed fields with the recipe's values where it says nothing; tables of a wrong form stay."""
    filled = dict(fields)
    for advice in RECIPE:
        table = filled.get(advice.table, {})
        if isinstance(table, Mapping) and not _is_said(fields, advice):
            filled[advice.table] = {**table, advice.key: advice.value}
    return filled


def explain(fields: Mapping[str, object], resolved: Mapping[str, Mapping[str, Value]]) -> tuple[Explained, ...]:
    """Return every setting of the recipe as it is in force.

    fields    as the scenario was parsed, before the recipe completed it
    resolved  by table, the values of the scenario that was made of them
    """
    return tuple(
        Explained(
            advice.name,
            resolved[advice.table][advice.key],
            _origin(fields, advice),
            advice.value,
            advice.why,
        )
        for advice in RECIPE
    )


def _origin(fields: Mapping[str, object], advice: Advice) -> Origin:
    table = fields.get(advice.table, {})
    if isinstance(table, Mapping) and advice.key in table:
        return Origin.SCENARIO
    return Origin.DEFAULT if _is_said(fields, advice) else Origin.RECIPE


def _is_said(fields: Mapping[str, object], advice: Advice) -> bool:
    table = fields.get(advice.table, {})
    if not isinstance(table, Mapping):
        return True
    together = [
        other.key for other in RECIPE if advice.group and (other.table, other.group) == (advice.table, advice.group)
    ]
    return any(key in table for key in together or [advice.key])
