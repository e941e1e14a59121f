"""`consilium-sim tune`: search for training settings on public or generated records, and say so (RULES 10)."""

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

from common import errors
from common.console import coded_errors
from common.errors import ConsiliumError
from simulations.options import prepare_machine
from simulations.outputs import make_folder, save
from simulations.progress import RichProgress
from simulations.scenario import load, locate
from simulations.tune.search import Settings, Tuned, ranked

MOST = 180
"""As many settings as the space holds."""


def tune(
    scenario: Annotated[str, typer.Argument(help="a TOML file, or the name of a shipped scenario", metavar="SCENARIO")],
    out: Annotated[Path | None, typer.Option(help="folder for tuned.toml and tuned.json")] = None,
    data: Annotated[Path | None, typer.Option(help="folder below which the scenario's query may read")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="these records are public: nobody has to be protected from the search")
    ] = False,
    trials: Annotated[int, typer.Option(help=f"settings to try, 2 to {MOST}")] = 12,
    json: Annotated[bool, typer.Option("--json", help="print tuned.json on stdout, and nothing else")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes as many as there are cores", min=0)] = 0,
) -> None:
    """Search for rounds, rates and clip norm that a private study of this kind trains best with.

    A search looks at exact accuracies, which costs privacy without limit: it reads generated records, or such as you
    say are public.
    """
    with coded_errors():
        chosen = load(locate(scenario))
        if not (chosen.synthetic or public):
            raise ConsiliumError(
                errors.SCENARIO_INVALID,
                "tune: a search on patients' records is not private; take a generated corpus, or say --public",
            )
        if not 2 <= trials <= MOST:
            raise ConsiliumError(errors.SCENARIO_INVALID, f"--trials: not within [2, {MOST}]")
        prepare_machine(device, out)
        from simulations.tune.study import tune_scenario

        with RichProgress(Console(stderr=True)) as progress:
            found = tune_scenario(
                chosen,
                data,
                trials=trials,
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


def write(found: Tuned, out: Path) -> None:
    """Write tuned.toml and tuned.json; raises CSL-513."""
    make_folder(out)
    save(found.fragment(), out / "tuned.toml")
    save(found.model_dump_json(indent=2) + "\n", out / "tuned.json")


def show(found: Tuned, console: Console, out: Path | None) -> None:
    """Print the trials from the best to the worst, the settings that won, and on whose records."""
    table = Table(header_style="bold")
    for heading in ("rate", "clip norm", "sampling", "rounds", "trained", "accuracy"):
        table.add_column(heading, justify="right")
    own = found.trials[0].settings
    for tried in ranked(sorted(found.trials, key=lambda tried: -tried.rounds)):
        settings = tried.settings
        table.add_row(
            f"{settings.learning_rate:g}",
            f"{settings.clip_norm:g}",
            f"{settings.sampling_rate:g}",
            f"{settings.rounds}",
            f"{tried.rounds}",
            f"{100.0 * tried.accuracy:.1f} %",
            style=_style(settings, own, found.best),
        )
    console.print(table)
    console.print("bold: the best of those that trained in full; dim: the scenario's own", highlight=False)
    console.print(Text(found.fragment()), soft_wrap=True)
    console.print(Text(found.mark, style="yellow"), soft_wrap=True)
    if out is not None:
        console.print(Text(f"settings: {out / 'tuned.toml'}", style="bold"), soft_wrap=True)


def _style(settings: Settings, own: Settings, best: Settings) -> str:
    return "bold" if settings == best else "dim" if settings == own else ""
