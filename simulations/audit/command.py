"""`consilium-sim audit`: what an attacker who sees everything that leaves one site can prove about its privacy."""

from __future__ import annotations

import math
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common import errors
from common.console import coded_errors
from common.errors import ConsiliumError
from common.identity import SiteId
from simulations.audit.findings import BOUND_LEVEL, MECHANISM_LEVEL, Audit, Sabotage
from simulations.audit.page import MARKED, page
from simulations.options import prepare_machine
from simulations.outputs import make_folder, save
from simulations.progress import RichProgress
from simulations.scenario import load, locate

FEWEST, MOST = 16, 10_000
"""Canaries with fewer coins can prove nothing; more do not fit a machine."""


def audit(
    scenario: Annotated[str, typer.Argument(help="a TOML file, or the name of a shipped scenario", metavar="SCENARIO")],
    out: Annotated[Path | None, typer.Option(help="folder for audit.json and audit.html")] = None,
    data: Annotated[Path | None, typer.Option(help="folder below which the scenario's query may read")] = None,
    site: Annotated[str | None, typer.Option(help="the site to attack; default: the smallest")] = None,
    epsilon: Annotated[float | None, typer.Option(help="in place of the scenario's epsilon")] = None,
    canaries: Annotated[int, typer.Option(help="canary patients to plant")] = 120,
    sabotage: Annotated[
        Sabotage | None, typer.Option(help="break the site's mechanism first, to see it noticed")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print audit.json on stdout, and nothing else")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes as many as there are cores", min=0)] = 0,
) -> None:
    """Attack one simulated site: lower bounds on epsilon beside the claim, tests of its mechanism, membership.

    Ends with status 1 if the claim does not hold.
    """
    with coded_errors():
        chosen = load(locate(scenario))
        if epsilon is not None:
            if not (math.isfinite(epsilon) and epsilon > 0.0):
                raise ConsiliumError(errors.PRIVACY_PARAMETER, f"--epsilon is {epsilon:g}")
            privacy = chosen.privacy.model_copy(update={"epsilon": epsilon, "noise_multiplier": None})
            chosen = chosen.model_copy(update={"privacy": privacy})
        if not FEWEST <= canaries <= MOST:
            raise ConsiliumError(errors.SCENARIO_INVALID, f"--canaries: not within [{FEWEST}, {MOST}]")
        prepare_machine(device, out)
        from simulations.audit.study import audit_scenario

        with RichProgress(Console(stderr=True)) as progress:
            found = audit_scenario(
                chosen,
                data,
                canaries=canaries,
                site=None if site is None else SiteId(site),
                sabotage=sabotage,
                device=device,
                threads=threads or os.cpu_count() or 1,
                progress=progress,
                command=shlex.join(["consilium-sim", *sys.argv[1:]]),
            )
        if out is not None:
            write(found, out)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show(found, Console(), out)
    if found.faults:
        raise typer.Exit(1)


def write(found: Audit, out: Path) -> None:
    """Write audit.json and audit.html; raises CSL-513."""
    make_folder(out)
    save(found.model_dump_json(indent=2) + "\n", out / "audit.json")
    save(page(found), out / "audit.html")


def show(found: Audit, console: Console, out: Path | None) -> None:
    """Print claims and bounds, tests, membership and the verdict."""
    title = f"{found.title}: {found.site}, {found.canaries} canaries among {found.patients:,} patients"
    table = Table(title=Text(title), title_justify="left", title_style="bold", header_style="bold")
    for heading in ("game", "coins", "right", "epsilon at least", "claimed", "typical", "ideal", "notices sigma/4"):
        table.add_column(heading, justify="left" if heading == "game" else "right")
    for game in found.games:
        table.add_row(
            game.name,
            f"{game.bits:,}",
            f"{game.right}/{game.guesses}",
            Text(f"{game.bound:.3f}", style="bold red" if game.is_exceeded else ""),
            f"{game.claim:.3f}",
            f"{game.typical:.3f}",
            f"{game.ideal:.3f}",
            f"{game.noticed:.0%}",
        )
    console.print(table)
    for test in found.tests:
        side = "below" if test.name == "noise" else "above"
        console.print(
            Text(
                f"{test.name}: {test.measured:.3f} times the claimed ({test.low:.3f} to {test.high:.3f}); "
                f"all but sure to be noticed {side} {test.notices:.3f}",
                style="bold red" if test.alarm else "",
            ),
            soft_wrap=True,
        )
    member = found.membership
    console.print(
        f"membership on the released adapter: AUC {member.auc:.3f} ({member.low:.3f} to {member.high:.3f}), "
        f"{member.at_1:.1%} found at 1 % false alarms, {member.at_5:.1%} at 5 %",
        soft_wrap=True,
        highlight=False,
    )
    console.print(
        f"false alarms: {BOUND_LEVEL:.0%} for both bounds together, {MECHANISM_LEVEL:.0%} for both tests together",
        soft_wrap=True,
        highlight=False,
    )
    for note in found.notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)
    for game in found.games:
        if game.noticed < 0.5:
            console.print(
                Text(f"{game.name}: guesses alone would hardly have noticed a quarter of the noise", style="yellow"),
                soft_wrap=True,
            )
    for fault in found.faults:
        console.print(Text(f"FOUND {fault}", style="bold red"), soft_wrap=True)
    console.print(Text(found.verdict, style="bold red" if found.faults else "bold green"), soft_wrap=True)
    console.print(Text(MARKED, style="yellow"), soft_wrap=True)
    if out is not None:
        console.print(Text(f"page: {out / 'audit.html'}", style="bold"), soft_wrap=True)
