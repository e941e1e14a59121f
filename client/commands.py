"""`consilium-client init | join | install | renew | console`: from an empty folder to a hospital that may connect."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from client import enrolment
from common.console import DEFAULT_SOURCE, HERE, Json, Source, coded_errors
from common.enrolment import backbone_table
from common.identity import fingerprint, parse_public_key
from common.keystore import read_passphrase

Home = Annotated[Path, typer.Option("--home", help="the hospital's folder", envvar="CONSILIUM_HOME")]


def init(
    site: Annotated[str, typer.Option(help="this hospital's short name, as it will stand in rosters")],
    home: Home = HERE,
    backbone_package: Annotated[str | None, typer.Option(help="installed package with the backbone")] = None,
    backbone_folder: Annotated[Path | None, typer.Option(help="folder with the backbone")] = None,
    passphrase: Source = DEFAULT_SOURCE,
    json: Json = False,
) -> None:
    """Make this hospital's home: identity and keys, which never leave it, and a commented site.toml."""
    with coded_errors():
        shown, file = enrolment.make_home(
            home,
            site=site,
            passphrase=read_passphrase(passphrase),
            source=passphrase,
            data="",
            backbone=backbone_table(backbone_package, backbone_folder),
        )
    if json:
        typer.echo(json_module.dumps({"home": str(home), "site": site, "fingerprint": shown}))
    else:
        typer.echo(f"{site} is {shown}; now describe the data in {home / file}, and join a consortium")


def join(
    consortium_file: Annotated[Path, typer.Argument(help="the file that the operator handed out")],
    band: Annotated[int, typer.Option(help="about how many patients or records there are, rounded; it is public")],
    home: Home = HERE,
    passphrase: Source = DEFAULT_SOURCE,
    json: Json = False,
) -> None:
    """Take up a consortium file and write the join request for its operator."""
    with coded_errors():
        consortium = enrolment.join(home, consortium_file, band=band, passphrase=read_passphrase(passphrase))
    shown = fingerprint(parse_public_key(consortium.operator))
    if json:
        typer.echo(json_module.dumps({"request": str(home / enrolment.REQUEST), "operator": shown}))
        return
    typer.echo(f"{consortium.name}, operator {shown}: have the operator read this out by telephone")
    typer.echo(f"send {home / enrolment.REQUEST} to the operator, and install what comes back")


def install(
    admission: Annotated[Path, typer.Argument(help="what the operator sent back")],
    home: Home = HERE,
    passphrase: Source = DEFAULT_SOURCE,
) -> None:
    """Install the certificate that the operator issued, the first or a renewed one."""
    with coded_errors():
        until = enrolment.install(home, admission, passphrase=read_passphrase(passphrase))
    typer.echo(f"this hospital may connect until {until:%Y-%m-%d}")


def renew(home: Home = HERE, passphrase: Source = DEFAULT_SOURCE) -> None:
    """Ask for a new certificate, with a new key; the old one works until the new one is installed."""
    with coded_errors():
        request = enrolment.renew(home, passphrase=read_passphrase(passphrase))
    typer.echo(f"send {request} to the operator, and install what comes back")


def console(
    home: Home = HERE,
    host: Annotated[str, typer.Option(help="the loopback address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 lets the system choose")] = 9446,
) -> None:
    """Show studies, ledger and what left in a browser on this machine; nothing can be changed there."""
    from client.console import StewardConsole
    from common.web import serve

    with coded_errors():
        serve(StewardConsole(home).app, host, port, tell=typer.echo)
