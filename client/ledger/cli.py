"""`consilium-client ledger`: what a hospital has spent, whether the record of it is whole, and how to mend it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client.ledger.book import Book, Committed
from client.ledger.entries import LEAST_CAP, MOST_CAP
from client.ledger.files import default_anchor
from client.ledger.recovery import Found, inspect, recover
from client.ledger.report import AccountLine, account_lines, export, figure
from client.ledger.store import SqliteLedger
from common import errors
from common.console import Json, coded_errors
from common.errors import ConsiliumError
from common.privacy.statement import rounded_down, rounded_up
from common.study import Unit

app = typer.Typer(
    no_args_is_help=True,
    help="The privacy that was spent: show, verify, export, recover; open accounts, close studies.",
)

LedgerFile = Annotated[Path, typer.Option("--ledger", help="the ledger's file", envvar="CONSILIUM_LEDGER")]
AnchorFile = Annotated[
    Path | None,
    typer.Option("--anchor", help="its anchor; default: beside it", envvar="CONSILIUM_LEDGER_ANCHOR"),
]
_BAR = 24
_FEWEST_DIGITS = 8


@app.command()
def show(
    ledger: LedgerFile,
    anchor: AnchorFile = None,
    plot: Annotated[Path | None, typer.Option(help="write a figure of all budgets here, as SVG")] = None,
    json: Json = False,
) -> None:
    """Show every account: its cap, what studies committed, what remains."""
    with coded_errors():
        found = _sound(ledger, anchor)
        lines = account_lines(Book(found.entries))
        if plot is not None:
            _write(plot, figure(lines))
    if json:
        typer.echo(export(found).model_dump_json(indent=2, include={"format", "head", "accounts"}))
        return
    console = Console()
    for line in lines:
        _print_account(line, console)
    console.print(f"{len(found.links)} entries, head {found.last.digest}", style="dim", soft_wrap=True)


@app.command()
def verify(ledger: LedgerFile, anchor: AnchorFile = None, json: Json = False) -> None:
    """Verify every entry of the chain, and that the anchor agrees; ends with CSL-211 or CSL-212 where it does not."""
    with coded_errors():
        found = _sound(ledger, anchor)
    if json:
        typer.echo(export(found).model_dump_json(indent=2, include={"format", "head"}))
    else:
        Console().print(
            f"sound: {len(found.links)} entries, head {found.last.digest}, the anchor agrees", soft_wrap=True
        )


@app.command(name="export")
def export_(
    ledger: LedgerFile,
    anchor: AnchorFile = None,
    out: Annotated[Path | None, typer.Option(help="write it here; default: stdout")] = None,
) -> None:
    """Write the whole chain as JSON: enough to verify it, and to compute every epsilon, without this software."""
    with coded_errors():
        text = export(_sound(ledger, anchor)).model_dump_json(indent=1)
        if out is None:
            typer.echo(text)
        else:
            _write(out, text + "\n")


@app.command(name="recover")
def recover_(
    ledger: LedgerFile,
    anchor: AnchorFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="charge the worst case without asking")] = False,
    json: Json = False,
) -> None:
    """Make a damaged or outdated ledger usable again: whatever may have been spent is charged in full."""
    with coded_errors():
        found = inspect(ledger, anchor)
        if found.reason and not yes:
            typer.confirm(f"{found.reason}. Charge the worst case for every study that may be concerned?", abort=True)
        found = recover(ledger, anchor) if found.reason else found
        after = inspect(ledger, anchor)
    if json:
        typer.echo(export(after).model_dump_json(indent=2, include={"format", "head", "accounts"}))
        return
    console = Console()
    console.print(f"recovered: {found.reason}" if found.reason else "nothing to recover", soft_wrap=True)
    for line in account_lines(Book(after.entries)):
        _print_account(line, console)


@app.command(name="open")
def open_(
    account: Annotated[str, typer.Argument(help="a name for the patient population")],
    population: Annotated[str, typer.Option(help="a sentence that says whose records these are")],
    epsilon: Annotated[float, typer.Option(help="the most that all studies together may commit, for each unit")],
    ledger: LedgerFile,
    delta: Annotated[float, typer.Option(help="the most that all studies' deltas may add up to")] = 1e-4,
    unit: Annotated[Unit, typer.Option(help="whom the cap is for")] = Unit.PATIENT,
    anchor: AnchorFile = None,
) -> None:
    """Open an account for a patient population; the ledger is made if there is none."""
    with coded_errors():
        if not LEAST_CAP <= epsilon <= MOST_CAP or not 0 < delta < 1:
            seen = f"epsilon must be within [{LEAST_CAP:g}, {MOST_CAP:g}], delta within (0, 1)"
            raise ConsiliumError(errors.PRIVACY_PARAMETER, seen)
        with SqliteLedger(ledger, anchor) as opened:
            opened.open_account(account, population=population, unit=unit, epsilon=epsilon, delta=delta)
    Console().print(f"account {account}: epsilon {epsilon:g}, delta {delta:g} for each {unit.value}", soft_wrap=True)


@app.command()
def close(
    study: Annotated[str, typer.Argument(help="its digest, or the first digits of it that `show` prints")],
    ledger: LedgerFile,
    account: Annotated[str | None, typer.Option(help="whose study it is, where several accounts have one")] = None,
    anchor: AnchorFile = None,
    yes: Annotated[bool, typer.Option("--yes", help="close it without asking")] = False,
    json: Json = False,
) -> None:
    """End a study's charges for good: if it never made one, what it committed comes back, else nothing does."""
    with coded_errors():
        payer, before = _committed(Book(_sound(ledger, anchor).entries), study, account)
        if not before.closed and not yes:
            typer.confirm(_question(payer, before), abort=True, err=True)
        with SqliteLedger(ledger, anchor) as opened:
            opened.close(payer, before.study)
        after = inspect(ledger, anchor)
    if json:
        typer.echo(export(after).model_dump_json(indent=2, include={"format", "head", "accounts"}))
        return
    book = Book(after.entries)
    _, closed = _committed(book, before.study, payer)
    came = "nothing came back" if closed.counts else f"epsilon {rounded_down(closed.epsilon)} came back"
    console = Console()
    console.print(f"{closed.study[:12]}: {'it was closed before' if before.closed else f'closed, {came}'}")
    for line in account_lines(book):
        if line.account == payer:
            _print_account(line, console)


def _committed(book: Book, study: str, account: str | None) -> tuple[str, Committed]:
    """Return an account and the study in it whose digest begins so; raises CSL-215 unless there is exactly one."""
    found = [
        (balance.account, committed)
        for balance in book.balances()
        for committed in balance.studies
        if account in (None, balance.account) and committed.study.startswith(study)
    ]
    if len(study) < _FEWEST_DIGITS or not found:
        payer = f"{account} pays for no study" if account else "no account pays for a study"
        raise ConsiliumError(
            errors.LEDGER_ACCOUNT, f"{payer} of digest {study!r}: give {_FEWEST_DIGITS} digits or more"
        )
    if len(found) > 1:
        held = ", ".join(f"{payer} ({committed.study})" for payer, committed in found)
        raise ConsiliumError(errors.LEDGER_ACCOUNT, f"several studies begin with {study}: {held}")
    return found[0]


def _question(account: str, study: Committed) -> str:
    made = study.training + study.evaluation
    kept = f"It has made {made} charge(s), so that closing gives nothing back"
    if study.exhausted:
        kept = "A recovery charged all of it, so that closing gives nothing back"
    elif not made:
        kept = f"It has made no charge: closing gives back epsilon {rounded_down(study.epsilon)} to {account}"
    return f"Study {study.study[:12]} of {account}: {kept}, and it can never be joined again. Close it?"


def _sound(ledger: Path, anchor: Path | None) -> Found:
    """Read a ledger; raises CSL-211 or CSL-212 where a recovery is needed."""
    found = inspect(ledger, anchor)
    if found.reason:
        raise ConsiliumError(found.fault, f"{ledger} and {anchor or default_anchor(ledger)}: {found.reason}")
    return found


def _print_account(line: AccountLine, console: Console) -> None:
    console.print(Text(f"{line.account}: {line.population}", style="bold"), soft_wrap=True)
    if line.studies:
        console.print(_table(line))
    used = math.ceil(_BAR * min(1.0, line.epsilon_committed / line.epsilon))
    spent, left = rounded_up(line.epsilon_committed), rounded_down(line.epsilon_remaining)
    console.print(
        f"{'█' * used}{'░' * (_BAR - used)} for each {line.unit.value}: epsilon {spent} of {line.epsilon:g} committed, "
        f"{left} left; delta {line.delta_remaining:.1e} left"
        + ("; a recovery has charged all of it" if line.exhausted else ""),
        soft_wrap=True,
        highlight=False,
    )
    console.print()


def _table(line: AccountLine) -> Table:
    table = Table()
    for heading in ("study", "epsilon", "delta", "charges", "evaluations", "state"):
        table.add_column(heading, justify="left" if heading in ("study", "state") else "right")
    for study in line.studies:
        table.add_row(
            study.study[:12],
            rounded_up(study.epsilon),
            f"{study.delta:.0e}",
            f"{study.training} of {study.max_charges}",
            f"{study.evaluation} of {study.evaluation_releases}",
            study.state,
        )
    return table


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConsiliumError(errors.LEDGER_UNWRITABLE, f"{path}: {error.strerror}") from error
