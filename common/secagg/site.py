"""The site's side: what one site does, refuses, remembers and forgets.

Pure: bytes in, bytes out. Whatever the server says, a site masks once under one key, states one view of who survived,
reveals for each peer one kind of share, and never goes back to an earlier instance. A request that was answered is
answered with the same bytes; another request for the same step is refused.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.identity import Domain, Identity, SiteId
from common.secagg import context, shamir
from common.secagg.channels import Channel, KeyPair
from common.secagg.commitments import Tree, climb, commit, leaf, leaves_of, signed_prepare
from common.secagg.encoding import Encoding, Entropy
from common.secagg.graph import Graph
from common.secagg.instance import Instance, Opened, Ticket
from common.secagg.journal import Entry, Journal, MemoryJournal
from common.secagg.masks import add_masks, mask_key
from common.secagg.terms import Terms
from common.secagg.transitions import State, Step, after
from common.secagg.wire import (
    DIGEST_BYTES,
    MASK,
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
    packed_indices,
    read_deliveries,
    read_signatures,
    write_signatures,
)
from common.study import Study

T = TypeVar("T")


class SiteSession:
    """One site in one study, over all its epochs.

    verified  peers whose fingerprints this site compared out of band (RULES 3)
    entropy   source of keys, seeds and rounding
    journal   what was opened and answered; a site that starts again with it re-sends, and rejoins in a new epoch
    clamped   coordinates clamped so far; stays on site
    """

    def __init__(
        self,
        terms: Terms,
        identity: Identity,
        site: SiteId,
        *,
        verified: frozenset[SiteId],
        entropy: Entropy = os.urandom,
        journal: Journal | None = None,
    ) -> None:
        self._terms, self._identity, self._site = terms, identity, site
        self._index = terms.index(site)
        self._verified, self._entropy = verified, entropy
        self._state = State.IDLE
        self._journal: Journal = MemoryJournal() if journal is None else journal
        self._server_nonce = b""
        self._nonce = b""
        self._channel_key: KeyPair | None = None
        self._session = b""
        self._graph: Graph | None = None
        self._channels: dict[int, Channel] = {}
        self._current: Instance | None = None
        self._following: Instance | None = None
        self._opened: Opened | None = None
        self.clamped = 0

    @classmethod
    def for_study(
        cls,
        study: Study,
        identity: Identity,
        site: SiteId,
        *,
        verified: frozenset[SiteId],
        entropy: Entropy = os.urandom,
        journal: Journal | None = None,
    ) -> SiteSession:
        """Return a session under a study's own terms."""
        terms = Terms.from_study(study)
        return cls(terms, identity, site, verified=verified, entropy=entropy, journal=journal)

    def __repr__(self) -> str:
        return f"SiteSession({self._site}, {self._state.value})"

    def hello(self, request: bytes) -> bytes:
        """Open an epoch: forget every secret of the one before, and offer a fresh channel key."""
        return self._once(request, self._hello)

    def prepare(self, request: bytes) -> bytes:
        """Check every participant's hello and share the secrets of the epoch's first instance."""
        return self._once(request, self._prepare)

    def acknowledge(self, request: bytes) -> bytes:
        """Check what every peer shared, and sign that all of it has arrived."""
        return self._once(request, self._acknowledge)

    def open_input(self, request: bytes, *, input_digest: bytes, stage: str, encoding: Encoding) -> Ticket:
        """Check everything about a sum before anything is computed for it.

        input_digest  32 bytes over what this site really received, computed by the site
        Raises CSL-402 to CSL-406. A sum that was opened is never opened again (CSL-402).
        """
        state, name = after(self._state, Step.OPEN), context.input_name(request, input_digest, stage, encoding)
        instance, graph = _need(self._current), _need(self._graph)
        with Reader(request, Kind.INPUT_REQUEST) as reader:
            session, number = reader.fixed(DIGEST_BYTES), reader.number(8)
            signatures = read_signatures(reader)
        self._check_session(session)
        if number != instance.number or number <= self._journal.floor():
            raise ConsiliumError(errors.SECAGG_REPLAY, f"instance {number}")
        # In a neighbourhood a site cannot tell what others were shown: their acknowledgements are the server's affair.
        if tuple(sorted(signatures)) != (graph.members if graph.complete else ()):
            raise ConsiliumError(errors.SECAGG_INCONSISTENT, "not every participant acknowledged every other")
        agreed = context.acknowledged(self._session, number, instance.roots)
        for index, signature in signatures.items():
            self._verify(index, Domain.SECAGG_ACKNOWLEDGE, agreed, signature)
        cohort = tuple(map(self._terms.roster.__getitem__, graph.members))
        self._terms.check_cohort(cohort)
        encoding = encoding.among(cohort, self._terms.contributors_needed, self._terms.max_share)
        self._check_sum(cohort, cohort, encoding)
        keys = instance.peer_keys if graph.complete else {}
        named = context.context_of(self._terms, self._session, number, stage, input_digest, encoding, keys)
        self._journal.opened(number)
        self._state = state
        self._opened = Opened(Ticket(number, cohort, named), encoding, graph.members, name)
        return self._opened.ticket

    def mask(self, ticket: Ticket, values: NDArray[np.generic]) -> bytes:
        """Mask one site's values for one sum, once; raises CSL-405 for a ticket that is not the open one.

        The reply also shares the secrets of the next instance, and is journalled before it is returned.
        """
        opened, instance = self._opened, self._current
        if opened is None or instance is None or ticket is not opened.ticket:
            raise ConsiliumError(errors.SECAGG_REPLAY, "this sum is not open")
        state = after(self._state, Step.MASK)
        lanes, clamped = opened.encoding.encode(self._site, values, self._entropy)
        # From here on the masks are spent, whatever happens.
        self._state, self.clamped = state, self.clamped + clamped
        masks = [(mask_key(instance.seed, SEED, ticket.context), False)]
        for index in _need(self._graph).peers(self._index):
            secret = instance.mask.agree(instance.peer_keys[index])
            masks.append((mask_key(secret, MASK, ticket.context), self._index > index))
        add_masks(lanes, masks)
        self._following = self._draw(instance.number + 1)
        writer = Writer(Kind.INPUT).blob(opened.encoding.pack(lanes))
        self._sealed_prepare(self._following).write(writer)
        return self._write(opened.name, Step.MASK, writer.done())

    def answered(self, request: bytes, *, input_digest: bytes, stage: str, encoding: Encoding) -> bytes | None:
        """Return the reply that this very input was given before, even before a restart; None where there is none."""
        return self._journal.replies().get(context.input_name(request, input_digest, stage, encoding))

    def view(self, request: bytes) -> bytes:
        """Sign who survived: one view an instance, and none after the whole cohort was unmasked."""
        return self._once(request, self._view)

    def unmask(self, request: bytes) -> bytes:
        """Reveal what opens the sum: for each survivor its seed's share, for each lost site its mask key's share."""
        return self._once(request, self._unmask)

    def _hello(self, request: bytes) -> tuple[Step, bytes]:
        state = after(self._state, Step.HELLO)
        with Reader(request, Kind.HELLO_REQUEST) as reader:
            server_nonce = reader.fixed(NONCE_BYTES)
        self._forget()
        self._state, self._server_nonce = state, server_nonce
        self._nonce, floor = self._entropy(NONCE_BYTES), self._journal.floor()
        self._channel_key = KeyPair(self._entropy(32))
        hello = Hello(self._nonce, self._channel_key.public, floor, bytes(SIGNATURE_BYTES))
        signed = hello.signed(self._terms.study, server_nonce, self._index)
        writer = Writer(Kind.HELLO)
        Hello(self._nonce, hello.key, floor, self._identity.sign(Domain.SECAGG_HELLO, signed)).write(writer)
        return Step.HELLO, writer.done()

    def _prepare(self, request: bytes) -> tuple[Step, bytes]:
        state, own = after(self._state, Step.PREPARE), _need(self._channel_key)
        hellos = context.read_members(request, len(self._terms.roster))
        members = tuple(hellos)
        mine = hellos.get(self._index)
        if mine is None or (mine.nonce, mine.key, mine.floor) != (self._nonce, own.public, self._journal.floor()):
            raise ConsiliumError(errors.SECAGG_INCONSISTENT, "this site's own hello is not among them")
        cohort = tuple(map(self._terms.roster.__getitem__, members))
        self._terms.check_cohort(cohort)
        self._terms.check_own(self._site, self._verified, cohort, cohort)
        session = context.session_named(self._terms.study, self._server_nonce, request, len(self._terms.roster))
        graph = Graph.of(self._terms, session, members)
        for index in sorted({self._index, *graph.peers(self._index)}):
            signed = hellos[index].signed(self._terms.study, self._server_nonce, index)
            self._verify(index, Domain.SECAGG_HELLO, signed, hellos[index].signature)
        self._session, self._graph = session, graph
        self._channels = {index: Channel(own, hellos[index].key, session) for index in graph.peers(self._index)}
        self._channel_key = None
        self._current = self._draw(1 + max(hello.floor for hello in hellos.values()))
        self._state = state
        writer = Writer(Kind.PREPARE)
        self._sealed_prepare(self._current).write(writer)
        return Step.PREPARE, writer.done()

    def _acknowledge(self, request: bytes) -> tuple[Step, bytes]:
        state = after(self._state, Step.ACKNOWLEDGE)
        with Reader(request, Kind.ACKNOWLEDGE_REQUEST) as reader:
            self._check_session(reader.fixed(DIGEST_BYTES))
            deliveries = read_deliveries(reader)
        signature = self._accept(_need(self._current), deliveries)
        self._state = state
        return Step.ACKNOWLEDGE, Writer(Kind.ACKNOWLEDGE).fixed(signature).done()

    def _view(self, request: bytes) -> tuple[Step, bytes]:
        state, opened = after(self._state, Step.VIEW), _need(self._opened)
        with Reader(request, Kind.VIEW_REQUEST) as reader:
            self._check_instance(reader, opened)
            survivors = reader.indices(len(self._terms.roster))
        self._check_survivors(survivors, opened)
        if survivors == opened.cohort:
            raise ConsiliumError(errors.SECAGG_ILLEGAL, "nobody was lost: no view is needed")
        opened.view = context.view_of(opened.ticket.context, survivors)
        self._state = state
        return Step.VIEW, Writer(Kind.VIEW).fixed(self._identity.sign(Domain.SECAGG_VIEW, opened.view)).done()

    def _unmask(self, request: bytes) -> tuple[Step, bytes]:
        opened, instance = _need(self._opened), _need(self._current)
        with Reader(request, Kind.UNMASK_REQUEST) as reader:
            self._check_instance(reader, opened)
            survivors = reader.indices(len(self._terms.roster))
            signatures = read_signatures(reader)
            deliveries = read_deliveries(reader)
        self._check_survivors(survivors, opened)
        whole = survivors == opened.cohort
        step = Step.UNMASK_ALL if whole else Step.UNMASK_VIEW
        state = after(self._state, step)
        if not whole:
            self._check_view(survivors, signatures, opened)
        alive = set(survivors)
        owners = _need(self._graph).circle(self._index)
        shares = [instance.peer_shares[index][0 if index in alive else 1] for index in owners]
        writer = Writer(Kind.UNMASK).fixed(b"".join(shares))
        self._current, self._opened, self._state = None, None, state
        self._begin_following(deliveries if whole else {}, writer)
        return step, writer.done()

    def _begin_following(self, deliveries: Mapping[int, Delivery], writer: Writer) -> None:
        """Take up the next instance if every member's prepare has arrived; else a new epoch is needed (RULES 5)."""
        following, self._following = self._following, None
        signatures: list[tuple[int, bytes]] = []
        if following is not None and deliveries:
            signatures = [(self._index, self._accept(following, deliveries))]
            self._current, self._state = following, after(self._state, Step.ACKNOWLEDGE)
        write_signatures(writer, signatures)

    def _draw(self, number: int) -> Instance:
        """Draw one instance's secrets."""
        return Instance(number, self._entropy(SHARE_BYTES), KeyPair(self._entropy(SHARE_BYTES)))

    def _sealed_prepare(self, instance: Instance) -> Prepare:
        graph = _need(self._graph)
        holders = graph.circle(self._index)
        secrets = instance.seed + instance.mask.private_bytes()
        sealed, commitments = [], []
        for holder, share in zip(
            holders, shamir.split(secrets, len(holders), graph.threshold, self._entropy), strict=True
        ):
            pair = (share[:SHARE_BYTES], share[SHARE_BYTES:])
            commitments.append((commit(pair[0], SEED, self._index, holder), commit(pair[1], MASK, self._index, holder)))
            if holder == self._index:
                instance.own_shares = pair
                sealed.append(b"")
            else:
                bound = instance.mask.public + packed_indices((self._index, holder))
                sealed.append(self._channels[holder].seal(instance.number, b"".join(pair), bound))
        unsigned = Prepare(instance.number, instance.mask.public, tuple(sealed), tuple(commitments), b"")
        instance.root = Tree(leaves_of(unsigned, holders)).root
        signed = signed_prepare(self._session, instance.number, self._index, unsigned.key, instance.root)
        return Prepare(
            instance.number,
            unsigned.key,
            unsigned.sealed,
            unsigned.commitments,
            self._identity.sign(Domain.SECAGG_PREPARE, signed),
        )

    def _accept(self, instance: Instance, deliveries: Mapping[int, Delivery]) -> bytes:
        """Check and keep what every member shared; returns the signed acknowledgement of all of it."""
        graph = _need(self._graph)
        if tuple(sorted(deliveries)) != graph.peers(self._index):
            raise ConsiliumError(errors.SECAGG_INCONSISTENT, "not every member's prepare is here")
        keys = {self._index: instance.mask.public}
        shares = {self._index: instance.own_shares}
        roots = {self._index: (instance.mask.public, instance.root)}
        for index, delivery in deliveries.items():
            bound = delivery.key + packed_indices((index, self._index))
            plain = self._channels[index].open(instance.number, delivery.sealed, bound)
            if len(plain) != 2 * SHARE_BYTES:
                raise ConsiliumError(errors.SECAGG_SHARE, f"of {self._terms.roster[index]}, which is no pair of shares")
            pair = (plain[:SHARE_BYTES], plain[SHARE_BYTES:])
            commitments = (commit(pair[0], SEED, index, self._index), commit(pair[1], MASK, index, self._index))
            place = graph.circle(index).index(self._index)
            root = climb(leaf(self._index, delivery.sealed, commitments), place, delivery.path)
            signed = signed_prepare(self._session, instance.number, index, delivery.key, root)
            self._verify(index, Domain.SECAGG_PREPARE, signed, delivery.signature)
            keys[index], shares[index], roots[index] = delivery.key, pair, (delivery.key, root)
        if len(set(keys.values())) != len(keys):
            raise ConsiliumError(errors.SECAGG_INCONSISTENT, "two sites gave one mask key")
        instance.peer_keys, instance.peer_shares, instance.roots = keys, shares, roots
        agreed = context.acknowledged(self._session, instance.number, roots)
        return self._identity.sign(Domain.SECAGG_ACKNOWLEDGE, agreed)

    def _check_view(self, survivors: tuple[int, ...], signatures: Mapping[int, bytes], opened: Opened) -> None:
        view = context.view_of(opened.ticket.context, survivors)
        if view != opened.view:
            raise ConsiliumError(errors.SECAGG_INCONSISTENT, "another view than the one this site signed")
        graph = _need(self._graph)
        signers = set(survivors).intersection(graph.circle(self._index))
        if len(signatures) < graph.threshold or not set(signatures) <= signers:
            raise ConsiliumError(errors.SECAGG_THRESHOLD, f"{len(signatures)} signatures of survivors on this view")
        for index, signature in signatures.items():
            self._verify(index, Domain.SECAGG_VIEW, view, signature)

    def _check_survivors(self, survivors: tuple[int, ...], opened: Opened) -> None:
        names = list(map(self._terms.roster.__getitem__, survivors))
        if self._site not in names:
            raise ConsiliumError(errors.SECAGG_INCONSISTENT, "this site survived and is not listed")
        self._check_sum(names, opened.ticket.cohort, opened.encoding)

    def _check_sum(self, survivors: Sequence[SiteId], cohort: Sequence[SiteId], encoding: Encoding) -> None:
        """Check that this site can hide in a sum, and in each block of it to which it contributes."""
        self._terms.check_survivors(survivors, cohort)
        self._terms.check_own(self._site, self._verified, survivors, cohort)
        encoding.check_survivors(survivors, self._terms.contributors_needed, self._terms.max_share)
        for block in encoding.blocks:
            if self._site in block.sites and block.name not in encoding.left_out:
                others = [site for site in survivors if site in block.sites]
                self._terms.check_own(self._site, self._verified, others, cohort)

    def _check_instance(self, reader: Reader, opened: Opened) -> None:
        self._check_session(reader.fixed(DIGEST_BYTES))
        if reader.number(8) != opened.ticket.instance:
            raise ConsiliumError(errors.SECAGG_REPLAY, "another instance")

    def _check_session(self, session: bytes) -> None:
        if session != self._session:
            raise ConsiliumError(errors.SECAGG_REPLAY, "another epoch")

    def _verify(self, index: int, domain: Domain, payload: bytes, signature: bytes) -> None:
        if index >= len(self._terms.roster):
            raise ConsiliumError(errors.SECAGG_MALFORMED, "a site index is out of range")
        site = self._terms.roster[index]
        try:
            context.check_signature(self._terms.keys[site], domain, payload, signature)
        except ConsiliumError as error:
            raise ConsiliumError(errors.SECAGG_SIGNATURE, f"{site}, {domain.value}") from error

    def _once(self, request: bytes, take: Callable[[bytes], tuple[Step, bytes]]) -> bytes:
        """Answer a request, or answer it again with the very same bytes."""
        name = hashlib.sha256(request).digest()
        known = self._journal.replies().get(name)
        return self._write(name, *take(request)) if known is None else known

    def _write(self, name: bytes, step: Step, reply: bytes) -> bytes:
        """Journal a reply before it leaves (RULES 5)."""
        view = b"" if self._opened is None else self._opened.view or b""
        self._journal.write(Entry(name, step.value, self._journal.floor(), view, reply))
        return reply

    def _forget(self) -> None:
        """Drop every secret and every answer of the epoch; what remains is the floor."""
        self._session, self._graph, self._channels = b"", None, {}
        self._channel_key, self._current, self._following, self._opened = None, None, None, None
        self._journal.new_epoch()


def _need(value: T | None) -> T:
    """Return what the state table guarantees to be there."""
    if value is None:
        raise ConsiliumError(errors.SECAGG_ILLEGAL, "nothing is open")
    return value
