"""The server's side: relays what sites seal for each other, adds what they mask, opens the sum and nothing else.

Pure: :meth:`ServerSession.requests` says what to send, :meth:`ServerSession.receive` takes what came,
:meth:`ServerSession.advance` closes a phase; whoever has not answered by then is lost. Masked vectors are added as they
come: memory does not grow with the number of sites.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.identity import Domain, SiteId, verify
from common.secagg import shamir
from common.secagg.channels import KeyPair
from common.secagg.commitments import commit, leaves_of, path_of, root_of, signed_prepare
from common.secagg.context import acknowledged, context_of, session_of, view_of
from common.secagg.encoding import Encoding, Entropy
from common.secagg.masks import Lanes, add_mask, mask_key
from common.secagg.site import MASK, SEED
from common.secagg.terms import Terms
from common.secagg.transitions import SERVER, Phase
from common.secagg.wire import (
    MAX_VECTOR_BYTES,
    NONCE_BYTES,
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

_THREADS = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Sum:
    """A decoded sum.

    values     (dimension,) float64, the weighted mean over the survivors; or int64, sums of counts
    survivors  the sites in it, sorted
    instance   its number
    """

    values: NDArray[np.float64] | NDArray[np.int64]
    survivors: tuple[SiteId, ...]
    instance: int


@dataclass(frozen=True, slots=True)
class _Shared:
    """One site's checked prepare with its Merkle leaves and root."""

    prepare: Prepare
    leaves: tuple[bytes, ...]
    root: bytes


class ServerSession:
    """One epoch of one study.

    entropy  source of the epoch's nonce
    """

    def __init__(self, terms: Terms, *, entropy: Entropy = os.urandom) -> None:
        self._terms, self._entropy = terms, entropy
        self.phase = Phase.CLOSED
        self._nonce = b""
        self._members: tuple[int, ...] = ()
        self._session = b""
        self._instance = 0
        self._hellos: dict[int, Hello] = {}
        self._prepares: dict[int, _Shared] = {}
        self._following: dict[int, _Shared] = {}
        self._agreed = b""
        self._acknowledgements: dict[int, bytes] = {}
        self._answered: set[int] = set()
        self._encoding: Encoding | None = None
        self._total: Lanes | None = None
        self._context = b""
        self._survivors: tuple[int, ...] = ()
        self._views: dict[int, bytes] = {}
        self._revealed: dict[int, dict[int, bytes]] = {}
        self._result: Sum | None = None

    @classmethod
    def for_study(cls, study: Study, *, entropy: Entropy = os.urandom) -> ServerSession:
        """Return a session under a study's terms."""
        return cls(Terms.from_study(study), entropy=entropy)

    @property
    def cohort(self) -> tuple[SiteId, ...]:
        """The epoch's sites, sorted."""
        return self._names(self._members)

    def open_epoch(self, sites: Sequence[SiteId]) -> None:
        """Begin with the sites that are online; raises CSL-404 if they are too few and CSL-402 if already begun."""
        members = tuple(sorted({self._terms.index(site) for site in sites}))
        self._terms.check_cohort(self._names(members))
        self._enter(Phase.HELLO)
        self._members, self._result = members, None
        # Nothing of an epoch that was aborted may enter this one.
        self._hellos, self._prepares, self._acknowledgements = {}, {}, {}
        self._nonce = self._entropy(NONCE_BYTES)

    def begin(self, *, stage: str, input_digest: bytes, encoding: Encoding) -> None:
        """Begin a sum; raises CSL-402 unless every member's prepare was acknowledged by every other."""
        self._enter(Phase.INPUT)
        self._encoding, self._total = encoding, encoding.empty()
        self._survivors, self._following, self._views, self._revealed = (), {}, {}, {}
        keys = {index: shared.prepare.key for index, shared in self._prepares.items()}
        self._context = context_of(self._terms, self._session, self._instance, stage, input_digest, encoding, keys)

    def requests(self) -> dict[SiteId, bytes]:
        """Return what to send now, and to whom."""
        make: Mapping[Phase, Callable[[int], bytes]] = {
            Phase.HELLO: lambda _: Writer(Kind.HELLO_REQUEST).fixed(self._nonce).done(),
            Phase.PREPARE: lambda _: self._prepare_request(),
            Phase.ACKNOWLEDGE: self._acknowledge_request,
            Phase.INPUT: lambda _: self._input_request(),
            Phase.VIEW: lambda _: self._view_request(),
            Phase.UNMASK: self._unmask_request,
        }
        if self.phase not in make:
            return {}
        asked = self._survivors if self.phase in (Phase.VIEW, Phase.UNMASK) else self._members
        return {self._terms.roster[index]: make[self.phase](index) for index in asked}

    def receive(self, site: SiteId, reply: bytes) -> None:
        """Take one site's reply; raises CSL-4xx for one that is refused, which leaves the site unanswered."""
        index = self._terms.index(site)
        asked = self._survivors if self.phase in (Phase.VIEW, Phase.UNMASK) else self._members
        if index not in asked or index in self._answered:
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
        self._answered.add(index)

    def advance(self) -> None:
        """Close the phase; raises CSL-404 or CSL-410 when too few have answered, which ends the epoch."""
        answered = tuple(index for index in self._members if index in self._answered)
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
                self._need_threshold(len(answered))
                self._enter(Phase.UNMASK)
            elif self.phase is Phase.UNMASK:
                self._close_unmask()
            else:
                raise ConsiliumError(errors.SECAGG_ILLEGAL, f"nothing to close while {self.phase.value}")
        except ConsiliumError:
            self.phase = Phase.CLOSED
            raise

    def result(self) -> Sum:
        """Return the sum that was opened last; raises CSL-402 where there is none."""
        if self._result is None or self.phase not in (Phase.READY, Phase.DONE):
            raise ConsiliumError(errors.SECAGG_ILLEGAL, "no sum has been opened")
        return self._result

    def _enter(self, phase: Phase) -> None:
        if phase not in SERVER[self.phase]:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, f"{phase.value} after {self.phase.value}")
        self.phase = phase
        self._answered = set()

    def _names(self, indices: Sequence[int]) -> tuple[SiteId, ...]:
        return tuple(self._terms.roster[index] for index in indices)

    def _need_all(self, answered: tuple[int, ...]) -> None:
        if answered != self._members:
            lost = self._names([index for index in self._members if index not in answered])
            raise ConsiliumError(errors.SECAGG_ABORTED, f"lost before the sum: {', '.join(lost)}")

    def _need_threshold(self, count: int) -> None:
        if count < self._terms.threshold(len(self._members)):
            raise ConsiliumError(errors.SECAGG_THRESHOLD, f"{count} of {len(self._members)} answered")

    # hello ---------------------------------------------------------------------------------------------------------
    def _take_hello(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.HELLO) as reader:
            hello = Hello.read(reader)
        signed = hello.signed(self._terms.study, self._nonce, index)
        self._verify(index, Domain.SECAGG_HELLO, signed, hello.signature)
        self._hellos[index] = hello

    def _close_hello(self, answered: tuple[int, ...]) -> None:
        self._members = answered
        self._terms.check_cohort(self.cohort)
        self._session = session_of(self._terms, self._nonce, self._hellos)
        self._instance = 1 + max(hello.floor for hello in self._hellos.values())
        self._enter(Phase.PREPARE)

    # prepare -------------------------------------------------------------------------------------------------------
    def _prepare_request(self) -> bytes:
        writer = Writer(Kind.PREPARE_REQUEST).indices(self._members)
        for index in self._members:
            self._hellos[index].write(writer)
        return writer.done()

    def _take_prepare(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.PREPARE) as reader:
            prepare = Prepare.read(reader)
        self._prepares[index] = self._checked(index, prepare, self._instance)

    def _checked(self, index: int, prepare: Prepare, instance: int) -> _Shared:
        if prepare.instance != instance or len(prepare.sealed) != len(self._members):
            raise ConsiliumError(errors.SECAGG_MALFORMED, "a prepare for another instance or cohort")
        leaves = tuple(leaves_of(prepare, self._members))
        root = root_of(leaves)
        signed = signed_prepare(self._session, instance, index, prepare.key, root)
        self._verify(index, Domain.SECAGG_PREPARE, signed, prepare.signature)
        return _Shared(prepare, leaves, root)

    def _close_prepare(self, answered: tuple[int, ...]) -> None:
        self._need_all(answered)
        self._agreed = self._agreement(self._instance, self._prepares)
        self._enter(Phase.ACKNOWLEDGE)

    def _agreement(self, instance: int, prepares: Mapping[int, _Shared]) -> bytes:
        """Return what every member's acknowledgement of these prepares must sign."""
        roots = {index: (shared.prepare.key, shared.root) for index, shared in prepares.items()}
        return acknowledged(self._session, instance, roots)

    def _deliveries(self, to: int, prepares: Mapping[int, _Shared]) -> list[tuple[int, Delivery]]:
        place = self._members.index(to)
        return [
            (
                index,
                Delivery(
                    shared.prepare.key,
                    shared.prepare.sealed[place],
                    path_of(shared.leaves, place),
                    shared.prepare.signature,
                ),
            )
            for index, shared in sorted(prepares.items())
            if index != to
        ]

    # acknowledge ---------------------------------------------------------------------------------------------------
    def _acknowledge_request(self, to: int) -> bytes:
        writer = Writer(Kind.ACKNOWLEDGE_REQUEST).fixed(self._session)
        write_deliveries(writer, self._deliveries(to, self._prepares))
        return writer.done()

    def _take_acknowledgement(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.ACKNOWLEDGE) as reader:
            signature = reader.fixed(SIGNATURE_BYTES)
        self._verify(index, Domain.SECAGG_ACKNOWLEDGE, self._agreed, signature)
        self._acknowledgements[index] = signature

    # input ---------------------------------------------------------------------------------------------------------
    def _input_request(self) -> bytes:
        writer = Writer(Kind.INPUT_REQUEST).fixed(self._session).number(self._instance, 8)
        write_signatures(writer, self._acknowledgements.items())
        return writer.done()

    def _take_input(self, index: int, reply: bytes) -> None:
        encoding, total = self._open()
        with Reader(reply, Kind.INPUT) as reader:
            packed, following = reader.blob(MAX_VECTOR_BYTES), Prepare.read(reader)
        shared, lanes = self._checked(index, following, self._instance + 1), encoding.unpack(packed)
        total += lanes
        self._following[index] = shared

    def _close_input(self, answered: tuple[int, ...]) -> None:
        self._terms.check_survivors(self._names(answered), self.cohort)
        self._survivors, self._acknowledgements = answered, {}
        self._agreed = self._agreement(self._instance + 1, self._following)
        self._enter(Phase.UNMASK if answered == self._members else Phase.VIEW)

    # view ----------------------------------------------------------------------------------------------------------
    def _view_request(self) -> bytes:
        writer = Writer(Kind.VIEW_REQUEST).fixed(self._session).number(self._instance, 8)
        return writer.indices(self._survivors).done()

    def _take_view(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.VIEW) as reader:
            signature = reader.fixed(SIGNATURE_BYTES)
        self._verify(index, Domain.SECAGG_VIEW, view_of(self._context, self._survivors), signature)
        self._views[index] = signature

    # unmask --------------------------------------------------------------------------------------------------------
    def _unmask_request(self, to: int) -> bytes:
        whole = self._survivors == self._members
        writer = Writer(Kind.UNMASK_REQUEST).fixed(self._session).number(self._instance, 8)
        writer.indices(self._survivors)
        write_signatures(writer, self._views.items())
        write_deliveries(writer, self._deliveries(to, self._following) if whole else ())
        return writer.done()

    def _take_shares(self, index: int, reply: bytes) -> None:
        with Reader(reply, Kind.UNMASK) as reader:
            shares = [reader.fixed(SHARE_BYTES) for _ in self._members]
            signatures = read_signatures(reader)
        place, alive = self._members.index(index), set(self._survivors)
        for owner, share in zip(self._members, shares, strict=True):
            kind = SEED if owner in alive else MASK
            committed = self._prepares[owner].prepare.commitments[place][0 if owner in alive else 1]
            if commit(share, kind, owner, index) != committed:
                names = self._names([owner, index])
                raise ConsiliumError(errors.SECAGG_SHARE, f"of {names[0]}, revealed by {names[1]}")
        if index in signatures:
            self._verify(index, Domain.SECAGG_ACKNOWLEDGE, self._agreed, signatures[index])
            self._acknowledgements[index] = signatures[index]
        self._revealed[index] = dict(zip(self._members, shares, strict=True))

    def _close_unmask(self) -> None:
        self._need_threshold(len(self._revealed))
        encoding, total = self._open()
        for lanes in self._expanded(encoding):
            total += lanes
        survivors = self._names(self._survivors)
        self._result = Sum(encoding.decode(total, survivors), survivors, self._instance)
        self._total, self._encoding = None, None
        whole = self._survivors == self._members and len(self._revealed) == len(self._members)
        if whole and set(self._acknowledgements) == set(self._members):
            self._prepares, self._following = self._following, {}
            self._instance += 1
            self._enter(Phase.READY)
        else:
            self._enter(Phase.DONE)

    def _expanded(self, encoding: Encoding) -> list[Lanes]:
        """Return what cancels the masks that are left in the sum, one vector a thread."""
        jobs = [(key, subtract) for owner in self._members for key, subtract in self._left_over(owner)]

        def run(share: Sequence[tuple[bytes, bool]]) -> Lanes:
            lanes = encoding.empty()
            for key, subtract in share:
                add_mask(lanes, key, subtract=subtract)
            return lanes

        portions = [jobs[start::_THREADS] for start in range(min(_THREADS, len(jobs)))]
        with ThreadPoolExecutor(_THREADS) as pool:
            return list(pool.map(run, portions))

    def _left_over(self, owner: int) -> list[tuple[bytes, bool]]:
        """Return the keys of the masks that one site leaves in the sum, each with whether to subtract it.

        A survivor leaves its own; a lost site leaves its pairwise masks with every survivor.
        """
        threshold = self._terms.threshold(len(self._members))
        holders = sorted(self._revealed)[:threshold]
        places = [self._members.index(holder) for holder in holders]
        secret = shamir.combine(places, [self._revealed[holder][owner] for holder in holders])
        if owner in self._survivors:
            return [(mask_key(secret, SEED, self._context), True)]
        pair = KeyPair(secret)
        if pair.public != self._prepares[owner].prepare.key:
            raise ConsiliumError(errors.SECAGG_SHARE, f"the mask key of {self._terms.roster[owner]} is not its own")
        # The survivor added the mask if its index is below the lost site's, and subtracted it otherwise.
        return [
            (mask_key(pair.agree(self._prepares[peer].prepare.key), MASK, self._context), peer < owner)
            for peer in self._survivors
        ]

    def _open(self) -> tuple[Encoding, Lanes]:
        if self._encoding is None or self._total is None:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, "no sum is open")
        return self._encoding, self._total

    def _verify(self, index: int, domain: Domain, payload: bytes, signature: bytes) -> None:
        site = self._terms.roster[index]
        try:
            verify(self._terms.keys[site], domain, payload, signature)
        except ConsiliumError as error:
            raise ConsiliumError(errors.SECAGG_SIGNATURE, f"{site}, {domain.value}") from error
