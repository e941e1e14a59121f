"""`consilium-server`: the operator's command.

Results go to stdout, errors to stderr as one coded line with exit code 2. The machine-learning stack is loaded only by
what needs it.
"""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated

import typer

from common.console import coded_errors
from server import backup, commands, study_cli
from server.config import ServerConfig

app = typer.Typer(
    name="consilium-server",
    help="What an operator runs: the aggregation server that never sees a site's data or update.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
UNFINISHED = 3
"""Exit code where a study was stopped by a named error."""


@app.command()
def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="the server's file")] = Path("server.toml"),
    until_idle: Annotated[bool, typer.Option(help="end when no study is left to run")] = False,
) -> None:
    """Serve the sites and run the studies in the folder, one after the other; what was under way is gone on with."""
    from common.keystore import read_identity, read_passphrase
    from common.logs import to_stderr
    from common.study import Study
    from server.process import Operator
    from server.product import AdapterProduct

    with coded_errors():
        chosen = ServerConfig.load(config)
        passphrase = read_passphrase(chosen.keys.passphrase)
        identity = read_identity(chosen.keys.identity, passphrase)
        to_stderr()

        def produce(study: Study) -> AdapterProduct:
            import torch

            torch.set_num_threads(chosen.threads)
            return AdapterProduct(study, chosen.backbone)

        operator = Operator(chosen, identity, produce, passphrase=passphrase)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: operator.stop())
        finished = operator.run(until_idle=until_idle)
    if until_idle and not finished:
        raise typer.Exit(UNFINISHED)


for _command in (
    commands.init,
    commands.admit,
    commands.remove,
    commands.renew,
    commands.sites,
    commands.doctor,
    commands.console,
    commands.release,
    backup.backup,
    backup.restore,
):
    app.command()(_command)
app.add_typer(study_cli.app, name="study")


def main() -> None:
    """Console script."""
    app()
