"""The steward's console: studies to decide on, what privacy was spent, and what has left this hospital. It reads only.

Nothing is approved here: a page says which command a person types. No key and no record is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError
from starlette.types import ASGIApp

from client import shelf
from client.config import SiteConfig
from client.egress_view import DayLine, EgressView
from client.enrolment import FILE
from client.judgement import SiteVerdict, kept_verdict
from client.ledger.book import Book
from client.ledger.recovery import Found, inspect
from client.ledger.report import StudyLine, account_lines, figure
from client.review import review
from client.shelf import Known, State
from client.verdict import Outcome
from common import errors
from common.errors import ConsiliumError
from common.figures import Bar, Mark, Row, bar_chart, dot_plot
from common.pages import both, drawn, size
from common.parts import describe
from common.privacy.statement import rounded_down, rounded_up, statement
from common.prose import statement_blocks
from common.web import Door, Missing, Page, console

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_DAYS = 400
"""Lines of days that one page lists."""
_TONES = {
    State.OFFERED: "wait",
    State.APPROVED: "busy",
    State.RUNNING: "good",
    State.WITHDRAWN: "bad",
    State.EXPIRED: "",
}
_VERDICTS = {Outcome.HELPED: "good", Outcome.HARMED: "bad", Outcome.UNDECIDED: "wait"}


class StewardConsole:
    """What the steward's pages show of one hospital's home; raises CSL-530 or CSL-531 where it is none.

    clock  for what has expired
    """

    def __init__(self, home: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._config = SiteConfig.load(home / FILE)
        self._egress = EgressView(self._config.egress_file)

    def app(self, door: Door) -> ASGIApp:
        """Return the console."""
        has_report = self._config.data_report_file.is_file()
        pages = (
            Page("/", "studies.html.j2", lambda _: self._studies(), "Studies"),
            Page("/ledger", "ledger.html.j2", lambda _: self._ledger(), "Ledger"),
            Page("/egress", "egress.html.j2", lambda _: self._left(), "What left"),
            Page("/data", "data.html.j2", lambda _: self._data(), "Data" if has_report else ""),
            Page("/study/{digest}", "study.html.j2", lambda named: self._study(named["digest"])),
        )
        return console("Steward's console", self._config.site, pages, _TEMPLATES, door, clock=self._clock)

    def _studies(self) -> Mapping[str, object]:
        found, unreadable = shelf.known(self._config)
        now = self._clock()
        states = {one.digest: one.state_at(now) for one in found}
        return {"studies": found, "states": states, "tones": _TONES, "unreadable": unreadable}

    def _study(self, digest: str) -> Mapping[str, object]:
        found, _ = shelf.known(self._config)
        one = next((known for known in found if known.digest == digest), None)
        if one is None or re.fullmatch(r"[0-9a-f]{64}", digest) is None:
            raise Missing
        verdict = review(one, self._config, found, self._clock())
        own = kept_verdict(self._config.state, one.digest)
        return {
            "verdict": verdict,
            "tone": _TONES[verdict.state],
            "epsilon": None if verdict.privacy.epsilon is None else rounded_up(verdict.privacy.epsilon),
            "charged": self._charged(one),
            "left": [line for line in self._egress.look().days if line.study == one.digest[:16]],
            "own": own,
            "own_tone": None if own is None else _VERDICTS[own.decision.outcome],
            "own_figure": None if own is None else _candidates(own),
            "statement": tuple(statement_blocks(statement(one.study, self._config.site_id))),
        }

    def _ledger(self) -> Mapping[str, object]:
        config = self._config
        if not config.ledger_file.exists() and config.ledger.anchor is None:
            return {"ledger": None, "path": config.ledger_file}
        found = inspect(config.ledger_file, config.ledger.anchor)
        accounts = () if found.reason else account_lines(Book(found.entries))
        titles = {one.digest: one.study.title for one in shelf.known(config)[0]}
        picture = drawn(figure(accounts)) if accounts else None
        return {
            "ledger": found,
            "path": config.ledger_file,
            "accounts": accounts,
            "titles": titles,
            "figure": picture,
            "rounded_up": rounded_up,
            "rounded_down": rounded_down,
        }

    def _left(self) -> Mapping[str, object]:
        seen = self._egress.look()
        return {"seen": seen, "days": seen.days[:_MOST_DAYS], "figure": _by_stage(seen.days)}

    def _data(self) -> Mapping[str, object]:
        from client.data_report import DataReport

        path = self._config.data_report_file
        try:
            return {"report": DataReport.model_validate_json(path.read_bytes())}
        except FileNotFoundError:
            raise Missing from None
        except OSError as error:
            raise ConsiliumError(errors.DATA_VALUE, f"{path}: {error.strerror}") from error
        except ValidationError as error:
            raise ConsiliumError(errors.DATA_VALUE, f"{path}: {describe(error)}") from error

    def _charged(self, one: Known) -> StudyLine | None:
        """Return the study's line of the account that pays for it; None where none does, or the ledger is not sound."""
        found = self._sound()
        if found is None:
            return None
        lines = (line for account in account_lines(Book(found.entries)) for line in account.studies)
        return next((line for line in lines if line.study == one.digest), None)

    def _sound(self) -> Found | None:
        try:
            found = inspect(self._config.ledger_file, self._config.ledger.anchor)
        except ConsiliumError:
            # The page of the ledger says what is wrong with it.
            return None
        return None if found.reason else found


def _candidates(own: SiteVerdict) -> object:
    """Draw each candidate's mean with its interval; what is kept has a shape of its own."""
    kept = own.decision.keep
    rows = []
    for one in own.decision.standings:
        kind, hint = ("released", "kept for own use") if one.candidate is kept else ("each", "")
        rows.append(Row(one.candidate.value, (Mark(kind, one.mean, hint, one.low, one.high),), f"{one.mean:.1%}"))
    said = ", ".join(f"{row.name}: {row.aside}" for row in rows)
    return both(lambda width: dot_plot(rows, width=width, label="Candidates at this site", description=said))


def _by_stage(days: tuple[DayLine, ...]) -> object:
    totals: dict[str, int] = {}
    for line in days:
        if line.study:
            totals[line.what] = totals.get(line.what, 0) + line.total_bytes
    if not totals:
        return None
    bars = [Bar(what, total, size(total)) for what, total in sorted(totals.items(), key=lambda item: -item[1])]
    said = ", ".join(f"{bar.name}: {bar.text}" for bar in bars)
    return both(lambda width: bar_chart(bars, width=width, label="Bytes that left, by stage", description=said))
