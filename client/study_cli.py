"""`consilium-client study` and `verify`: what is offered here, whether it may run, and the hand that says yes or no."""

from __future__ import annotations

import json as json_module
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client import enrolment, gate, shelf
from client.commands import Home
from client.config import SiteConfig
from client.preparing import adapted, locate
from client.review import judge, review
from client.review_page import page
from client.shelf import Known
from common import errors
from common.console import BAD_INPUT, HERE, Json, coded_errors, printable
from common.errors import ConsiliumError
from common.identity import fingerprint
from common.keystore import read_identity, read_passphrase
from common.parts import Part
from common.privacy.statement import statement

app = typer.Typer(no_args_is_help=True, help="The studies that are offered here: review, approve, withdraw.")

Named = Annotated[str, typer.Argument(help="the study's digest, its first digits, or a folder that holds it")]
Yes = Annotated[bool, typer.Option("--yes", help="do it without asking")]
_ROUNDS = re.compile(r"([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?")


class _Line(Part):
    study: str
    state: str
    created: str
    expires: str
    title: str
    folder: str


@app.command(name="list")
def list_(home: Home = HERE, json: Json = False) -> None:
    """List what is offered, approved, running, withdrawn or expired here; what cannot be believed goes to stderr."""
    with coded_errors():
        config = _config(home)
        studies, unreadable = shelf.known(config)
    lines = [_line(one) for one in studies]
    for bad in unreadable:
        Console(stderr=True).print(
            printable(f"{bad.folder}: {bad.error}"), style="yellow", markup=False, soft_wrap=True
        )
    if json:
        typer.echo("[" + ",\n".join(line.model_dump_json() for line in lines) + "]")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("study", "state", "until", "title"):
        table.add_column(heading, no_wrap=heading != "title", overflow="fold")
    for line in lines:
        table.add_row(line.study[:12], line.state, line.expires[:10], printable(line.title))
    Console(markup=False, highlight=False).print(table if lines else "no study is known here")


@app.command(name="review")
def review_(
    study: Named,
    home: Home = HERE,
    model: Annotated[bool, typer.Option("--model", help="load the backbone and count what travels")] = False,
    full: Annotated[bool, typer.Option("--statement", help="print the statement of privacy instead")] = False,
    json: Json = False,
) -> None:
    """Print one page on a study: what it is, what it costs, who is in it, and where it breaks this site's policy.

    Exit code 2 where the policy forbids it.
    """
    with coded_errors():
        config = _config(home)
        one = shelf.find(config, study)
        if full:
            typer.echo("\n".join(map(printable, statement(one.study, config.site_id).split("\n"))))
            return
        coordinates = _count(one, config) if model else None
        verdict = review(one, config, shelf.known(config)[0], datetime.now(UTC), coordinates=coordinates)
    if json:
        typer.echo(verdict.model_dump_json(indent=2))
    else:
        Console(highlight=False).print(page(verdict))
    if verdict.violations:
        raise typer.Exit(BAD_INPUT)


@app.command()
def approve(study: Named, home: Home = HERE, yes: Yes = False, json: Json = False) -> None:
    """Countersign a study's digest with this site's key; refused where the policy forbids it."""
    with coded_errors():
        config = _config(home)
        one = shelf.find(config, study)
        now = datetime.now(UTC)
        _check(one, config, now)
        if not yes:
            Console(highlight=False, stderr=True).print(page(review(one, config, shelf.known(config)[0], now)))
            typer.confirm(f"Approve study {one.digest[:12]} for {config.site}?", abort=True, err=True)
        identity = read_identity(config.keys.identity, read_passphrase(config.keys.passphrase))
        approval = shelf.give_approval(config, one, identity)
    if json:
        typer.echo(
            json_module.dumps({"site": approval.site, "digest": approval.digest, "signature": approval.signature.hex()})
        )
    else:
        typer.echo(f"{approval.site} approves {approval.digest}; it runs once every site has")


@app.command()
def withdraw(study: Named, home: Home = HERE, yes: Yes = False, json: Json = False) -> None:
    """Take back this site's approval: from now on nothing more is computed for the study, whatever was agreed."""
    with coded_errors():
        config = _config(home)
        one = shelf.find(config, study)
        if not yes:
            typer.confirm(f"Withdraw from study {one.digest[:12]}, {printable(one.study.title)}?", abort=True, err=True)
        shelf.withdraw(config, one, datetime.now(UTC))
    if json:
        typer.echo(json_module.dumps({"study": one.digest, "state": shelf.State.WITHDRAWN.value}))
    else:
        typer.echo(f"withdrawn from {one.digest[:12]}; what it has committed, consilium-client ledger close ends")


@app.command()
def allow(
    study: Named,
    home: Home = HERE,
    rounds: Annotated[str | None, typer.Option(help="which: 5, or 1-10; counted from 1")] = None,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="allow the evaluation")] = False,
    json: Json = False,
) -> None:
    """Allow rounds of a study where the policy says manual_rounds; a round not allowed in time is missed."""
    with coded_errors():
        config = _config(home)
        one = shelf.find(config, study)
        wanted = _numbers(rounds, one.study.training.rounds)
        if not wanted and not evaluation:
            raise typer.BadParameter("name --rounds or --evaluation")
        allowed = gate.allow(config.state, one.digest, rounds=wanted, evaluation=evaluation)
    if json:
        typer.echo(allowed.model_dump_json())
    else:
        said = ", ".join(map(str, allowed.rounds)) or "none"
        typer.echo(f"{one.digest[:12]}: rounds allowed: {said}; evaluation: {'yes' if allowed.evaluation else 'no'}")


def verify(
    peer: Annotated[str, typer.Argument(help="the peer's name in the roster")],
    home: Home = HERE,
    said: Annotated[
        str | None, typer.Option("--fingerprint", help="as the peer read it out; asked for where not given")
    ] = None,
    json: Json = False,
) -> None:
    """Compare a peer's fingerprint, heard by telephone, with its key in the newest study, and note it."""
    with coded_errors():
        config = _config(home)
        studies, _ = shelf.known(config)
        key = next(
            (
                member.public_key
                for one in studies
                for member in one.study.roster
                if member.site == peer and peer != config.site
            ),
            None,
        )
        if key is None:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, f"no other site {peer} in any study here")
        # Not shown before it was heard: whoever sees it first would only nod.
        heard = said if said is not None else typer.prompt(f"fingerprint that {peer} reads out", err=True)
        enrolment.remember(home, peer, heard, key)
    if json:
        typer.echo(json_module.dumps({"peer": peer, "fingerprint": fingerprint(key)}))
    else:
        typer.echo(f"{peer} is verified: {fingerprint(key)}; a running daemon knows it after a restart")


def _config(home: Path) -> SiteConfig:
    return SiteConfig.load(home / enrolment.FILE)


def _line(one: Known) -> _Line:
    study = one.study
    return _Line(
        study=one.digest,
        state=one.state_at(datetime.now(UTC)).value,
        created=study.created,
        expires=study.expires,
        title=" ".join(study.title.split()),
        folder=str(one.folder),
    )


def _check(one: Known, config: SiteConfig, now: datetime) -> None:
    """Raise CSL-160 with every point in which the policy forbids a study."""
    _, found = judge(one.study, config, now)
    if found:
        raise ConsiliumError(errors.POLICY_FORBIDS, "; ".join(map(str, found)))


def _count(one: Known, config: SiteConfig) -> int:
    return adapted(one.study, locate(config, one.study.backbone)).dimension


def _numbers(text: str | None, most: int) -> range:
    if text is None:
        return range(0)
    found = _ROUNDS.fullmatch(text)
    if found is None:
        raise typer.BadParameter("write --rounds as 5 or 1-10")
    numbers = range(int(found[1]), int(found[2] or found[1]) + 1)
    if not numbers or numbers[-1] > most:
        raise typer.BadParameter(f"the study has rounds 1 to {most}")
    return numbers
