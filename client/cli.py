"""`consilium-client`: the hospital's command.

Results go to stdout, errors to stderr as one coded line with exit code 2. The machine-learning stack is loaded only by
what needs it, so that `--help` and the ledger are instant.
"""

from __future__ import annotations

import typer

from client import backup, commands, study_cli
from client.check import check
from client.data_cli import app as data
from client.judging_cli import mismatch, verdict
from client.ledger.cli import app as ledger
from client.run import run
from client.status import egress, status

app = typer.Typer(
    name="consilium-client",
    help="What a hospital runs: check a study, answer the operator, and see what privacy was spent.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(ledger, name="ledger")
app.add_typer(study_cli.app, name="study")
app.add_typer(data, name="data")
for _command in (commands.init, commands.join, commands.install, commands.renew, commands.console, study_cli.verify):
    app.command()(_command)
app.command()(check)
app.command()(status)
app.command()(egress)
app.command()(mismatch)
app.command()(verdict)
app.command()(run)
app.command()(backup.backup)
app.command()(backup.restore)


def main() -> None:
    """Console script."""
    app()
