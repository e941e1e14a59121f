"""The server's side: relays what sites seal for each other, adds what they mask, opens the sum and nothing else.

Pure: :meth:`ServerSession.requests` says what to send, :meth:`ServerSession.receive` takes what came,
:meth:`ServerSession.advance` closes a phase; whoever has not answered by then is lost. Masked vectors are added as they
come: memory does not grow with the number of sites. Between any two calls a session can be stored and restored.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence

from common import errors
from common.errors import ConsiliumError
from common.identity import Domain, SiteId
from common.secagg.commitments import commit, signed_prepare
from common.secagg.context import acknowledged, check_signature, context_of, session_of, view_of
from common.secagg.encoding import Encoding, Entropy
from common.secagg.epoch import Epoch, Shared, Sum
from common.secagg.graph import Graph
from common.secagg.masks import Lanes
from common.secagg.opening import open_total
from common.secagg.snapshot import dump_epoch, load_epoch
from common.secagg.terms import Terms
from common.secagg.transitions import SERVER, Phase
from common.secagg.wire import (
    MASK,
    MAX_VECTOR_BYTES,
    NONCE_BYTES,
    SEED,
    SHARE_BYTES,
    SIGNATURE_BYTES,
    Delivery,
    Hello,
    Kind,
    Prepare,
    Reader,
    Writer,
    read_signatures,
    write_deliveries,
    write_signatures,
)
from common.study import Study


class ServerSession:
    """One epoch of one study.

    entropy  source of the epoch's nonce
    """

    def __init__(self, terms: Terms, *, entropy: Entropy = os.urandom) -> None:
        self._terms, self._entropy = terms, entropy
        self._epoch = Epoch()

    @classmethod
    def for_study(cls, study: Study, *, entropy: Entropy = os.urandom) -> ServerSession:
        """Return a session under a study's terms."""
        return cls(Terms.from_study(study), entropy=entropy)

    @classmethod
    def restore(
        cls, terms: Terms, stored: bytes, *, encodings: Collection[Encoding], entropy: Entropy = os.urandom
    ) -> ServerSession:
        """Return the session that :meth:`store` wrote, as it was.

        encodings  of the study; the open sum's is found among them by its digest

        Raises CSL-401 for bytes that are no session, or of another study.
        """
        session = cls(terms, entropy=entropy)
        session._epoch = load_epoch(terms, stored, encodings)
        return session

    def store(self) -> bytes:
        """Return everything this session holds, to go on from after a restart; as long as one vector and the shares."""
        return dump_epoch(self._terms, self._epoch)

    @property
    def phase(self) -> Phase:
        """What the server is waiting for."""
        return self._epoch.phase

    @property
    def cohort(self) -> tuple[SiteId, ...]:
        """The epoch's sites, sorted."""
        return self._names(self._epoch.members)

    def open_epoch(self, sites: Sequence[SiteId]) -> None:
        """Begin with the sites that are online; raises CSL-404 if they are too few and CSL-402 if already begun."""
        members = tuple(sorted({self._terms.index(site) for site in sites}))
        self._terms.check_cohort(self._names(members))
        self._enter(Phase.HELLO)
        # Nothing of an epoch that was aborted may enter this one.
        self._epoch = Epoch(phase=Phase.HELLO, members=members, nonce=self._entropy(NONCE_BYTES))

    def begin(self, *, stage: str, input_digest: bytes, encoding: Encoding) -> None:
        """Begin a sum; raises CSL-402 unless every member's prepare was acknowledged by every other."""
        self._enter(Phase.INPUT)
        epoch, graph = self._epoch, self._graph()
        encoding = encoding.among(self.cohort, self._terms.contributors_needed, self._terms.max_share)
        epoch.encoding, epoch.total = encoding, encoding.empty()
        epoch.survivors, epoch.following, epoch.views, epoch.revealed = (), {}, {}, {}
        keys = {index: shared.prepare.key for index, shared in epoch.prepares.items()} if graph.complete else {}
        epoch.context = context_of(self._terms, epoch.session, epoch.instance, stage, input_digest, encoding, keys)

    def requests(self) -> dict[SiteId, bytes]:
        """Return what to send now, and to whom."""
        alike: Mapping[Phase, Callable[[], bytes]] = {
            Phase.HELLO: lambda: Writer(Kind.HELLO_REQUEST).fixed(self._epoch.nonce).done(),
            Phase.PREPARE: self._prepare_request,
            Phase.INPUT: self._input_request,
            Phase.VIEW: self._view_request,
        }
        each: Mapping[Phase, Callable[[int], bytes]] = {
            Phase.ACKNOWLEDGE: self._acknowledge_request,
            Phase.UNMASK: self._unmask_request,
        }
        asked = {index: self._terms.roster[index] for index in self._asked()}
        if self.phase in alike:
            return dict.fromkeys(asked.values(), alike[self.phase]())
        return {site: each[self.phase](index) for index, site in asked.items()} if self.phase in each else {}

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take one site's reply; raises CSL-4xx for one that is refused, which leaves the site unanswered."""
        index = self._terms.index(site)
        if index not in self._asked() or index in self._epoch.answered:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, f"{site} was not asked, or has answered")
        take: Mapping[Phase, Callable[[int, bytes], None]] = {
            Phase.HELLO: self._take_hello,
            Phase.PREPARE: self._take_prepare,
            Phase.ACKNOWLEDGE: self._take_acknowledgement,
            Phase.INPUT: self._take_input,
            Phase.VIEW: self._take_view,
            Phase.UNMASK: self._take_shares,
        }
        if self.phase not in take:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, f"nothing is awaited while {self.phase.value}")
        take[self.phase](index, reply)
        self._epoch.answered.add(index)

    def advance(self) -> None:
        """Close the phase; raises CSL-404 or CSL-410 when too few have answered, which ends the epoch."""
        answered = tuple(index for index in self._epoch.members if index in self._epoch.answered)
        try:
            if self.phase is Phase.HELLO:
                self._close_hello(answered)
            elif self.phase is Phase.PREPARE:
                self._close_prepare(answered)
            elif self.phase is Phase.ACKNOWLEDGE:
                self._need_all(answered)
                self._enter(Phase.READY)
            elif self.phase is Phase.INPUT:
                self._close_input(answered)
            elif self.phase is Phase.VIEW:
                self._need_threshold(self._epoch.survivors)
                self._enter(Phase.UNMASK)
            elif self.phase is Phase.UNMASK:
                self._close_unmask()
            else:
                raise ConsiliumError(errors.SECAGG_ILLEGAL, f"nothing to close while {self.phase.value}")
        except ConsiliumError:
            self._epoch.phase = Phase.CLOSED
            raise

    def result(self) -> Sum:
        """Return the sum that was opened last; raises CSL-402 where there is none."""
        if self._epoch.result is None or self.phase not in (Phase.READY, Phase.DONE):
            raise ConsiliumError(errors.SECAGG_ILLEGAL, "no sum has been opened")
        return self._epoch.result

    def _enter(self, phase: Phase) -> None:
        if phase not in SERVER[self.phase]:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, f"{phase.value} after {self.phase.value}")
        self._epoch.phase = phase
        self._epoch.answered = set()

    def _asked(self) -> tuple[int, ...]:
        late = self._epoch.phase in (Phase.VIEW, Phase.UNMASK)
        return self._epoch.survivors if late else self._epoch.members

    def _graph(self) -> Graph:
        if self._epoch.graph is None:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, "no epoch is open")
        return self._epoch.graph

    def _names(self, indices: Sequence[int]) -> tuple[SiteId, ...]:
        return tuple(self._terms.roster[index] for index in indices)

    def _need_all(self, answered: tuple[int, ...]) -> None:
        if answered != self._epoch.members:
            lost = self._names([index for index in self._epoch.members if index not in answered])
            raise ConsiliumError(errors.SECAGG_ABORTED, f"lost before the sum: {', '.join(lost)}")

    def _need_threshold(self, owners: Collection[int]) -> None:
        epoch = self._epoch
        if not self._graph().opens(epoch.answered, owners):
            raise ConsiliumError(errors.SECAGG_THRESHOLD, f"{len(epoch.answered)} of {len(epoch.members)} answered")

    # hello ---------------------------------------------------------------------------------------------------------
    def _take_hello(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.HELLO) as reader:
            hello = Hello.read(reader)
        signed = hello.signed(self._terms.study, self._epoch.nonce, index)
        self._verify(index, Domain.SECAGG_HELLO, signed, hello.signature)
        self._epoch.hellos[index] = hello

    def _close_hello(self, answered: tuple[int, ...]) -> None:
        epoch = self._epoch
        epoch.members = answered
        self._terms.check_cohort(self.cohort)
        epoch.session = session_of(self._terms.study, epoch.nonce, epoch.hellos)
        epoch.graph = Graph.of(self._terms, epoch.session, answered)
        epoch.instance = 1 + max(hello.floor for hello in epoch.hellos.values())
        self._enter(Phase.PREPARE)

    # prepare -------------------------------------------------------------------------------------------------------
    def _prepare_request(self) -> bytes:
        writer = Writer(Kind.PREPARE_REQUEST).indices(self._epoch.members)
        for index in self._epoch.members:
            self._epoch.hellos[index].write(writer)
        return writer.done()

    def _take_prepare(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.PREPARE) as reader:
            prepare = Prepare.read(reader)
        self._epoch.prepares[index] = self._checked(index, prepare, self._epoch.instance)

    def _checked(self, index: int, prepare: Prepare, instance: int) -> Shared:
        holders = self._graph().circle(index)
        if prepare.instance != instance or len(prepare.sealed) != len(holders):
            raise ConsiliumError(errors.SECAGG_MALFORMED, "a prepare for another instance or cohort")
        shared = Shared.of(prepare, holders)
        signed = signed_prepare(self._epoch.session, instance, index, prepare.key, shared.tree.root)
        self._verify(index, Domain.SECAGG_PREPARE, signed, prepare.signature)
        return shared

    def _close_prepare(self, answered: tuple[int, ...]) -> None:
        self._need_all(answered)
        self._enter(Phase.ACKNOWLEDGE)

    def _agreement(self, index: int, instance: int, prepares: Mapping[int, Shared]) -> bytes:
        """Return what one member's acknowledgement of its peers' prepares, and its own, must sign."""
        seen = sorted({index, *self._graph().circle(index)})
        roots = {peer: (prepares[peer].prepare.key, prepares[peer].tree.root) for peer in seen if peer in prepares}
        return acknowledged(self._epoch.session, instance, roots)

    def _deliveries(self, to: int, prepares: Mapping[int, Shared]) -> list[tuple[int, Delivery]]:
        graph, found = self._graph(), []
        for index in graph.peers(to):
            shared, place = prepares[index], graph.circle(index).index(to)
            prepare = shared.prepare
            delivery = Delivery(prepare.key, prepare.sealed[place], shared.tree.path(place), prepare.signature)
            found.append((index, delivery))
        return found

    # acknowledge ---------------------------------------------------------------------------------------------------
    def _acknowledge_request(self, to: int) -> bytes:
        writer = Writer(Kind.ACKNOWLEDGE_REQUEST).fixed(self._epoch.session)
        write_deliveries(writer, self._deliveries(to, self._epoch.prepares))
        return writer.done()

    def _take_acknowledgement(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.ACKNOWLEDGE) as reader:
            signature = reader.fixed(SIGNATURE_BYTES)
        agreed = self._agreement(index, self._epoch.instance, self._epoch.prepares)
        self._verify(index, Domain.SECAGG_ACKNOWLEDGE, agreed, signature)
        self._epoch.acknowledgements[index] = signature

    # input ---------------------------------------------------------------------------------------------------------
    def _input_request(self) -> bytes:
        writer = Writer(Kind.INPUT_REQUEST).fixed(self._epoch.session).number(self._epoch.instance, 8)
        write_signatures(writer, self._epoch.acknowledgements.items() if self._graph().complete else ())
        return writer.done()

    def _take_input(self, index: int, reply: bytes) -> None:
        encoding, total = self._open()
        with Reader(reply, Kind.INPUT) as reader:
            packed, following = reader.blob(MAX_VECTOR_BYTES), Prepare.read(reader)
        shared, lanes = self._checked(index, following, self._epoch.instance + 1), encoding.unpack(packed)
        total += lanes
        self._epoch.following[index] = shared

    def _close_input(self, answered: tuple[int, ...]) -> None:
        terms, names = self._terms, self._names(answered)
        terms.check_survivors(names, self.cohort)
        self._open()[0].check_survivors(names, terms.contributors_needed, terms.max_share)
        self._epoch.survivors, self._epoch.acknowledgements = answered, {}
        self._enter(Phase.UNMASK if answered == self._epoch.members else Phase.VIEW)

    # view ----------------------------------------------------------------------------------------------------------
    def _view_request(self) -> bytes:
        writer = Writer(Kind.VIEW_REQUEST).fixed(self._epoch.session).number(self._epoch.instance, 8)
        return writer.indices(self._epoch.survivors).done()

    def _take_view(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.VIEW) as reader:
            signature = reader.fixed(SIGNATURE_BYTES)
        view = view_of(self._epoch.context, self._epoch.survivors)
        self._verify(index, Domain.SECAGG_VIEW, view, signature)
        self._epoch.views[index] = signature

    # unmask --------------------------------------------------------------------------------------------------------
    def _unmask_request(self, to: int) -> bytes:
        epoch, circle = self._epoch, set(self._graph().circle(to))
        whole = epoch.survivors == epoch.members
        writer = Writer(Kind.UNMASK_REQUEST).fixed(epoch.session).number(epoch.instance, 8)
        writer.indices(epoch.survivors)
        write_signatures(writer, [(index, view) for index, view in epoch.views.items() if index in circle])
        write_deliveries(writer, self._deliveries(to, epoch.following) if whole else ())
        return writer.done()

    def _take_shares(self, index: int, reply: bytes) -> None:
        epoch, graph = self._epoch, self._graph()
        owners = graph.circle(index)
        with Reader(reply, Kind.UNMASK) as reader:
            shares = [reader.fixed(SHARE_BYTES) for _ in owners]
            signatures = read_signatures(reader)
        alive = set(epoch.survivors)
        for owner, share in zip(owners, shares, strict=True):
            kind, which = (SEED, 0) if owner in alive else (MASK, 1)
            place = graph.circle(owner).index(index)
            if commit(share, kind, owner, index) != epoch.prepares[owner].prepare.commitments[place][which]:
                names = self._names([owner, index])
                raise ConsiliumError(errors.SECAGG_SHARE, f"of {names[0]}, revealed by {names[1]}")
        if index in signatures:
            agreed = self._agreement(index, epoch.instance + 1, epoch.following)
            self._verify(index, Domain.SECAGG_ACKNOWLEDGE, agreed, signatures[index])
            epoch.acknowledgements[index] = signatures[index]
        epoch.revealed[index] = dict(zip(owners, shares, strict=True))

    def _close_unmask(self) -> None:
        epoch = self._epoch
        self._need_threshold(epoch.members)
        encoding, total = self._open()
        open_total(epoch, self._graph(), total, self._terms)
        survivors = self._names(epoch.survivors)
        epoch.result = Sum(encoding.decode(total, survivors), survivors, epoch.instance)
        epoch.total, epoch.encoding = None, None
        whole = epoch.survivors == epoch.members and len(epoch.revealed) == len(epoch.members)
        if whole and set(epoch.acknowledgements) == set(epoch.members):
            epoch.prepares, epoch.following = epoch.following, {}
            epoch.instance += 1
            self._enter(Phase.READY)
        else:
            self._enter(Phase.DONE)

    def _open(self) -> tuple[Encoding, Lanes]:
        if self._epoch.encoding is None or self._epoch.total is None:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, "no sum is open")
        return self._epoch.encoding, self._epoch.total

    def _verify(self, index: int, domain: Domain, payload: bytes, signature: bytes) -> None:
        site = self._terms.roster[index]
        try:
            check_signature(self._terms.keys[site], domain, payload, signature)
        except ConsiliumError as error:
            raise ConsiliumError(errors.SECAGG_SIGNATURE, f"{site}, {domain.value}") from error
