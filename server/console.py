"""The operator's console: studies, their rounds and sites, what was released, and who called. It reads, and no more.

Everything comes from the files that the server writes, and from its status board where that listens. No key is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from starlette.types import ASGIApp

from common.enrolment import read_consortium
from common.identity import parse_public_key
from common.pages import moment
from common.parts import Digest
from common.privacy.statement import statement
from common.prose import statement_blocks
from common.web import Door, Missing, Page, console
from common.wording import facts
from server import console_figures as figures
from server import enrolment
from server.calls import calls
from server.config import ServerConfig
from server.status import ask
from server.studies import Studies

_TEMPLATES = Path(__file__).parent / "templates"
_DAY = timedelta(days=1)
_MOST = 200
"""Rounds, and events, that one page lists."""
_SOON_DAYS = 30


class OperatorConsole:
    """What the operator's pages show of one home; raises CSL-540, CSL-541 or CSL-140 where it is none.

    clock  for what is of the last day, or ends soon
    """

    def __init__(self, home: Path, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._home, self._clock = home, clock
        self._config = ServerConfig.load(home / enrolment.FILE)
        consortium = read_consortium(home / enrolment.CONSORTIUM)
        self._name = consortium.name
        self._studies = Studies(self._config, parse_public_key(consortium.operator))

    def app(self, door: Door) -> ASGIApp:
        """Return the console."""
        pages = (
            Page("/", "studies.html.j2", lambda _: self._all(), "Studies"),
            Page("/releases", "releases.html.j2", lambda _: self._released(), "Released figures"),
            Page("/sites", "sites.html.j2", lambda _: self._sites(), "Sites"),
            Page("/calls", "calls.html.j2", lambda _: self._calls(), "Calls"),
            Page("/study/{digest}", "study.html.j2", lambda named: self._one(named["digest"])),
        )
        return console("Operator's console", self._name, pages, _TEMPLATES, door, clock=self._clock)

    def _all(self) -> Mapping[str, object]:
        return {"studies": self._studies.lines(), "status": ask(self._config.health_address)}

    def _one(self, digest: str) -> Mapping[str, object]:
        told = self._studies.of(Digest(digest)) if re.fullmatch(r"[0-9a-f]{64}", digest) else None
        if told is None:
            raise Missing
        status = ask(self._config.health_address)
        return {
            "told": told,
            "facts": facts(told.study),
            "live": status is not None and status.study == digest,
            "sites": told.sites(status),
            "figure": figures.rounds(told.rounds),
            "rounds": told.rounds[-_MOST:][::-1],
            "events": told.events[-_MOST:][::-1],
            "roster": [member.site_id for member in told.study.roster],
            "statement": tuple(statement_blocks(statement(told.study))),
        }

    def _released(self) -> Mapping[str, object]:
        found = self._studies.releases()
        return {"releases": found, "figure": figures.released(found)}

    def _sites(self) -> Mapping[str, object]:
        now, admitted = self._clock(), enrolment.admitted(self._home)
        left = {
            site.site: None if site.certificate_until is None else (site.certificate_until - now).days
            for site in admitted
        }
        return {"sites": admitted, "left": left, "soon": _SOON_DAYS}

    def _calls(self) -> Mapping[str, object]:
        found = calls(self._config.state / "audit.jsonl", (self._clock() - _DAY).timestamp())
        since = None if found.since is None else moment(datetime.fromtimestamp(found.since, UTC))
        return {"calls": found, "since": since, "figure": figures.calls(found)}
