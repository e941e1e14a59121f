"""`consilium-sim`: the researcher's command, from a scenario file to a report.

Results go to stdout, progress and errors to stderr. Bad input ends with one coded line and exit code 2. The
machine-learning stack is loaded only once a scenario has been read and found right, so that `--help` is instant.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from common import errors
from common.console import coded_errors
from common.errors import ConsiliumError
from common.ways import FAMILIES, TASKS, WAYS, fits
from simulations.audit.command import audit
from simulations.curve.command import curve
from simulations.metrics import Metrics
from simulations.options import Engine, check_engine, prepare_machine
from simulations.progress import RichProgress
from simulations.recipe import Explained, Origin
from simulations.scenario import Baseline, Scenario, explained, load, locate, shipped
from simulations.tune.command import tune

app = typer.Typer(
    name="consilium-sim",
    help="Simulate a federated, private study on one machine: from a scenario file to a report.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.command()
def run(
    scenario: Annotated[str, typer.Argument(help="a TOML file, or the name of a shipped scenario", metavar="SCENARIO")],
    out: Annotated[
        Path | None, typer.Option(help="folder for metrics.json, report.html and the adapter; default: runs/NAME")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="folder below which the scenario's query may read")] = None,
    baselines: Annotated[
        str | None, typer.Option(help=f"all, none, or some of: {','.join(Baseline)}; default: as the scenario says")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="print metrics.json on stdout, and nothing else")] = False,
    full: Annotated[bool, typer.Option("--full", help="use the scenario's [full] settings: much slower")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N")] = "auto",
    threads: Annotated[int, typer.Option(help="CPU threads; 0 takes as many as there are cores", min=0)] = 0,
    seed: Annotated[int | None, typer.Option(help="in place of the scenario's seed", min=0)] = None,
    explain: Annotated[bool, typer.Option("--explain", help="say how it would train and why, and run nothing")] = False,
    engine: Annotated[
        Engine, typer.Option(help="how the sites are run: one by one, several in one forward pass, or by Ray")
    ] = Engine.INLINE,
) -> None:
    """Run a study and write its report."""
    if explain:
        with coded_errors():
            settings = explained(locate(scenario), full=full)
        show_settings(settings, Console(), as_json=json)
        return
    with coded_errors():
        chosen = load(locate(scenario), full=full)
        if seed is not None:
            chosen = chosen.model_copy(update={"seed": seed})
        folder = out or Path("runs") / chosen.name
        compared = _baselines(baselines, chosen)
        check_engine(engine, chosen)
        prepare_machine(device, folder)
        from simulations.run import run_scenario

        with RichProgress(Console(stderr=True)) as progress:
            metrics = run_scenario(
                chosen,
                data,
                folder,
                baselines=compared,
                device=device,
                threads=threads or os.cpu_count() or 1,
                progress=progress,
                engine=engine,
                command=shlex.join(["consilium-sim", *sys.argv[1:]]),
            )
    if json:
        typer.echo(metrics.model_dump_json(indent=2))
    else:
        show(metrics, folder / "report.html", Console())


app.command()(audit)
app.command()(curve)
app.command()(tune)


@app.command()
def scenarios() -> None:
    """List the scenarios that come with the product."""
    table = Table("name", "title", "task", "data", box=None, header_style="bold")
    for name in shipped():
        scenario = load(locate(name))
        table.add_row(name, scenario.title, scenario.task.kind, "generated" if scenario.synthetic else "needs --data")
    Console().print(table)


@app.command()
def ways(
    task: Annotated[str | None, typer.Option(help=f"one of: {', '.join(TASKS)}; default: all")] = None,
    backbone: Annotated[str | None, typer.Option(help=f"one of: {', '.join(FAMILIES)}; default: all")] = None,
    json: Annotated[bool, typer.Option("--json", help="print the list on stdout, and nothing else")] = False,
) -> None:
    """List the ways to transfer, with which tasks and backbones each goes together, and why not where it does not."""
    for option, value, known in (("--task", task, TASKS), ("--backbone", backbone, FAMILIES)):
        if value is not None and value not in known:
            raise typer.BadParameter(f"{option}: choose from {', '.join(known)}")
    found = [fit for fit in fits() if task in (None, fit.task) and backbone in (None, fit.backbone)]
    if json:
        typer.echo(dumps([asdict(fit) for fit in found], indent=2))
        return
    table = Table("way", "what trains", "goes with", box=None, header_style="bold")
    for name, way in WAYS.items():
        own = [fit for fit in found if fit.way == name]
        table.add_row(name, way.about, f"{sum(fit.supported for fit in own)} of {len(own)}")
    Console().print(table)
    for reason in dict.fromkeys(fit.reason for fit in found if fit.reason is not None):
        there = dict.fromkeys(f"{fit.way}, {fit.task}" for fit in found if fit.reason == reason)
        Console().print(Text(f"{reason}: {len(there)} pairs, such as {next(iter(there))}"), soft_wrap=True)


def show(metrics: Metrics, report: Path, console: Console) -> None:
    """Print a run's figures, the guarantee, what must be said about them, and where the report is."""
    table = Table(title=metrics.title, title_justify="left", title_style="bold", header_style="bold")
    for heading in ("site", "train", "test", "federated", "local only", "epsilon"):
        table.add_column(heading, justify="left" if heading == "site" else "right")
    for site in metrics.sites:
        table.add_row(
            Text(site.id),
            f"{site.train_examples:,}",
            f"{site.test_examples:,}",
            _percent(site.accuracy),
            _percent(site.accuracy_local_only),
            f"{site.epsilon:.2f}",
        )
    console.print(table)
    pooled = metrics.pooled
    macro = "" if pooled.macro_f1 is None else f"macro F1 {_percent(pooled.macro_f1)}, "
    if metrics.config.score != "accuracy":
        console.print(Text(f"the score is {metrics.config.score}"), soft_wrap=True)
    name = "accuracy" if metrics.config.score == "accuracy" else "score"
    console.print(f"{f'pooled {name}':<18} {_percent(pooled.accuracy)}   {macro}exact")
    if metrics.released is not None:
        low, high = _percent(metrics.released.low), _percent(metrics.released.high)
        console.print(
            f"{f'released {name}':<18} {_percent(metrics.released.accuracy)}   interval {low} to {high}, noised"
        )
    for name, baseline in metrics.baselines:
        if baseline is not None:
            console.print(f"{name.replace('_', ' '):<24} {_percent(baseline.accuracy)}   not released")
    privacy = metrics.privacy
    console.print(
        Text(f"epsilon {privacy.epsilon:.3g}, delta {privacy.delta:.0e}, unit {privacy.unit}: {privacy.neighbour}"),
        soft_wrap=True,
    )
    for warning in metrics.warnings:
        console.print(Text(warning, style="yellow"), soft_wrap=True)
    console.print(Text(f"report: {report}", style="bold"), soft_wrap=True)


def show_settings(settings: Sequence[Explained], console: Console, *, as_json: bool) -> None:
    """Print how a scenario trains, who decided it, and why."""
    if as_json:
        typer.echo(dumps([asdict(setting) for setting in settings], indent=2))
        return
    for setting in settings:
        differs = setting.origin is not Origin.RECIPE and setting.value != setting.recipe
        aside = f", where the recipe says {setting.recipe}" if differs else ""
        console.print(Text.assemble((f"{setting.name} = {setting.value}", "bold"), f"  {setting.origin.value}{aside}"))
        console.print(Padding(Text(setting.why), (0, 0, 0, 4)))


def main() -> None:
    """Console script."""
    app()


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f} %"


def _baselines(text: str | None, scenario: Scenario) -> frozenset[str]:
    if text is None:
        return frozenset(scenario.baselines)
    if text in {"all", "none"}:
        return frozenset(Baseline) if text == "all" else frozenset()
    asked = {part.strip() for part in text.split(",")}
    if unknown := sorted(asked - set(Baseline)):
        raise ConsiliumError(errors.SCENARIO_INVALID, f"--baselines: {unknown[0]!r} is none of {', '.join(Baseline)}")
    return frozenset(asked)


if __name__ == "__main__":
    main()
