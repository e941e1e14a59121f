"""The audit of the demo, honest and broken in four ways, at epsilon 1 and 8: bounds, tests, and what was noticed.

Each row is one audit with fresh coins and noise. An honest row may raise a false alarm with the chances that
:mod:`simulations.audit.findings` fixes; every broken one must be noticed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from simulations import scenario as scenarios
from simulations.audit.findings import Audit, Sabotage
from simulations.audit.study import audit_scenario
from simulations.benchmarks._rows import Row, kept, save
from simulations.progress import SilentProgress

OUT = Path("runs/bench/audit.json")
EPSILONS = (1.0, 8.0)
CANARIES = 120
HONEST = "honest"


def cells() -> list[tuple[float, str]]:
    """Return (epsilon, which mechanism) of every cell."""
    return [(epsilon, name) for epsilon in EPSILONS for name in (HONEST, *Sabotage)]


def measure(epsilon: float, mechanism: str) -> Row:
    """Audit the demo once and return its row."""
    demo = scenarios.load(scenarios.locate("demo"))
    chosen = demo.model_copy(update={"privacy": demo.privacy.model_copy(update={"epsilon": epsilon})})
    sabotage = None if mechanism == HONEST else Sabotage(mechanism)
    found = audit_scenario(chosen, None, canaries=CANARIES, sabotage=sabotage, threads=1, progress=SilentProgress())
    return {"epsilon": epsilon, "mechanism": mechanism, **figures(found)}


def figures(found: Audit) -> Row:
    """Return an audit's numbers under plain names."""
    row: Row = {"noise_multiplier": found.noise_multiplier}
    for game in found.games:
        name = game.name.replace(" ", "_")
        for part in ("bound", "claim", "typical", "ideal", "noticed"):
            row[f"{name}_{part}"] = getattr(game, part)
    for test in found.tests:
        name = test.name.split()[0]
        row |= {f"{name}_measured": test.measured, f"{name}_alarm": str(test.alarm), f"{name}_notices": test.notices}
    row |= {"auc": found.membership.auc, "auc_low": found.membership.low, "auc_high": found.membership.high}
    row["faults"] = "; ".join(found.faults)
    return row


def table(rows: Sequence[Row]) -> str:
    """Return one line an audit."""
    lines = [
        f"{'eps':>3} {'mechanism':<20} {'study: bound':>12} {'claim':>6} {'charge: bound':>13} {'claim':>6} "
        f"{'noise':>6} {'weight':>6} {'AUC':>5}  noticed"
    ]
    for row in rows:
        shown = {key: float(value) for key, value in row.items() if isinstance(value, float | int)}
        lines.append(
            f"{row['epsilon']:>3g} {row['mechanism']:<20} {shown['whole_study_bound']:>12.2f} "
            f"{shown['whole_study_claim']:>6.2f} {shown['one_charge_bound']:>13.2f} {shown['one_charge_claim']:>6.2f} "
            f"{shown['noise_measured']:>6.3f} {shown['weight_measured']:>6.2f} {shown['auc']:>5.2f}  "
            f"{row['faults'] or 'nothing'}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Audit what was not audited yet, print the table; returns 1 if a broken mechanism went unnoticed."""
    parser = argparse.ArgumentParser(prog="make bench NAME=audit")
    parser.add_argument("--fresh", action="store_true", help="measure again what was measured")
    parser.add_argument("--out", type=Path, default=OUT)
    chosen = parser.parse_args(argv)
    rows = kept(chosen.out, fresh=chosen.fresh)
    done = {(row["epsilon"], row["mechanism"]) for row in rows}
    for epsilon, mechanism in cells():
        if (epsilon, mechanism) not in done:
            rows.append(measure(epsilon, mechanism))
            save(chosen.out, rows, "make bench NAME=audit", ("torch", "dp-accounting"), {"canaries": CANARIES})
            print(f"epsilon {epsilon:g}, {mechanism}: done", flush=True)
    print(table(rows))
    missed = [row for row in rows if row["mechanism"] != HONEST and not row["faults"]]
    return 1 if missed else 0
