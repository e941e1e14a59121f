"""Epsilon by four accountants over a grid: ours, PLD itself, Opacus' PRV, and RDP.

Training alone, so that all four account for the same thing: Poisson-subsampled Gaussian steps under adding or removing
one unit. Ours must never be below PLD's; PRV is an estimate with an error on both sides, and RDP an upper bound that is
looser. Where an accountant finds no finite number the cell is empty, which is itself a finding.
"""

from __future__ import annotations

import argparse
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import dp_accounting
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from common.privacy.accounting import DISCRETISATION, epsilon_of, training_event
from simulations.benchmarks._rows import save

Row = dict[str, float | int | None]
OUT = Path("runs/bench/epsilon.json")
NOISES = (0.5, 0.8, 1.0, 2.0, 4.0, 8.0)
RATES = (0.01, 0.1, 0.5)
STEPS = (1, 100, 1000)
DELTAS = (1e-5, 1e-7)
_PRV_ERROR = 0.01


def measure(noise: float, rate: float, steps: int, delta: float) -> Row:
    """Return one cell: epsilon by each accountant, None where it has none."""
    row: Row = {"noise_multiplier": noise, "sampling_rate": rate, "steps": steps, "delta": delta}
    row["ours"] = epsilon_of(
        noise_multiplier=noise,
        sampling_rate=rate,
        steps=steps,
        delta=delta,
        evaluation_noise_multiplier=5.0,
        evaluation_releases=0,
    )
    row["pld"] = _finite(lambda: _composed(_pld(), noise, rate, steps).get_epsilon(delta))
    row["prv"] = _finite(lambda: _prv(noise, rate, steps, delta))
    row["rdp"] = _finite(lambda: _composed(RdpAccountant(), noise, rate, steps).get_epsilon(delta))
    return row


def cells() -> list[tuple[float, float, int, float]]:
    """Return (noise multiplier, sampling rate, steps, delta) of every cell."""
    return list(itertools.product(NOISES, RATES, STEPS, DELTAS))


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text."""
    lines = [f"{'noise':>6} {'rate':>5} {'steps':>5} {'delta':>6} {'ours':>9} {'PLD':>9} {'PRV':>9} {'RDP':>9}"]
    for row in rows:
        shown = " ".join(f"{'-' if row[key] is None else format(row[key], '.4f'):>9}" for key in _BY)
        lines.append(
            f"{row['noise_multiplier']:>6} {row['sampling_rate']:>5} {row['steps']:>5} {row['delta']:>6.0e} {shown}"
        )
    return "\n".join(lines)


_BY = ("ours", "pld", "prv", "rdp")


def below_pld(rows: Sequence[Row]) -> list[Row]:
    """Return the rows in which ours is below PLD's: there must be none."""
    return [row for row in rows if row["pld"] is not None and (row["ours"] or 0.0) < row["pld"]]


def main(argv: Sequence[str]) -> int:
    """Compute every cell, write and print the table; returns 1 if ours is anywhere below PLD's."""
    parser = argparse.ArgumentParser(prog="make bench NAME=epsilon")
    parser.add_argument("--out", type=Path, default=OUT)
    out: Path = parser.parse_args(argv).out
    rows = [measure(*cell) for cell in cells()]
    save(out, rows, "make bench NAME=epsilon", ("dp-accounting", "opacus"), {"grid": DISCRETISATION, "prv": _PRV_ERROR})
    print(table(rows))
    wrong = below_pld(rows)
    print(f"{len(rows)} cells; ours is below PLD's in {len(wrong)}")
    return 1 if wrong else 0


def _pld() -> PLDAccountant:
    return PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, DISCRETISATION)


def _composed(
    accountant: dp_accounting.PrivacyAccountant, noise: float, rate: float, steps: int
) -> dp_accounting.PrivacyAccountant:
    return accountant.compose(training_event(noise, rate, steps))


def _prv(noise: float, rate: float, steps: int, delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta=delta, eps_error=_PRV_ERROR))


def _finite(call: Callable[[], float]) -> float | None:
    """Return a number, or None where an accountant gives none: Opacus raises, or returns infinity."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = float(call())
    except (ValueError, RuntimeError, OverflowError, MemoryError):
        return None
    return found if math.isfinite(found) else None
