"""`consilium-client status | egress`: how this hospital stands, and what has left it, from its own files alone."""

from __future__ import annotations

import json as json_module
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.commands import HERE, Home, Json
from client.config import SiteConfig
from client.daemon import alone
from client.egress_log import Control, Entry, Payload, read
from client.enrolment import FILE
from client.ledger.book import Book
from client.ledger.recovery import inspect
from client.ledger.report import account_lines
from client.offers import APPROVAL
from common import agreement as agreements
from common.console import coded_errors
from common.errors import ConsiliumError
from common.study import Study


@dataclass(frozen=True, slots=True)
class Left:
    """What left for one study at one stage, or as one call of the link."""

    study: str
    what: str
    times: int
    total_bytes: int
    last: str
    guarantee: str


def status(home: Home = HERE, json: Json = False) -> None:
    """Show how this hospital stands: daemon, studies, budgets, what left."""
    with coded_errors():
        config = SiteConfig.load(home / FILE)
        running = _is_running(config)
        studies = _studies(config)
        ledger = inspect(config.ledger_file, config.ledger.anchor) if config.ledger_file.is_file() else None
        entries = read(config.egress_file) if config.egress_file.is_file() else ()
    accounts = [] if ledger is None or ledger.reason else account_lines(Book(ledger.entries))
    sent = sum(entry.sent for entry in entries if isinstance(entry, Control))
    if json:
        typer.echo(
            json_module.dumps(
                {
                    "site": config.site,
                    "running": running,
                    "studies": [{"digest": d, "title": s.title, "state": state} for d, s, state in studies],
                    "accounts": [line.model_dump(mode="json") for line in accounts],
                    "ledger": "none" if ledger is None else ledger.reason or "sound",
                    "sent_bytes": sent,
                },
                indent=1,
            )
        )
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{config.site}: the daemon {'runs' if running else 'does not run'}, for {config.link.server}")
    for digest, study, state in studies:
        console.print(f"  study {digest[:16]} {state}: {study.title}")
    console.print(f"ledger: {'there is none' if ledger is None else ledger.reason or 'sound'}")
    for line in accounts:
        console.print(f"  account {line.account}: epsilon {line.epsilon_remaining:.3f} of {line.epsilon:g} is left")
    console.print(f"left so far: {sent:,} bytes (consilium-client egress)")


def egress(
    home: Home = HERE,
    last: Annotated[int, typer.Option(help="show the last entries themselves, so many")] = 0,
    json: Json = False,
) -> None:
    """Show what left this hospital: for which study, at which stage, under which guarantee; verifies the whole log."""
    with coded_errors():
        config = SiteConfig.load(home / FILE)
        entries = read(config.egress_file) if config.egress_file.is_file() else ()
    if last:
        rows: Sequence[object] = [entry.model_dump(mode="json") for entry in entries[-last:]]
        for row in rows:
            typer.echo(json_module.dumps(row))
        return
    found = summed(entries)
    if json:
        fields = ("study", "what", "times", "total_bytes", "last", "guarantee")
        typer.echo(json_module.dumps([{name: getattr(row, name) for name in fields} for row in found], indent=1))
        return
    table = Table("study", "what", "times", "bytes", "last", "guarantee", box=None, pad_edge=False)
    for row in found:
        table.add_row(row.study, row.what, f"{row.times:,}", f"{row.total_bytes:,}", row.last, row.guarantee)
    console = Console(highlight=False)
    console.print(table)
    console.print(f"{len(entries):,} entries, each in the chain of the one before")


def summed(entries: Sequence[Entry]) -> tuple[Left, ...]:
    """Sum a log up by study and stage; calls of the link, which carry the replies, come last, by their names."""
    groups: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
    for entry in entries:
        if isinstance(entry, Payload):
            groups[entry.study[:16], entry.stage.value, entry.guarantee].append((entry.total_bytes, entry.time))
        elif isinstance(entry, Control):
            groups["", entry.method, f"the link's own traffic, to {entry.peer}"].append((entry.sent, entry.time))
    return tuple(
        Left(study, what, len(rows), sum(size for size, _ in rows), rows[-1][1], guarantee)
        for (study, what, guarantee), rows in sorted(groups.items(), key=lambda item: (not item[0][0], item[0]))
    )


def _is_running(config: SiteConfig) -> bool:
    try:
        with alone(config.state):
            return False
    except ConsiliumError:
        return True


def _studies(config: SiteConfig) -> list[tuple[str, Study, str]]:
    found: dict[str, tuple[str, Study, str]] = {}
    for folder, state in ((config.offers, "offered"), (config.studies, "runs here")):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            try:
                signed, _ = agreements.read(path)
                study = Study.from_canonical(signed.canonical)
            except ConsiliumError:
                continue
            said = "approved" if state == "offered" and _has_approval(path) else state
            found[study.digest] = (study.digest, study, said)
    return list(found.values())


def _has_approval(folder: Path) -> bool:
    return (folder / APPROVAL).is_file()
