"""`consilium-client verdict | mismatch`: did a study help this hospital, and does it suit its records at all.

Both compute on this machine and send nothing. The verdict is kept in the state folder, where the console shows it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client import shelf
from client.commands import Home
from client.config import SiteConfig
from client.enrolment import FILE
from client.study_cli import Named
from common.console import HERE, Json, coded_errors, printable
from common.keystore import read_identity, read_passphrase

if TYPE_CHECKING:
    from client.judgement import SiteVerdict
    from client.preparing import OwnRecords
    from client.shelf import Known


def verdict(
    study: Named,
    home: Home = HERE,
    release: Annotated[
        Path | None, typer.Option(help="folder of the released adapter; default: what this site evaluated last")
    ] = None,
    json: Json = False,
) -> None:
    """Judge on held-out records whether a study helped: shared against backbone only, local only and personalised."""
    with coded_errors():
        config = SiteConfig.load(home / FILE)
        one = shelf.find(config, study)
        made = _judged(config, one, release)
    if json:
        typer.echo(made.model_dump_json(indent=2))
    else:
        _show(made, Console(highlight=False))


def mismatch(study: Named, home: Home = HERE, json: Json = False) -> None:
    """Measure how far this hospital's records are from what a study was made for, before any budget is spent."""
    with coded_errors():
        from client import judging

        config = SiteConfig.load(home / FILE)
        one = shelf.find(config, study)
        found = judging.mismatch(one.study, _records(config, one))
    if json:
        typer.echo(found.model_dump_json(indent=2))
        return
    console = Console(highlight=False)
    console.print(f"{found.records:,} records of {found.units:,} units to train on")
    for said in found.said:
        console.print(Text(printable(said)))
    if found.features is None:
        console.print("the study has no reference of public features to compare with")


def _records(config: SiteConfig, one: Known) -> OwnRecords:
    from client.preparing import prepare_own

    identity = read_identity(config.keys.identity, read_passphrase(config.keys.passphrase))
    return prepare_own(config, one.study, identity)


def _judged(config: SiteConfig, one: Known, release: Path | None) -> SiteVerdict:
    """Judge a study and keep the verdict."""
    from client.judgement import keep_verdict
    from client.judging import judge, own_of
    from client.released import kept_vector
    from client.training.noise import SystemNoise
    from common.adapters.release import released_vector
    from common.payloads import parse_vector

    study = one.study
    raw = kept_vector(config.state, one.digest) if release is None else b""
    records = _records(config, one)
    model = records.model
    # As the study starts it: a release is read beside it, and writes nothing into it.
    own = own_of(study, records, SystemNoise())
    shared = (
        parse_vector(raw, model.dimension) if release is None else released_vector(release, model, study=one.digest)
    )
    made = judge(study, own, shared, records.judging, side=records.side)
    keep_verdict(config.state, made)
    return made


def _show(made: SiteVerdict, console: Console) -> None:
    decision = made.decision
    console.print(Text(decision.said, style="bold"))
    against = {found.other: found for found in decision.comparisons}
    table = Table("candidate", box=None, pad_edge=False)
    for heading in ("mean score", "95 % interval", "shared is ahead by", "95 % interval", "p, corrected"):
        table.add_column(heading, justify="right")
    for one in decision.standings:
        found = against.get(one.candidate)
        table.add_row(
            one.candidate.value,
            f"{one.mean:.1%}",
            f"{one.low:.1%} to {one.high:.1%}",
            *(
                ("", "", "")
                if found is None
                else (
                    f"{100 * found.difference:+.1f} points",
                    f"{100 * found.low:+.1f} to {100 * found.high:+.1f}",
                    f"{found.p:.4f}",
                )
            ),
        )
    console.print(table)
    for said in made.explained:
        console.print(Text(printable(f"- {said}")), soft_wrap=True)
