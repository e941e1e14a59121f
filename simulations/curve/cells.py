"""What a curve is made of: its cells, their rows, and what must be said beside them. Loads without torch.

Every figure is an exact accuracy that the simulator read from the sites' records (RULES 10).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self, TypeVar

from pydantic import Field

from common import errors
from common.errors import ConsiliumError
from common.parts import Line, Name, Part
from common.study import Unit
from common.transfer import Pretraining
from common.ways import WAYS
from simulations.metrics import SYNTHETIC
from simulations.scenario import Scenario

MOST_WAYS = 6
"""As many as a figure tells apart."""
UNTUNED = "UNTUNED: every cell has the scenario's own settings; a way may do better with settings of its own."
UNRELEASED = (
    "SIMULATOR ONLY: exact figures, never released by a real study; to choose a way by them is to tune non-privately."
)

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Asked = TypeVar("Asked", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Cell:
    """One figure: a way, the most labelled records that a site has, an epsilon or None for no privacy, and a seed."""

    way: str
    labels: int
    epsilon: float | None
    seed: int


class Row(Part):
    """What a cell came to.

    accuracy  exact, on all sites' test records
    interval  Wilson's, at 95 %, for the test records; it knows nothing of other seeds
    trained   labelled records that all sites together trained on
    tested    test records of all sites together
    """

    way: Name
    labels: int = Field(ge=1)
    epsilon: float | None
    seed: int = Field(ge=0)
    accuracy: Fraction
    interval: tuple[Fraction, Fraction]
    trained: int = Field(ge=1)
    tested: int = Field(ge=1)


class Curve(Part):
    """All rows of one command, in the order in which they ran, and on whose records.

    delta  of each private cell
    marks  what must be said wherever these figures are
    """

    scenario: Name
    title: Line
    command: str
    records: Literal["generated", "read"]
    unit: Unit
    delta: float
    marks: tuple[str, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)

    @classmethod
    def of(cls, scenario: Scenario, rows: Sequence[Row], command: str) -> Self:
        """Return a scenario's rows with their marks."""
        score = scenario.task.score
        said = composed(rows, scenario.privacy.unit, scenario.privacy.delta)
        return cls(
            scenario=scenario.name,
            title=scenario.title,
            command=command,
            records="generated" if scenario.synthetic else "read",
            unit=scenario.privacy.unit,
            delta=scenario.privacy.delta,
            marks=(
                *((SYNTHETIC, UNTUNED) if scenario.synthetic else (UNRELEASED, said, UNTUNED)),
                *([] if score == "accuracy" else [f"SCORE: what is called accuracy here is {score}."]),
            ),
            rows=tuple(rows),
        )

    def ways(self) -> tuple[str, ...]:
        """Return the ways, in the order in which they were asked for."""
        return _distinct([row.way for row in self.rows])

    def epsilons(self) -> tuple[float | None, ...]:
        """Return the epsilons, in the order in which they were asked for."""
        return _distinct([row.epsilon for row in self.rows])

    def labels(self) -> tuple[int, ...]:
        """Return the numbers of labels per site, rising."""
        return tuple(sorted({row.labels for row in self.rows}))

    def at(self, way: str, labels: int, epsilon: float | None) -> Spot | None:
        """Return what the seeds of one spot of the figure came to; None where nothing was measured."""
        rows = [row for row in self.rows if (row.way, row.labels, row.epsilon) == (way, labels, epsilon)]
        return Spot.of(rows) if rows else None


@dataclass(frozen=True, slots=True)
class Spot:
    """What the seeds of one way, number of labels and epsilon came to.

    accuracy   their mean
    low, high  the interval of a single seed; of several, the lowest and the highest end of theirs
    spread     standard deviation over seeds; None for a single one
    """

    accuracy: float
    low: float
    high: float
    spread: float | None

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Self:
        """Summarise the rows of one spot, at least one."""
        values = [row.accuracy for row in rows]
        return cls(
            statistics.mean(values),
            min(row.interval[0] for row in rows),
            max(row.interval[1] for row in rows),
            statistics.stdev(values) if len(values) > 1 else None,
        )


def composed(rows: Sequence[Row], unit: Unit, delta: float) -> str:
    """Say what cells would spend together, were each a study on the same people: the simple sum, which always holds.

    delta  of each private cell
    """
    spent = [row.epsilon for row in rows if row.epsilon is not None]
    if not spent:
        return f"COMPOSED: no cell is private, so that no epsilon bounds what they tell of one {unit.value}."
    free = len(rows) - len(spent)
    rest = f"; no epsilon bounds the {free} without privacy" if free else ""
    return (
        f"COMPOSED: as studies on the same people, the {len(spent)} private cells would spend epsilon "
        f"{sum(spent):.4g} at delta {len(spent) * delta:.3g} for one {unit.value}{rest}."
    )


def cells(
    ways: Sequence[str], labels: Sequence[int], epsilons: Sequence[float | None], seeds: Sequence[int]
) -> tuple[Cell, ...]:
    """Return every combination; those that share data and model stand together."""
    return tuple(
        Cell(way, count, epsilon, seed) for seed in seeds for way in ways for count in labels for epsilon in epsilons
    )


def variant(scenario: Scenario, cell: Cell) -> Scenario:
    """Return a cell's scenario; raises CSL-511 for a way that the scenario's other settings do not allow.

    Where epsilon is none the privacy part is the scenario's own, of which then the sampling rate alone counts.
    """
    privacy = scenario.privacy
    if cell.epsilon is not None:
        privacy = privacy.model_copy(update={"epsilon": cell.epsilon, "noise_multiplier": None})
    way = WAYS[cell.way]
    if way.mixed and not scenario.adapter.site_ranks:
        raise ConsiliumError(errors.SCENARIO_INVALID, f"--ways: {cell.way}: the scenario has no adapter.site_ranks")
    pretraining = scenario.pretraining or Pretraining(rounds=max(1, scenario.training.rounds // 4))
    return scenario.model_copy(
        update={
            "adapter": way.adapter(scenario.adapter),
            "pretraining": pretraining if way.pretrains else None,
            "privacy": privacy,
            "seed": cell.seed,
        }
    )


def way_of(scenario: Scenario) -> str:
    """Return the way in which a scenario itself transfers."""
    spec = scenario.adapter
    return next(
        name
        for name, way in WAYS.items()
        if way.method == spec.method
        and way.last_layers in (None, spec.last_layers)
        and (way.pretrains, way.mixed) == (scenario.pretraining is not None, bool(spec.site_ranks))
    )


def read_ways(text: str) -> tuple[str, ...]:
    """Read ``--ways``; raises CSL-511."""
    ways = _read("--ways", text, str.strip)
    if unknown := [way for way in ways if way not in WAYS]:
        raise ConsiliumError(errors.SCENARIO_INVALID, f"--ways: {unknown[0]!r} is none of {', '.join(WAYS)}")
    if len(ways) > MOST_WAYS:
        raise ConsiliumError(errors.SCENARIO_INVALID, f"--ways: {len(ways)}; a figure tells {MOST_WAYS} apart")
    return ways


def read_labels(text: str) -> tuple[int, ...]:
    """Read ``--labels``: whole numbers above 0, rising; raises CSL-511."""
    return tuple(sorted(_read("--labels", text, _count)))


def read_epsilons(text: str) -> tuple[float | None, ...]:
    """Read ``--epsilon``: numbers above 0, or ``none`` for no privacy; raises CSL-511."""
    return _read("--epsilon", text, _epsilon)


def _read(option: str, text: str, read: Callable[[str], Asked]) -> tuple[Asked, ...]:
    try:
        return _distinct([read(part) for part in text.split(",")])
    except ValueError as error:
        raise ConsiliumError(errors.SCENARIO_INVALID, f"{option}: {text!r}: {error}") from error


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError("not above 0")
    return count


def _epsilon(text: str) -> float | None:
    if text.strip() == "none":
        return None
    if not (math.isfinite(epsilon := float(text)) and epsilon > 0.0):
        raise ValueError("not above 0 and finite")
    return epsilon


def _distinct(values: Sequence[Asked]) -> tuple[Asked, ...]:
    return tuple(dict.fromkeys(values))
