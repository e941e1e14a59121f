"""`consilium-server study`: from a draft over signature and approvals to a study that runs, is stopped or goes on."""

from __future__ import annotations

import json as json_module
import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from common import agreement as agreements
from common import errors
from common.agreement import SignedStudy, sign, verify_study
from common.console import DEFAULT_SOURCE, HERE, Json, Source, coded_errors
from common.durable import folder_whole
from common.errors import ConsiliumError
from common.keystore import read_identity, read_passphrase
from common.study import Study
from server import enrolment
from server.commands import Home
from server.config import ServerConfig
from server.drafting import TEMPLATE, finish, read
from server.offering import STOPPED
from server.status import ask

app = typer.Typer(no_args_is_help=True, help="Studies: new, sign, publish, list, stop, resume, withdraw.")
Name = Annotated[str, typer.Argument(help="the study's name: its file and folder")]


@app.command()
def new(name: Name, home: Home = HERE) -> None:
    """Write a draft with every admitted site in it, to be edited."""
    with coded_errors():
        draft = home / "drafts" / f"{_plain(name)}.toml"
        if draft.exists():
            raise ConsiliumError(errors.ENROLMENT_THERE, str(draft))
        names = ", ".join(json_module.dumps(site.site) for site in enrolment.admitted(home))
        draft.parent.mkdir(exist_ok=True)
        draft.write_text(TEMPLATE.format(title=name, sites=names), encoding="utf-8")
    typer.echo(f"edit {draft}, then: consilium-server study sign {name}")


@app.command(name="sign")
def sign_(name: Name, home: Home = HERE, passphrase: Source = DEFAULT_SOURCE) -> None:
    """Work a draft out, say what it promises and what people should hear, and sign it."""
    from common.privacy.concerns import concerns
    from common.privacy.statement import statement

    with coded_errors():
        draft = read(home / "drafts" / f"{_plain(name)}.toml")
        operator = read_identity(home / "keys" / "identity.pem", read_passphrase(passphrase))
        study = finish(
            draft,
            operator=operator.public_key,
            admitted=enrolment.admitted(home),
            source=ServerConfig.load(home / enrolment.FILE).backbone,
        )
        agreements.write(home / "drafts" / name, sign(study, operator), ())
    typer.echo(statement(study))
    for concern in concerns(study):
        typer.echo(f"Heed: {concern}")
    typer.echo(f"signed: {study.digest}")
    typer.echo(f"when it is right: consilium-server study publish {name}")


@app.command()
def publish(name: Name, home: Home = HERE) -> None:
    """Offer a signed study to its sites; it runs once every one of them has approved it."""
    with coded_errors():
        signed, study = _signed(home, home / "drafts" / _plain(name))
        if (home / "offers" / name).exists() or (home / "studies" / name).exists():
            raise ConsiliumError(errors.ENROLMENT_THERE, name)
        with folder_whole(home / "offers" / name) as made:
            agreements.write(made, signed, ())
    typer.echo(f"{study.title}: offered to {', '.join(member.site for member in study.roster)}")


@app.command(name="list")
def list_(home: Home = HERE, json: Json = False) -> None:
    """List every study with where it stands: draft, offered, agreed, stopped, released."""
    with coded_errors():
        rows = [_row(home, path, state) for path, state in _studies(home)]
    if json:
        typer.echo(json_module.dumps(rows, indent=1))
        return
    table = Table("study", "state", "approved", "digest", "title", box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(str(row[key]) for key in ("name", "state", "approved", "digest", "title")))
    Console(highlight=False).print(table)


@app.command()
def status(name: Name, home: Home = HERE, json: Json = False) -> None:
    """Show where one study stands; while it runs, where each of its sites does, as the health listener tells."""
    with coded_errors():
        found = [(path, state) for path, state in _studies(home) if path.name == _plain(name)]
        if not found:
            raise ConsiliumError(errors.OPERATOR_STUDY, name)
        row = _row(home, *found[0])
        board = _board(ServerConfig.load(home / enrolment.FILE), str(row["digest"]))
    if json:
        typer.echo(json_module.dumps({**row, "sites": board}, indent=1))
        return
    missing = row["missing"]
    typer.echo(f"{row['title']}: {row['state']}, approved by {row['approved']}")
    if isinstance(missing, list) and missing:
        typer.echo(f"waits for {', '.join(missing)}")
    for site, standing in board.items():
        typer.echo(f"  {site}: {standing['standing']} since {standing['since']}")


@app.command()
def queue(home: Home = HERE, json: Json = False) -> None:
    """List what waits to be run, in the order in which it will be."""
    with coded_errors():
        rows = [_row(home, path, state) for path, state in _studies(home) if state == "agreed"]
        waiting = [row for row in rows if row["state"] == "agreed"]
    if json:
        typer.echo(json_module.dumps(waiting, indent=1))
        return
    for number, row in enumerate(waiting, 1):
        typer.echo(f"{number}. {row['name']}: {row['title']}")


@app.command()
def stop(name: Name, home: Home = HERE) -> None:
    """Stop a study between two rounds; nothing is lost, and it goes on when it is resumed."""
    with coded_errors():
        _, study = _signed(home, home / "studies" / _plain(name))
        marks = home / "studies" / STOPPED
        marks.mkdir(exist_ok=True)
        (marks / study.digest[:16]).touch()
    typer.echo(f"{study.title} stops after the round that is under way")


@app.command(name="start")
@app.command()
def resume(name: Name, home: Home = HERE) -> None:
    """Let a stopped study go on; one that was never stopped starts by itself once all have approved it."""
    with coded_errors():
        _, study = _signed(home, home / "studies" / _plain(name))
        (home / "studies" / STOPPED / study.digest[:16]).unlink(missing_ok=True)
    typer.echo(f"{study.title} goes on")


@app.command()
def withdraw(name: Name, home: Home = HERE) -> None:
    """Take an offer back that not every site has approved yet."""
    with coded_errors():
        _, study = _signed(home, home / "offers" / _plain(name))
        shutil.rmtree(home / "offers" / name)
    typer.echo(f"{study.title} is no longer offered")


def _studies(home: Path) -> list[tuple[Path, str]]:
    found = []
    for folder, state in (("drafts", "signed"), ("offers", "offered"), ("studies", "agreed")):
        place = home / folder
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            if (path / "study.json").is_file() and not path.name.startswith("."):
                found.append((path, state))
    later = {path.name for path, state in found if state != "signed"}
    return [(path, state) for path, state in found if state != "signed" or path.name not in later]


def _row(home: Path, path: Path, state: str) -> dict[str, object]:
    _, study = _signed(home, path)
    _, approvals = agreements.read(path)
    digest = study.digest
    if state == "agreed":
        if (home / "state" / "releases" / digest[:16]).is_dir():
            state = "released"
        elif (home / "studies" / STOPPED / digest[:16]).exists():
            state = "stopped"
    return {
        "name": path.name,
        "state": state,
        "approved": f"{len(approvals)} of {len(study.roster)}",
        "digest": digest[:16],
        "title": study.title,
        "missing": sorted({member.site for member in study.roster} - {str(approval.site) for approval in approvals}),
    }


def _board(config: ServerConfig, digest: str) -> dict[str, dict[str, str]]:
    """Return the standing of each site of a study that runs now; empty where no server says so."""
    found = ask(config.health_address)
    if found is None or found.study is None or not found.study.startswith(digest):
        return {}
    return {
        site: {"standing": stood.standing.value, "since": stood.since.isoformat(timespec="seconds")}
        for site, stood in found.sites.items()
    }


def _signed(home: Path, folder: Path) -> tuple[SignedStudy, Study]:
    """Return a study in a folder, signed by the operator whose home it is."""
    signed, _ = agreements.read(folder)
    return signed, verify_study(signed, enrolment.operator_of(home))


def _plain(name: str) -> str:
    if not name or name.startswith(".") or any(mark in name for mark in "/\\\x00"):
        raise ConsiliumError(errors.STUDY_INVALID, "a study's name is a plain file name")
    return name
