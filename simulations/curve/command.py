"""`consilium-sim curve`: how many labels a site needs, way by way, with privacy and without."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.console import coded_errors
from common.ways import WAYS
from simulations.curve.cells import Curve, cells, read_epsilons, read_labels, read_ways, variant, way_of
from simulations.curve.page import page, privacy, spot
from simulations.options import Engine, check_engine, prepare_machine
from simulations.outputs import make_folder, save
from simulations.progress import RichProgress
from simulations.scenario import load, locate


def curve(
    scenario: Annotated[str, typer.Argument(help="a TOML file, or the name of a shipped scenario", metavar="SCENARIO")],
    ways: Annotated[
        str | None, typer.Option(help=f"ways of transfer, some of: {','.join(WAYS)}; default: the scenario's")
    ] = None,
    labels: Annotated[str, typer.Option(help="labelled records per site, at most")] = "10,30,100",
    epsilon: Annotated[
        str | None, typer.Option(help="epsilons, none for no privacy; default: none and the scenario's")
    ] = None,
    seeds: Annotated[int, typer.Option(help="seeds to repeat every cell with, from the scenario's on", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="folder for curve.json and curve.html")] = None,
    data: Annotated[Path | None, typer.Option(help="folder below which the scenario's query may read")] = None,
    json: Annotated[bool, typer.Option("--json", help="print curve.json on stdout, and nothing else")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes as many as there are cores", min=0)] = 0,
    engine: Annotated[Engine, typer.Option(help="how the sites of private cells are run")] = Engine.INLINE,
) -> None:
    """Compare ways of transfer by accuracy against labels per site.

    A private cell is a whole study with real noise. The accuracies are exact, as only a simulator can read them: on
    records that are not generated, the output says what the cells would spend together.
    """
    with coded_errors():
        chosen = load(locate(scenario))
        asked = cells(
            read_ways(ways or way_of(chosen)),
            read_labels(labels),
            read_epsilons(epsilon or f"none,{chosen.privacy.epsilon}"),
            range(chosen.seed, chosen.seed + seeds),
        )
        for cell in asked:
            changed = variant(chosen, cell)
            if cell.epsilon is not None:
                check_engine(engine, changed)
        prepare_machine(device, out)
        from simulations.curve.study import curve_scenario

        with RichProgress(Console(stderr=True)) as progress:
            found = curve_scenario(
                chosen,
                data,
                asked,
                device=device,
                threads=threads or os.cpu_count() or 1,
                progress=progress,
                engine=engine,
                command=shlex.join(["consilium-sim", *sys.argv[1:]]),
            )
        if out is not None:
            write(found, out)
    if json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show(found, Console(), out)


def write(found: Curve, out: Path) -> None:
    """Write curve.json and curve.html; raises CSL-513."""
    make_folder(out)
    save(found.model_dump_json(indent=2) + "\n", out / "curve.json")
    save(page(found), out / "curve.html")


def show(found: Curve, console: Console, out: Path | None) -> None:
    """Print a line for each way and number of labels, a column for each epsilon, and what must be said of them."""
    table = Table(title=Text(found.title), title_justify="left", title_style="bold", header_style="bold")
    table.add_column("way")
    table.add_column("labels per site", justify="right")
    for epsilon in found.epsilons():
        table.add_column(privacy(epsilon), justify="right")
    for way in found.ways():
        for labels in found.labels():
            table.add_row(way, f"{labels:,}", *(spot(found.at(way, labels, epsilon)) for epsilon in found.epsilons()))
    console.print(table)
    for mark in found.marks:
        console.print(Text(mark, style="yellow"), soft_wrap=True)
    if out is not None:
        console.print(Text(f"page: {out / 'curve.html'}", style="bold"), soft_wrap=True)
