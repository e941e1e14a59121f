"""Invented curves, for tests of what is said about curves."""

from __future__ import annotations

from collections.abc import Sequence

from simulations.curve.cells import Cell, Curve, Row, cells
from simulations.findings import wilson
from simulations.scenario import from_fields
from tests.simulations.scenarios import fields

TESTED = 200


def row(cell: Cell, accuracy: float) -> Row:
    """Return an invented row of a cell."""
    interval = wilson(accuracy, TESTED)
    return Row(
        way=cell.way, labels=cell.labels, epsilon=cell.epsilon, seed=cell.seed, accuracy=accuracy, interval=interval,
        trained=4 * cell.labels, tested=TESTED,
    )  # fmt: skip


def curve(
    ways: Sequence[str] = ("ffa-lora", "feature-extraction"),
    labels: Sequence[int] = (10, 100),
    epsilons: Sequence[float | None] = (None, 8.0),
    seeds: Sequence[int] = (0,),
    command: str = "consilium-sim curve notes.toml",
    **changes: object,
) -> Curve:
    """Return a curve in which each row is one half of a point better than the one before it."""
    asked = cells(ways, labels, epsilons, seeds)
    rows = [row(cell, 0.6 + 0.005 * number) for number, cell in enumerate(asked)]
    return Curve.of(from_fields(fields(**changes)), rows, command)
