"""What people and programs read of a ledger: the export, the table's rows, and a figure. Nothing here writes a ledger.

The export is the whole chain with its digests. It suffices, without this software, to verify the chain and to compute
every epsilon anew: each study's entry holds the numbers of its plan.
"""

from __future__ import annotations

from html import escape
from typing import Literal

from client.ledger.book import Balance, Book, Committed
from client.ledger.entries import Record
from client.ledger.recovery import Found
from common.parts import Digest, Hex32, Line, Name, Part
from common.study import Unit

_WIDTH, _ROW, _LEFT, _RIGHT = 720, 54, 170, 24
_FILLS = ("#3b6ea5", "#7aa6c2", "#c28f3b", "#7a9e5f", "#a65d57", "#8d78ad")


class StudyLine(Part):
    """One study's part of an account.

    epsilon, delta   committed, which is what counts
    epsilon_charged  of the charges made so far, for information: it is no guarantee while more may follow
    """

    study: Hex32
    epsilon: float
    delta: float
    epsilon_charged: float
    training: int
    max_charges: int
    evaluation: int
    evaluation_releases: int
    state: Literal["open", "closed", "charged in full by a recovery"]


class AccountLine(Part):
    """One account, with what remains of it for each unit of its population."""

    account: Name
    population: Line
    unit: Unit
    epsilon: float
    delta: float
    epsilon_committed: float
    delta_committed: float
    epsilon_remaining: float
    delta_remaining: float
    exhausted: bool
    studies: tuple[StudyLine, ...]


class Chained(Part):
    """One entry of the export.

    digest  SHA-256 over ``consilium/v1/chain`` and a zero byte, the digest before it (32 bytes; before the first entry
            SHA-256 of the name and the zero byte alone), the number (8 bytes, big-endian), the record as RFC 8785 JSON
    """

    number: int
    digest: Hex32
    record: Record


class Export(Part):
    """A whole ledger, as JSON."""

    format: Literal["consilium-ledger/1"] = "consilium-ledger/1"
    head: Hex32
    entries: tuple[Chained, ...]
    accounts: tuple[AccountLine, ...]


def export(found: Found) -> Export:
    """Return everything in a ledger that was inspected."""
    chained = tuple(
        Chained(number=link.number, digest=link.digest, record=Record.from_canonical(link.body)) for link in found.links
    )
    return Export(head=found.last.digest, entries=chained, accounts=account_lines(Book(found.entries)))


def account_lines(book: Book) -> tuple[AccountLine, ...]:
    """Return every account with its studies."""
    return tuple(_account_line(balance) for balance in book.balances())


def figure(lines: tuple[AccountLine, ...]) -> str:
    """Return an SVG of each account's epsilon: a bar as long as its cap, one part for each study, the rest free.

    It has its own colours, so that it stands by itself; its classes let a page give it others.
    """
    height = _ROW * max(1, len(lines)) + 40
    most = max((line.epsilon for line in lines), default=1.0)
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'role="img" font-family="sans-serif" font-size="13">',
        "<title>Privacy budget by account: epsilon committed and remaining</title>",
        f'<rect class="paper" width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for place, line in enumerate(lines):
        top = 14 + _ROW * place
        parts.append(f'<text x="{_LEFT - 12}" y="{top + 18}" text-anchor="end">{escape(line.account)}</text>')
        parts.append(
            f'<rect class="free" x="{_LEFT}" y="{top}" width="{line.epsilon * scale:.1f}" height="26" fill="#f1f1ee" '
            'stroke="#555"><title>remaining</title></rect>'
        )
        start = 0.0
        for number, study in enumerate(line.studies):
            size = min(study.epsilon, line.epsilon - start) if _counts(study) else 0.0
            parts.append(
                f'<rect class="part-{number % len(_FILLS)}" x="{_LEFT + start * scale:.1f}" y="{top}" '
                f'width="{max(0.0, size) * scale:.1f}" height="26" fill="{_FILLS[number % len(_FILLS)]}">'
                f"<title>study {study.study[:12]}: epsilon {study.epsilon:.4f}, "
                f"{study.training} of {study.max_charges} charges</title></rect>"
            )
            start += size
        said = (
            "all charged by a recovery" if line.exhausted else f"{line.epsilon_remaining:.2f} of {line.epsilon:g} left"
        )
        parts.append(
            f'<text class="said" x="{_LEFT}" y="{top + 42}" fill="#444" font-size="12">'
            f"epsilon per {line.unit.value}: {said}</text>"
        )
    return "\n".join([*parts, "</svg>", ""])


def _account_line(balance: Balance) -> AccountLine:
    return AccountLine(
        account=balance.account,
        population=balance.population,
        unit=balance.unit,
        epsilon=balance.epsilon,
        delta=balance.delta,
        epsilon_committed=balance.epsilon_committed,
        delta_committed=balance.delta_committed,
        epsilon_remaining=balance.epsilon_remaining,
        delta_remaining=balance.delta_remaining,
        exhausted=balance.exhausted,
        studies=tuple(_study_line(study) for study in balance.studies),
    )


def _study_line(study: Committed) -> StudyLine:
    plan = study.plan
    charged = 0.0
    if study.training or study.evaluation:
        charged = plan.epsilon_of_part(steps=plan.steps_per_charge * study.training, releases=study.evaluation)
    return StudyLine(
        study=Digest(study.study),
        epsilon=study.epsilon,
        delta=plan.delta,
        epsilon_charged=charged,
        training=study.training,
        max_charges=plan.max_charges,
        evaluation=study.evaluation,
        evaluation_releases=plan.evaluation_releases,
        state="charged in full by a recovery" if study.exhausted else "closed" if study.closed else "open",
    )


def _counts(study: StudyLine) -> bool:
    return study.state != "closed" or study.training + study.evaluation > 0
