"""`consilium-client status | egress`: how this hospital stands, and what has left it, from its own files alone."""

from __future__ import annotations

import json as json_module
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.commands import Home
from client.config import SiteConfig
from client.daemon import is_held
from client.egress_log import Control, Entry, Payload, read
from client.enrolment import FILE
from client.ledger.book import Book
from client.ledger.recovery import inspect
from client.ledger.report import account_lines
from client.shelf import known
from common.console import HERE, Json, coded_errors, printable


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
        running = is_held(config.state)
        now = datetime.now(UTC)
        studies = [(one.digest, one.study.title, one.state_at(now).value) for one in known(config)[0]]
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
                    "studies": [{"digest": digest, "title": title, "state": state} for digest, title, state in studies],
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
    for digest, title, state in studies:
        console.print(f"  study {digest[:16]} {state}: {printable(title)}", markup=False)
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
