"""`consilium-server`: the operator's command.

Results go to stdout, errors to stderr as one coded line with exit code 2.
"""

from __future__ import annotations

import typer

app = typer.Typer(
    name="consilium-server",
    help="What an operator runs: the aggregation server that never sees a site's data or update.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback()
def _command() -> None:
    """Keep subcommands, however few there are."""


def main() -> None:
    """Console script."""
    app()
