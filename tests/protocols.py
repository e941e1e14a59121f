"""Secure sums by hand: a server and its sites, and a postman between them who loses what a test tells him to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.identity import SiteId
from common.secagg import Encoding, Phase, ServerSession, SiteSession, Sum, Ticket
from common.secagg.terms import Terms
from tests.studies import Signed, signed_study

INPUT = bytes(31) + b"\x07"
"""Digest of the input that honest sites receive."""
Values = Mapping[SiteId, NDArray[np.generic]]
Losses = Mapping[Phase, Collection[SiteId]]
NOBODY: Losses = {}


@dataclass
class Parties:
    """One study's server and sites."""

    signed: Signed
    server: ServerSession
    sites: dict[SiteId, SiteSession]

    @property
    def names(self) -> tuple[SiteId, ...]:
        return tuple(sorted(self.sites))

    @property
    def terms(self) -> Terms:
        return Terms.from_study(self.signed.study)

    def renew(self) -> None:
        """Put a new server in place, as after a restart."""
        self.server = ServerSession.for_study(self.signed.study)


def parties(sites: int = 4, *, verified: int | None = None, **changes: object) -> Parties:
    """Return a study's parties; each site verified the first ``verified`` sites of the roster, or all."""
    signed = signed_study(sites, **changes)
    known = frozenset(sorted(signed.sites)[:verified])
    sessions = {
        site: SiteSession.for_study(signed.study, identity, site, verified=known)
        for site, identity in signed.sites.items()
    }
    return Parties(signed, ServerSession.for_study(signed.study), sessions)


def answer(site: SiteSession, phase: Phase, request: bytes) -> bytes:
    """Return a site's reply to a request of any phase but INPUT."""
    steps: Mapping[Phase, Callable[[bytes], bytes]] = {
        Phase.HELLO: site.hello,
        Phase.PREPARE: site.prepare,
        Phase.ACKNOWLEDGE: site.acknowledge,
        Phase.VIEW: site.view,
        Phase.UNMASK: site.unmask,
    }
    return steps[phase](request)


def relay(made: Parties, lost: Collection[SiteId] = ()) -> None:
    """Carry one phase's requests and replies, and close it; the replies of lost sites never arrive."""
    for site, request in made.server.requests().items():
        reply = answer(made.sites[site], made.server.phase, request)
        if site not in lost:
            made.server.receive(site, reply)
    made.server.advance()


def set_up(made: Parties, online: Collection[SiteId] | None = None, lost: Losses = NOBODY) -> None:
    """Open an epoch up to its first READY."""
    made.server.open_epoch(sorted(online) if online is not None else made.names)
    for phase in (Phase.HELLO, Phase.PREPARE, Phase.ACKNOWLEDGE):
        relay(made, lost.get(phase, ()))


def ticket(made: Parties, site: SiteId, request: bytes, encoding: Encoding, digest: bytes = INPUT) -> Ticket:
    """Have a site open a sum."""
    return made.sites[site].open_input(request, input_digest=digest, stage="fit", encoding=encoding)


def send_inputs(made: Parties, encoding: Encoding, values: Values, lost: Collection[SiteId] = ()) -> None:
    """Begin a sum and carry the masked inputs."""
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    for site, request in made.server.requests().items():
        reply = made.sites[site].mask(ticket(made, site, request, encoding), values[site])
        if site not in lost:
            made.server.receive(site, reply)
    made.server.advance()


def take_sum(made: Parties, encoding: Encoding, values: Values, lost: Losses = NOBODY) -> Sum:
    """Take one whole sum from READY."""
    send_inputs(made, encoding, values, lost.get(Phase.INPUT, ()))
    while made.server.phase in (Phase.VIEW, Phase.UNMASK):
        relay(made, lost.get(made.server.phase, ()))
    return made.server.result()


def numbered(made: Parties) -> tuple[Encoding, dict[SiteId, NDArray[np.int64]]]:
    """Return counts whose sum names its survivors: site i gives 10**i, and -i."""
    encoding = Encoding.counts(made.signed.study, cells=2, maximum=10 ** len(made.sites))
    return encoding, {site: np.array([10**i, -i], dtype=np.int64) for i, site in enumerate(made.names)}


def total(values: Values, survivors: Collection[SiteId]) -> list[int]:
    """Return the plain sum of counts."""
    return [int(cell) for cell in np.sum([values[site] for site in survivors], axis=0)]
