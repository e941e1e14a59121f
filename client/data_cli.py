"""`consilium-client data`: what the query returns, in figures, and what to look at before joining a study.

Both only read. What they print stays on site; texts are shown by `--show` alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.config import SiteConfig
from common.console import Json, coded_errors

if TYPE_CHECKING:
    from client.data_quality import Duplicates, QualityReport
    from client.data_report import DataReport, Figures, Side

app = typer.Typer(no_args_is_help=True, help="The records that the site's query returns: report, quality.")

ConfigFile = Annotated[Path, typer.Option("--config", "-c", help="the site's file")]
Sides = Annotated[
    bool, typer.Option(help="say who is on which side; where a keyed hash decides, that takes the keys' passphrase")
]
HERE = Path("site.toml")


@app.command()
def report(config: ConfigFile = HERE, sides: Sides = True, json: Json = False) -> None:
    """Count what the query returns: records, units, classes, what is missing; kept in the state folder, never sent."""
    from client.data_report import make_report, write_report

    with coded_errors():
        site = SiteConfig.load(config)
        made = make_report(site.data, _side(site) if sides else None)
        write_report(site.data_report_file, made)
        fields = site.data.columns.fields
    if json:
        typer.echo(made.model_dump_json(indent=2))
    else:
        _print_report(made, Console())
        if fields:
            typer.echo("fields: not looked at; a study names them, and `consilium-client check` reads them for it")


@app.command()
def quality(
    config: ConfigFile = HERE,
    sides: Sides = True,
    top: Annotated[int, typer.Option(min=1, max=10_000, help="how many groups and suspects to name")] = 20,
    show: Annotated[bool, typer.Option("--show", help="show the texts of the rows named")] = False,
    json: Json = False,
) -> None:
    """Look for duplicates, likely label errors, gaps, and units on two sides; changes nothing."""
    from client.data_quality import examine

    with coded_errors():
        site = SiteConfig.load(config)
        found, texts = examine(site.data, _side(site) if sides else None, top=top)
    if json:
        typer.echo(_quality_json(found, texts if show else None))
        return
    console = Console()
    _print_quality(found, console)
    if show:
        for row, text in sorted(texts.items()):
            console.print(Text(f"{row}: {text}"), soft_wrap=True)


def _side(site: SiteConfig) -> Side | None:
    """Return what decides the side of a record that no column puts on one; raises CSL-150 to CSL-155 for the key."""
    if site.data.columns.split is not None:
        return None
    from client.records import SPLIT_PURPOSE, side_of
    from common.keystore import read_identity, read_passphrase

    key = read_identity(site.keys.identity, read_passphrase(site.keys.passphrase)).derive_key(SPLIT_PURPOSE)
    test = site.data.split.test
    return lambda unit, place: side_of(key, unit, place, test=test)


def _quality_json(found: QualityReport, texts: dict[int, str] | None) -> str:
    import json

    fields = found.model_dump(mode="json")
    return json.dumps(fields if texts is None else {**fields, "texts": texts}, indent=2, ensure_ascii=False)


def _print_report(made: DataReport, console: Console) -> None:
    def say(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    say(f"{made.source}: {made.rows:,} rows, {made.kept.records:,} records")
    if made.dropped:
        say("left out for want of " + ", ".join(f"{role} {count:,}" for role, count in made.dropped.items()))
    say("missing: " + ", ".join(f"{role} {count:,}" for role, count in made.missing.items()))
    console.print(_table({"all": made.kept, **made.sides}))
    if made.kept.further:
        say(f"and {made.kept.further:,} further classes: is the label another column?")
    say(f"data {made.fingerprint}")
    say(f"query {made.query}")


def _table(columns: dict[str, Figures]) -> Table:
    table = Table()
    table.add_column("")
    for name in columns:
        table.add_column(Text(name), justify="right")
    table.add_row("records", *(f"{figures.records:,}" for figures in columns.values()))
    if any(figures.units is not None for figures in columns.values()):
        table.add_row("units", *(f"{figures.units or 0:,}" for figures in columns.values()), end_section=True)
    for label in columns["all"].classes:
        table.add_row(Text(label), *(f"{figures.classes.get(label, 0):,}" for figures in columns.values()))
    return table


def _print_quality(found: QualityReport, console: Console) -> None:
    def say(line: str) -> None:
        console.print(Text(line), soft_wrap=True)

    say(f"{found.rows:,} rows, {found.records:,} records")
    say("missing: " + ", ".join(f"{role} {count:,}" for role, count in found.missing.items()))
    say("classes: " + ", ".join(f"{label} {count:,}" for label, count in list(found.classes.items())[:20]))
    if found.unknown_sides:
        say(f"no side that is known: {found.unknown_sides:,}")
    say("same content: " + ("not looked at in rows of fields" if found.exact is None else _duplicates(found.exact)))
    say("same words: " + ("only texts are looked at" if found.near is None else _duplicates(found.near)))
    torn = found.straddling
    say(f"units on two sides: {torn.units:,}" + (f", as row {', '.join(map(str, torn.rows))}" if torn.rows else ""))
    labels = found.labels
    if labels.why_not:
        say(f"labels: not looked at, {labels.why_not}")
        return
    say(f"labels: {labels.suspected:,} of {labels.looked_at:,} are doubtful; {labels.left_out:,} not looked at")
    if labels.first:
        table = Table("row", "label", "likely", "belief in the label")
        for suspect in labels.first:
            table.add_row(str(suspect.row), Text(suspect.label), Text(suspect.likely), f"{suspect.belief:.2f}")
        console.print(table)


def _duplicates(found: Duplicates) -> str:
    if not found.groups:
        return "none"
    rows = "; ".join(", ".join(map(str, group)) for group in found.rows)
    return (
        f"{found.records:,} records in {found.groups:,} groups, {found.across_sides:,} across sides, "
        f"{found.across_units:,} across units, {found.across_labels:,} across labels; rows {rows}"
    )
