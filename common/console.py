"""What every command of the product does alike: errors in one red line, exit codes, JSON on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from common.errors import ConsiliumError

DEFAULT_SOURCE = "env:CONSILIUM_PASSPHRASE"
Source = Annotated[
    str, typer.Option("--passphrase", help="where the keys' passphrase comes from: fd:N, env:NAME or credential:NAME")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON on stdout, and nothing else")]
HERE = Path()
BAD_INPUT = 2
"""Exit code where the input, or what the command was asked to look at, was at fault."""


def printable(text: str) -> str:
    """Return one line with a sign for each character that steers a terminal, or turns the direction of what follows.

    What another side wrote must not repaint what is said of it.
    """
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


@contextmanager
def coded_errors() -> Iterator[None]:
    """End with one red line on stderr and exit code 2 for a coded error; everything else may trace."""
    try:
        yield
    except ConsiliumError as error:
        Console(stderr=True).print(Text(printable(str(error)), style="red"), soft_wrap=True)
        raise typer.Exit(BAD_INPUT) from None
