"""What a command found when it looked at one thing after the other: right, to be heeded, or wrong with its mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.console import BAD_INPUT, printable
from common.errors import ConsiliumError
from common.parts import Part

_MARKS = {
    "right": Text("right", style="green"),
    "heed": Text("heed", style="yellow"),
    "wrong": Text("WRONG", style="bold red"),
}


class Finding(Part):
    """One thing that was looked at.

    verdict  ``heed`` stops nothing, but should be heard before approving
    said     what was found; where it is wrong, the coded error with its mend
    """

    name: str
    verdict: Literal["right", "heed", "wrong"]
    said: str


def finding(name: str, look: Callable[[], str]) -> Finding:
    """Look at one thing; a coded error is what is wrong with it."""
    try:
        return Finding(name=name, verdict="right", said=look())
    except ConsiliumError as error:
        return Finding(name=name, verdict="wrong", said=str(error))


def conclude(findings: Sequence[Finding], *, json: bool) -> None:
    """Print findings, and end with exit code 2 where anything is wrong."""
    if json:
        typer.echo("[" + ",\n".join(found.model_dump_json() for found in findings) + "]")
    else:
        _show(findings, Console())
    if any(found.verdict == "wrong" for found in findings):
        raise typer.Exit(BAD_INPUT)


def _show(findings: Sequence[Finding], console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        table.add_row(_MARKS[finding.verdict], Text(printable(f"{finding.name}: {finding.said}")))
    console.print(table)
