"""`consilium-server` init, admit, remove, sites, doctor, console, release: the home, who may connect, how it stands."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common.console import DEFAULT_SOURCE, HERE, Json, Source, coded_errors
from common.enrolment import backbone_table, read_request
from common.identity import fingerprint, parse_public_key
from common.keystore import read_identity, read_passphrase
from server import enrolment

Home = Annotated[Path, typer.Option("--home", help="the operator's folder", envvar="CONSILIUM_HOME")]


def init(
    name: Annotated[str, typer.Option(help="the consortium's name, for people")],
    server: Annotated[str, typer.Option(help="host:port under which hospitals reach this server")],
    home: Home = HERE,
    host: Annotated[list[str] | None, typer.Option(help="a further name or address in the certificate")] = None,
    listen: Annotated[str | None, typer.Option(help="host:port to listen on; default: every address")] = None,
    health: Annotated[str, typer.Option(help="host:port of health and metrics, on loopback")] = "127.0.0.1:9444",
    backbone_package: Annotated[str | None, typer.Option(help="installed package with the backbone")] = None,
    backbone_folder: Annotated[Path | None, typer.Option(help="folder with the backbone")] = None,
    deadline: Annotated[float, typer.Option(help="seconds that a round may take")] = 600.0,
    passphrase: Source = DEFAULT_SOURCE,
    json: Json = False,
) -> None:
    """Make the operator's home: signing key, certificate authority, server certificate, commented configuration."""
    main_host, _, port = server.rpartition(":")
    with coded_errors():
        made = enrolment.make_home(
            home,
            name=name,
            server=server,
            hosts=(main_host.strip("[]"), *(host or ())),
            listen=listen or f"0.0.0.0:{port}",
            health=health,
            passphrase=read_passphrase(passphrase),
            source=passphrase,
            backbone=backbone_table(backbone_package, backbone_folder),
            deadline=deadline,
        )
    shown = fingerprint(parse_public_key(made.operator))
    if json:
        typer.echo(json_module.dumps({"home": str(home), "operator": made.operator, "fingerprint": shown}))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"operator {shown}")
    console.print(f"give {home / enrolment.CONSORTIUM} to each hospital, and read them this fingerprint by telephone")


def admit(
    join_file: Annotated[Path, typer.Argument(help="the join request that a hospital sent")],
    home: Home = HERE,
    out: Annotated[Path | None, typer.Option(help="where the admission goes; default: beside the request")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="the fingerprint was compared by telephone")] = False,
    passphrase: Source = DEFAULT_SOURCE,
    json: Json = False,
) -> None:
    """Admit a hospital, or renew its certificate; a running server sees it within two seconds."""
    with coded_errors():
        request = read_request(join_file, enrolment.operator_of(home))
        shown = fingerprint(parse_public_key(request.identity))
        if not yes:
            typer.echo(f"{request.site}, about {request.band} patients or records: {shown}", err=True)
            typer.confirm("Is this what the hospital reads out?", abort=True, err=True)
        secret = read_passphrase(passphrase)
        identity = read_identity(home / "keys" / "identity.pem", secret)
        admission = out or join_file.with_name(f"{request.site}.admission.json")
        enrolment.admit(home, join_file, identity, secret, admission)
    if json:
        typer.echo(json_module.dumps({"site": request.site, "fingerprint": shown, "admission": str(admission)}))
    else:
        typer.echo(f"{request.site} is admitted; send back {admission}")


def renew(home: Home = HERE, passphrase: Source = DEFAULT_SOURCE) -> None:
    """Issue the server's own certificate anew; a running server takes it up when it is started again."""
    with coded_errors():
        until = enrolment.renew_server(home, read_passphrase(passphrase))
    typer.echo(f"the server's certificate holds until {until:%Y-%m-%d}")


def remove(site: Annotated[str, typer.Argument(help="the site's name")], home: Home = HERE) -> None:
    """Dismiss a site: it can no longer connect. Studies that it is in go on with the others, if they suffice."""
    with coded_errors():
        enrolment.remove(home, site)
    typer.echo(f"{site} is dismissed")


def sites(home: Home = HERE, json: Json = False) -> None:
    """List the sites that may connect."""
    with coded_errors():
        found = enrolment.admitted(home)
    if json:
        rows = [
            {
                "site": site.site,
                "identity": site.identity,
                "fingerprint": site.fingerprint,
                "band": site.band,
                "certificate_until": None if site.certificate_until is None else site.certificate_until.isoformat(),
            }
            for site in found
        ]
        typer.echo(json_module.dumps(rows, indent=1))
        return
    table = Table("site", "fingerprint", "band", "certificate until", box=None, pad_edge=False)
    for site in found:
        until = "" if site.certificate_until is None else f"{site.certificate_until:%Y-%m-%d}"
        table.add_row(site.site, site.fingerprint, str(site.band), until)
    Console(highlight=False).print(table)


def doctor(home: Home = HERE, passphrase: Source = DEFAULT_SOURCE, json: Json = False) -> None:
    """Look whether the server can run: keys, certificate, port, journal, disk, backbone, sites, offers."""
    from common.findings import conclude
    from server.doctor import examine

    with coded_errors():
        findings = list(examine(home, read_passphrase(passphrase)))
    conclude(findings, json=json)


def console(
    home: Home = HERE,
    host: Annotated[str, typer.Option(help="the loopback address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 lets the system choose")] = 9445,
) -> None:
    """Show studies, sites, rounds, releases and calls in a browser on this machine; nothing can be changed there."""
    from common.web import serve
    from server.console import OperatorConsole

    with coded_errors():
        serve(OperatorConsole(home).app, host, port, tell=typer.echo)


def release(
    study: Annotated[str, typer.Argument(help="the study's name, or the first digits of its digest")],
    out: Annotated[Path, typer.Option(help="folder to make")],
    home: Home = HERE,
) -> None:
    """Hand out what a finished study ended with: adapter, card, statement, agreement."""
    with coded_errors():
        enrolment.hand_out(home, study, out)
    typer.echo(f"{out}")
