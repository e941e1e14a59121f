"""An operator's studies as people look at them: what stands in the journal, and what still waits in the folders.

Nothing is written, and no key is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from common.chain import Link
from common.identity import PublicKey, SiteId
from common.pages import moment
from common.parts import Digest
from common.privacy.released import released_accuracy
from common.study import Study
from server.board import Standing
from server.config import ServerConfig
from server.journal import JournalReader, Queued, State
from server.journal_events import AnyEvent, Ended, Enqueued, Entered, RoundDone, read_event
from server.offering import STOPPED, Offer, offers
from server.progress import RoundRecord
from server.status import Status, Stood

_TONES = {
    State.QUEUED: "wait",
    State.RUNNING: "busy",
    State.FINISHED: "good",
    State.ABORTED: "bad",
    Standing.ONLINE: "good",
    Standing.FETCHING: "busy",
    Standing.WORKING: "busy",
    Standing.MASKED: "busy",
    Standing.UNAVAILABLE: "bad",
}


@dataclass(frozen=True, slots=True)
class StudyLine:
    """A study in the list.

    state    of the journal; or offered; or agreed, where the server has not taken it up yet
    tone     how the state looks
    since    when the state was entered; empty where nobody noted it
    note     why, where something was said
    missing  sites whose approval is awaited
    """

    digest: Digest
    title: str
    state: str
    tone: str
    since: str = ""
    note: str = ""
    missing: tuple[SiteId, ...] = ()


@dataclass(frozen=True, slots=True)
class SiteLine:
    """A site of a study.

    standing, since  of the server's board; approved or awaited where only the journal and the folders speak
    rounds           in whose sum it was
    """

    site: SiteId
    standing: str
    tone: str
    since: str
    rounds: int


@dataclass(frozen=True, slots=True)
class EventLine:
    """One event of a transcript, in words."""

    number: int
    at: str
    said: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class Release:
    """What a study's evaluation ended with.

    figure  (accuracy, low, high), the 95 % interval of noise and chance; None where nothing came about, and ``reason``
    kept    whether the release lies in the server's folder
    """

    digest: Digest
    title: str
    sites: int
    figure: tuple[float, float, float] | None
    reason: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Told:
    """All that is known of one study. ``events`` are in order."""

    line: StudyLine
    study: Study
    approved: tuple[SiteId, ...]
    rounds: tuple[RoundRecord, ...] = ()
    events: tuple[EventLine, ...] = ()
    release: Release | None = None

    def sites(self, status: Status | None) -> tuple[SiteLine, ...]:
        """Return the sites, as the server sees them where it runs this study, else as it is written."""
        board = status.sites if status is not None and status.study == self.line.digest else {}
        return tuple(self._site(member.site_id, board) for member in self.study.roster)

    def _site(self, site: SiteId, board: Mapping[str, Stood]) -> SiteLine:
        rounds = sum(site in done.survivors for done in self.rounds)
        if site in board:
            stood = board[site]
            return SiteLine(site, stood.standing.value, _TONES.get(stood.standing, ""), moment(stood.since), rounds)
        approved = site in self.approved
        return SiteLine(site, "approved" if approved else "awaited", "" if approved else "wait", "", rounds)


class Studies:
    """Reads the studies of one operator.

    operator  whose signature those in the folders must carry; of others nothing is shown
    """

    def __init__(self, config: ServerConfig, operator: PublicKey) -> None:
        self._config, self._operator = config, operator
        self._journal = JournalReader(config.journal_url)

    def lines(self) -> tuple[StudyLine, ...]:
        """Return every study: first those in the journal in the order in which they run, then those that wait."""
        queue = self._journal.queue()
        known = {queued.digest for queued in queue}
        waiting = (_waiting(offer) for offer in self._offers() if offer.digest not in known)
        return (*map(self._queued, queue), *waiting)

    def of(self, digest: Digest) -> Told | None:
        """Return one study; None where there is none of this digest."""
        queued = next((found for found in self._journal.queue() if found.digest == digest), None)
        if queued is None:
            offer = next((found for found in self._offers() if found.digest == digest), None)
            if offer is None:
                return None
            return Told(_waiting(offer), offer.study, tuple(approval.site for approval in offer.approvals))
        signed, approvals = self._journal.agreement(digest)
        links = self._journal.transcript(digest)
        events = [(link, read_event(link)) for link in links]
        return Told(
            self._queued(queued),
            Study.from_canonical(signed.canonical),
            tuple(approval.site for approval in approvals),
            tuple(event.record for _, event in events if isinstance(event, RoundDone)),
            tuple(_event(link, event) for link, event in events),
            self._release(queued),
        )

    def releases(self) -> tuple[Release, ...]:
        """Return what every study whose evaluation has ended was ended with."""
        found = (self._release(queued) for queued in self._journal.queue())
        return tuple(release for release in found if release is not None)

    def _queued(self, queued: Queued) -> StudyLine:
        stopped = (self._config.studies / STOPPED / queued.digest[:16]).exists()
        note = "; ".join(filter(None, (queued.reason, "marked to be stopped" if stopped else "")))
        return StudyLine(
            queued.digest, queued.title, queued.state.value, _TONES[queued.state], moment(queued.since), note
        )

    def _offers(self) -> Iterator[Offer]:
        for folder in (self._config.studies, self._config.offers):
            yield from offers(folder, self._operator)

    def _release(self, queued: Queued) -> Release | None:
        ending = self._journal.of(queued.digest).ending()
        if ending is None:
            return None
        figure = None
        if ending.counts is not None:
            signed, _ = self._journal.agreement(queued.digest)
            figure = released_accuracy(ending.counts, len(ending.survivors), Study.from_canonical(signed.canonical))
        kept = (self._config.state / "releases" / queued.digest[:16]).is_dir()
        return Release(queued.digest, queued.title, len(ending.survivors), figure, ending.not_evaluated, kept)


def _waiting(offer: Offer) -> StudyLine:
    title = " ".join(offer.study.title.split())
    if offer.missing:
        return StudyLine(offer.digest, title, "offered", "wait", missing=offer.missing)
    return StudyLine(offer.digest, title, "agreed", "wait", note="the server has not taken it up yet")


def _event(link: Link, event: AnyEvent) -> EventLine:
    match event:
        case Enqueued():
            said = f"enqueued with the approvals of {len(event.approvals)} sites"
        case Entered():
            said = f"{event.state.value}: {event.reason}" if event.reason else event.state.value
        case RoundDone():
            said = f"round {event.round_index + 1} done by {len(event.survivors)} sites"
            said += f", at attempt {event.attempt + 1}" if event.attempt else ""
        case Ended():
            said = f"evaluated by {len(event.survivors)} sites" if event.counts is not None else "not evaluated"
            said += f": {event.not_evaluated}" if event.not_evaluated else ""
    return EventLine(link.number, moment(datetime.fromisoformat(event.at)), said, link.digest)
