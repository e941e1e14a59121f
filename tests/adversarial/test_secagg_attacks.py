"""A cheating server against honest sites: each attack fails, and works as soon as the check that stops it is gone.

Colluding sites hand the server all they hold. "Works" means that the victim's own numbers are recovered exactly.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ConsiliumError
from common.identity import Identity, SiteId
from common.secagg import Encoding, Phase, ServerSession, SiteSession, shamir, transitions
from common.secagg.channels import KeyPair
from common.secagg.context import context_of
from common.secagg.journal import MemoryJournal
from common.secagg.masks import Lanes, add_masks, mask_key
from common.secagg.terms import Terms
from common.secagg.transitions import State, Step
from common.secagg.wire import MASK, SEED, Kind, Prepare, Reader, Writer, write_deliveries, write_signatures
from tests.protocols import (
    INPUT,
    Parties,
    answer,
    numbered,
    parties,
    relay,
    send_inputs,
    set_up,
    take_sum,
    ticket,
    total,
)

SECRET = [1_234, -678]
"""What the victim counts, and no other site knows."""
Patch = pytest.MonkeyPatch


class Attack:
    """A server that holds all masked inputs of one sum, and what it makes of them.

    victim     the site whose numbers are wanted
    colluders  sites that hand over what they hold
    """

    def __init__(self, sites: int, colluders: int = 0) -> None:
        self.made = parties(sites)
        self.encoding, values = numbered(self.made)
        self.victim, self.place = self.made.names[0], 0
        self.values: dict[SiteId, NDArray[np.int64]] = {**values, self.victim: np.array(SECRET)}
        self.colluders = self.made.names[sites - colluders :]
        self.inputs: dict[SiteId, Lanes] = {}

    @property
    def server(self) -> ServerSession:
        return self.made.server

    def collect(self) -> None:
        """Run an honest epoch up to the masked inputs, and close nothing."""
        set_up(self.made)
        self.server.begin(stage="fit", input_digest=INPUT, encoding=self.encoding)
        for site, request in self.server.requests().items():
            leave = ticket(self.made, site, request, self.encoding)
            self.inputs[site] = self.lanes(self.made.sites[site].mask(leave, self.values[site]))

    def lanes(self, reply: bytes) -> Lanes:
        with Reader(reply, Kind.INPUT) as reader:
            packed = reader.blob(1 << 20)
            reader.fixed(len(reply) - 6 - len(packed))
        return self.encoding.unpack(packed)

    def head(self, kind: Kind, survivors: Iterable[int]) -> Writer:
        writer = Writer(kind).fixed(self.server._epoch.session).number(self.server._epoch.instance, 8)
        return writer.indices(tuple(survivors))

    def view(self, survivors: Iterable[int]) -> bytes:
        return self.head(Kind.VIEW_REQUEST, survivors).done()

    def unmask(self, survivors: Iterable[int], signatures: Mapping[int, bytes]) -> bytes:
        writer = self.head(Kind.UNMASK_REQUEST, survivors)
        write_signatures(writer, signatures.items())
        write_deliveries(writer, ())
        return writer.done()

    def sign_view(self, site: SiteId, survivors: Iterable[int]) -> bytes:
        return self.made.sites[site].view(self.view(survivors))[2:]

    def share(self, reply: bytes) -> bytes:
        """Return the share of the victim's that an unmask reply reveals."""
        return reply[2 + 32 * self.place : 34 + 32 * self.place]

    def held(self, site: SiteId) -> tuple[bytes, bytes]:
        """Return both shares of the victim's that a colluder holds."""
        instance = self.made.sites[site]._current
        assert instance is not None
        return instance.peer_shares[self.place]

    def uncover(self, seed_shares: Mapping[int, bytes], mask_shares: Mapping[int, bytes]) -> list[int]:
        """Open the victim's masked input with all the shares there are."""
        seed = shamir.combine(list(seed_shares), list(seed_shares.values()))
        pair = KeyPair(shamir.combine(list(mask_shares), list(mask_shares.values())))
        lanes, context = self.inputs[self.victim].copy(), self.server._epoch.context
        add_masks(lanes, [(mask_key(seed, SEED, context), True)])
        for index, shared in self.server._epoch.prepares.items():
            if index != self.place:
                secret = pair.agree(shared.prepare.key)
                add_masks(lanes, [(mask_key(secret, MASK, context), self.place < index)])
        return [int(cell) for cell in self.encoding.decode(lanes, [self.victim])]


def nothing(*_: object, **__: object) -> None:
    """Stand in for a check that is gone."""


def refused(code: str) -> pytest.RaisesExc[ConsiliumError]:
    return pytest.raises(ConsiliumError, match=code)


# who is there ---------------------------------------------------------------------------------------------------------
def puppets(attack: Attack, known: Collection[SiteId]) -> None:
    """Replace all sites but the victim by the server's own puppets, which hold other identities and count nothing."""
    for site in attack.made.names[1:]:
        attack.made.sites[site] = SiteSession(attack.made.terms, Identity.generate(), site, verified=frozenset(known))
        attack.values[site] = np.zeros(2, dtype=np.int64)


def test_swapped_keys_in_the_hellos_are_refused() -> None:
    attack = Attack(4)
    puppets(attack, attack.made.names)
    attack.server._verify = nothing  # type: ignore[method-assign]  # The server has no scruples.
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    with refused("CSL-403"):
        attack.made.sites[attack.victim].prepare(attack.server.requests()[attack.victim])


def test_without_signatures_swapped_keys_give_the_update_away(monkeypatch: Patch) -> None:
    monkeypatch.setattr(SiteSession, "_verify", nothing)
    attack = Attack(4)
    puppets(attack, attack.made.names)
    attack.server._verify = nothing  # type: ignore[method-assign]
    set_up(attack.made)
    assert take_sum(attack.made, attack.encoding, attack.values).values.tolist() == SECRET


def test_one_swapped_key_among_honest_ones_is_refused() -> None:
    attack = Attack(4)
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    request = attack.server.requests()[attack.victim]
    key = attack.server._epoch.hellos[2].key
    with refused("CSL-403"):
        attack.made.sites[attack.victim].prepare(request.replace(key, KeyPair(b"\x05" * 32).public))


def test_a_hello_of_another_site_is_refused() -> None:
    attack = Attack(4)
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    attack.server._epoch.hellos[2] = attack.server._epoch.hellos[1]
    with refused("CSL-403"):
        attack.made.sites[attack.victim].prepare(attack.server.requests()[attack.victim])


def test_a_site_s_own_hello_of_before_is_refused() -> None:
    attack = Attack(4)
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)  # The server remembers this hello, and has the site draw another for the same nonce.
    site, old = attack.made.sites[attack.victim], attack.server.requests()[attack.victim]
    for nonce in (b"\x01" * 32, attack.server._epoch.nonce):
        site.hello(Writer(Kind.HELLO_REQUEST).fixed(nonce).done())
    with refused("CSL-406"):
        site.prepare(old)


def test_a_cohort_below_the_minimum_is_refused() -> None:
    with refused("CSL-404"):
        shrunken(Attack(6, colluders=2))


def test_without_the_minimum_a_victim_alone_with_colluders_is_read(monkeypatch: Patch) -> None:
    for check in ("check_cohort", "check_survivors", "check_own"):
        monkeypatch.setattr(Terms, check, nothing)
    assert shrunken(Attack(6, colluders=2)) == SECRET


def shrunken(attack: Attack) -> list[int]:
    """Invite the victim and the colluders only, and take the colluders' numbers from the sum."""
    attack.server.open_epoch = nothing  # type: ignore[method-assign]
    server, members = attack.server, (attack.victim, *attack.colluders)
    server._epoch.phase, server._epoch.nonce = Phase.HELLO, b"n" * 32
    server._epoch.members = tuple(attack.made.names.index(site) for site in members)
    for _ in (Phase.HELLO, Phase.PREPARE, Phase.ACKNOWLEDGE):
        for site, request in server.requests().items():
            server.receive(site, answer(attack.made.sites[site], server.phase, request))
        with pytest.MonkeyPatch.context() as scruples:
            if server.phase is Phase.HELLO:
                scruples.setattr(Terms, "check_cohort", nothing)
            server.advance()
    opened = take_sum(attack.made, attack.encoding, attack.values)
    return (opened.values - np.sum([attack.values[site] for site in attack.colluders], axis=0)).tolist()  # type: ignore[no-any-return]


def test_a_roster_of_invented_hospitals_is_refused_by_who_verified_none_of_them() -> None:
    attack = Attack(5)
    attack.made.sites[attack.victim]._verified = frozenset(attack.made.names[:2])
    with refused("CSL-404"):
        set_up(attack.made)


def test_without_verified_peers_invented_hospitals_leave_the_update_alone_in_the_sum(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Terms, "check_own", nothing)
    attack = Attack(5)
    attack.made.sites[attack.victim]._verified = frozenset(attack.made.names[:2])
    invented = {site: np.zeros(2, dtype=np.int64) for site in attack.made.names[1:]}
    set_up(attack.made)
    assert take_sum(attack.made, attack.encoding, {**attack.values, **invented}).values.tolist() == SECRET


# what it is about -----------------------------------------------------------------------------------------------------
def suppressed(attack: Attack) -> list[int]:
    """Send the victim the real model and the others one for which they have nothing to add (Pasquini 2022)."""
    zeros = {site: np.zeros(2, dtype=np.int64) for site in attack.made.names[1:]}
    values = {**zeros, attack.victim: attack.values[attack.victim]}
    set_up(attack.made)
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    for site, request in attack.server.requests().items():
        digest = INPUT if site == attack.victim else bytes(32)
        leave = ticket(attack.made, site, request, attack.encoding, digest)
        attack.server.receive(site, attack.made.sites[site].mask(leave, values[site]))
    attack.server.advance()
    relay(attack.made)
    return [int(cell) for cell in attack.server.result().values]


def test_sites_that_were_sent_different_models_give_noise() -> None:
    opened = suppressed(Attack(4))
    # Uniform over 64 bits, each: a false alarm of 2**-24.
    assert all(abs(cell) > 1 << 38 for cell in opened)
    assert opened != SECRET


def test_without_the_model_in_the_context_the_update_comes_out_alone(monkeypatch: Patch) -> None:
    def blind(
        terms: Terms, session: bytes, number: int, stage: str, digest: bytes, encoding: Encoding, keys: dict[int, bytes]
    ) -> bytes:
        return context_of(terms, session, number, stage, bytes(32), encoding, keys)

    monkeypatch.setattr("common.secagg.context.context_of", blind)
    monkeypatch.setattr("common.secagg.server.context_of", blind)
    assert suppressed(Attack(4)) == SECRET


def test_sites_that_were_told_different_stages_or_encodings_give_noise() -> None:
    for other in (("counts", 0), ("fit", 1)):
        attack = Attack(4)
        set_up(attack.made)
        attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
        loose = Encoding.counts(attack.made.signed.study, cells=2, maximum=10**5)
        for site, request in attack.server.requests().items():
            stage, encoding = "fit", attack.encoding
            if site == attack.victim:
                stage, encoding = other[0], loose if other[1] else encoding
            session = attack.made.sites[site]
            leave = session.open_input(request, input_digest=INPUT, stage=stage, encoding=encoding)
            attack.server.receive(site, session.mask(leave, attack.values[site]))
        attack.server.advance()
        relay(attack.made)
        assert all(abs(int(cell)) > 1 << 38 for cell in attack.server.result().values)


# once, and forwards ---------------------------------------------------------------------------------------------------
def masked_twice(attack: Attack) -> list[int]:
    """Have the victim mask its update, and zeros under the same keys: the difference is the update."""
    set_up(attack.made)
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    site, request = attack.made.sites[attack.victim], attack.server.requests()[attack.victim]
    leave = ticket(attack.made, attack.victim, request, attack.encoding)
    first = attack.lanes(site.mask(leave, attack.values[attack.victim]))
    second = attack.lanes(site.mask(leave, np.zeros(2, dtype=np.int64)))
    return [int(cell) for cell in attack.encoding.decode(first - second, [])]


def test_nothing_is_masked_twice_with_one_ticket() -> None:
    with refused("CSL-402"):
        masked_twice(Attack(4))


def test_with_a_ticket_for_two_the_difference_is_the_update(monkeypatch: Patch) -> None:
    monkeypatch.setattr(transitions, "SITE", {**transitions.SITE, (State.MASKED, Step.MASK): State.MASKED})
    assert masked_twice(Attack(4)) == SECRET


def rewound(attack: Attack) -> list[int]:
    """Open the same instance again, as if the first reply had been lost, for another value."""
    set_up(attack.made)
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    site, request = attack.made.sites[attack.victim], attack.server.requests()[attack.victim]
    masked = []
    for values in (attack.values[attack.victim], np.zeros(2, dtype=np.int64)):
        leave = ticket(attack.made, attack.victim, request, attack.encoding)
        masked.append(attack.lanes(site.mask(leave, values)))
    return [int(cell) for cell in attack.encoding.decode(masked[0] - masked[1], [])]


REOPENING = {**transitions.SITE, (State.MASKED, Step.OPEN): State.OPENED}


def test_an_instance_is_not_opened_again() -> None:
    with refused("CSL-402"):
        rewound(Attack(4))


def test_a_rewound_instance_number_is_refused_even_where_the_order_of_steps_allows_it(monkeypatch: Patch) -> None:
    monkeypatch.setattr(transitions, "SITE", REOPENING)
    with refused("CSL-405"):
        rewound(Attack(4))


def test_a_site_without_a_floor_is_rewound_and_read(monkeypatch: Patch) -> None:
    class Floorless(MemoryJournal):
        def floor(self) -> int:
            return 0

        def opened(self, instance: int) -> None: ...

    monkeypatch.setattr(transitions, "SITE", REOPENING)
    attack = Attack(4)
    identity = attack.made.signed.sites[attack.victim]
    attack.made.sites[attack.victim] = SiteSession(
        attack.made.terms, identity, attack.victim, verified=frozenset(attack.made.names), journal=Floorless()
    )
    assert rewound(attack) == SECRET


def test_a_prepare_of_another_epoch_is_refused() -> None:
    attack = Attack(4)
    set_up(attack.made)
    attack.server._epoch.phase = Phase.ACKNOWLEDGE
    old = attack.server.requests()[attack.victim]
    attack.made.renew()
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    relay(attack.made)
    site = attack.made.sites[attack.victim]
    with refused("CSL-405"):
        site.acknowledge(old)
    # The same under the new epoch's name: the channels and signatures are the old one's.
    with refused("CSL-407"):
        site.acknowledge(old[:2] + attack.server._epoch.session + old[34:])
    site.acknowledge(attack.server.requests()[attack.victim])


def test_a_prepare_of_another_instance_is_refused() -> None:
    attack = Attack(4)
    set_up(attack.made)
    send_inputs(attack.made, attack.encoding, attack.values)
    attack.server._epoch.following = attack.server._epoch.prepares  # The first instance's again, for the second.
    with refused("CSL-407"):
        attack.made.sites[attack.victim].unmask(attack.server.requests()[attack.victim])


def test_an_input_request_of_another_epoch_or_instance_is_refused() -> None:
    attack = Attack(4)
    set_up(attack.made)
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    request = attack.server.requests()[attack.victim]
    for forged in (request[:2] + bytes(32) + request[34:], request[:41] + b"\x02" + request[42:]):
        with refused("CSL-405"):
            ticket(attack.made, attack.victim, forged, attack.encoding)
    ticket(attack.made, attack.victim, request, attack.encoding)


def test_the_acknowledgements_of_one_instance_open_no_other() -> None:
    attack = Attack(4)
    set_up(attack.made)
    old = dict(attack.server._epoch.acknowledgements)
    take_sum(attack.made, attack.encoding, attack.values)
    attack.server._epoch.acknowledgements = old
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    with refused("CSL-403"):
        ticket(attack.made, attack.victim, attack.server.requests()[attack.victim], attack.encoding)


def test_a_sum_that_not_every_member_acknowledged_is_not_opened() -> None:
    attack = Attack(4)
    set_up(attack.made)
    del attack.server._epoch.acknowledgements[3]
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    with refused("CSL-406"):
        ticket(attack.made, attack.victim, attack.server.requests()[attack.victim], attack.encoding)


def test_members_that_were_shown_different_prepares_open_nothing() -> None:
    attack, honest = Attack(4), 1
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    relay(attack.made)
    # A colluder prepares twice and shows the victim another key than the rest.
    cheat = copy.copy(attack.made.sites[attack.made.names[3]])
    other = cheat._sealed_prepare(cheat._draw(1))
    shown = {**attack.server._epoch.prepares, 3: attack.server._checked(3, other, 1)}
    writer = Writer(Kind.ACKNOWLEDGE_REQUEST).fixed(attack.server._epoch.session)
    write_deliveries(writer, attack.server._deliveries(0, shown))
    attack.made.sites[attack.victim].acknowledge(writer.done())
    signatures = {}
    for site, request in attack.server.requests().items():
        if site != attack.victim:
            signatures[attack.made.names.index(site)] = attack.made.sites[site].acknowledge(request)[2:]
    signatures[0] = signatures[honest]
    opening = Writer(Kind.INPUT_REQUEST).fixed(attack.server._epoch.session).number(1, 8)
    write_signatures(opening, signatures.items())
    with refused("CSL-403"):
        ticket(attack.made, attack.victim, opening.done(), attack.encoding)


# who survived ---------------------------------------------------------------------------------------------------------
def split_views(attack: Attack) -> list[int]:
    """Tell one half that the victim survived and the other that it was lost; six sites, two of them colluders."""
    attack.collect()
    names = attack.made.names
    near, far = (0, 1), (2, 3)
    views = {near: (0, 1, 3, 4, 5), far: (1, 2, 3, 4, 5)}
    shares: dict[tuple[int, ...], dict[int, bytes]] = {near: {}, far: {}}
    for kind, (group, survivors) in enumerate(views.items()):
        signatures = {index: attack.sign_view(names[index], survivors) for index in group}
        for site in attack.colluders:
            # A colluder signs whatever it is asked to.
            accomplice = copy.copy(attack.made.sites[site])
            accomplice._opened, accomplice._journal = copy.copy(accomplice._opened), MemoryJournal()
            signatures[names.index(site)] = accomplice.view(attack.view(survivors))[2:]
            shares[group][names.index(site)] = attack.held(site)[kind]
        request = attack.unmask(survivors, signatures)
        for index in group:
            shares[group][index] = attack.share(attack.made.sites[names[index]].unmask(request))
    return attack.uncover(shares[near], shares[far])


def test_two_views_of_who_survived_find_no_quorum() -> None:
    with refused("CSL-404"):
        split_views(Attack(6, colluders=2))


def test_with_a_mere_majority_as_quorum_two_views_give_the_update_away(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Terms, "threshold", lambda self, cohort: cohort // 2 + 1)
    with refused("CSL-404"):  # A site sees for itself that colluders could be in both halves of such a quorum.
        split_views(Attack(6, colluders=2))
    monkeypatch.setattr(Terms, "check_own", nothing)
    assert split_views(Attack(6, colluders=2)) == SECRET


def test_without_signatures_on_views_the_share_threshold_still_stands(monkeypatch: Patch) -> None:
    monkeypatch.setattr(SiteSession, "_check_view", nothing)
    assert split_views(Attack(6, colluders=2)) != SECRET


def test_another_view_than_the_signed_one_is_refused() -> None:
    attack = Attack(5)
    attack.collect()
    attack.sign_view(attack.victim, (0, 1, 2, 3))
    site = attack.made.sites[attack.victim]
    with refused("CSL-402"):
        attack.sign_view(attack.victim, (0, 1, 2, 4))
    with refused("CSL-406"):
        site.unmask(attack.unmask((0, 1, 2, 4), {}))


def test_signatures_on_another_view_do_not_count() -> None:
    attack = Attack(5)
    attack.collect()
    names, told = attack.made.names, (0, 1, 2, 3)
    signatures = {index: attack.sign_view(names[index], told) for index in (1, 2, 3)}
    signatures[0] = attack.sign_view(attack.victim, (0, 1, 2, 4))
    with refused("CSL-403"):
        attack.made.sites[names[1]].unmask(attack.unmask(told, signatures))
    lost = {**{index: signatures[index] for index in (1, 2, 3)}, 4: signatures[1]}
    with refused("CSL-404"):  # Who is lost has no say.
        attack.made.sites[names[1]].unmask(attack.unmask(told, lost))


def test_after_a_view_there_is_no_fast_path() -> None:
    attack = Attack(5)
    attack.collect()
    attack.sign_view(attack.victim, (0, 1, 2, 3))
    with refused("CSL-402"):
        attack.made.sites[attack.victim].unmask(attack.unmask(range(5), {}))


def test_after_the_fast_path_there_is_no_view() -> None:
    attack = Attack(5)
    attack.collect()
    site = attack.made.sites[attack.victim]
    site.unmask(attack.unmask(range(5), {}))
    for again in (site.view, site.unmask):
        with refused("CSL-402"):
            again(attack.view((0, 1, 2, 3)) if again == site.view else attack.unmask((0, 1, 2, 3), {}))


def test_a_view_without_the_site_itself_is_refused() -> None:
    attack = Attack(5)
    attack.collect()
    with refused("CSL-406"):
        attack.sign_view(attack.victim, (1, 2, 3, 4))


def test_too_few_survivors_are_refused() -> None:
    attack = Attack(6)
    attack.collect()
    with refused("CSL-404"):
        attack.sign_view(attack.victim, (0, 1, 2, 3))


def test_a_quorum_below_the_terms_is_refused() -> None:
    attack = Attack(5)
    attack.collect()
    told = (0, 1, 2, 3)
    signatures = {index: attack.sign_view(attack.made.names[index], told) for index in told}
    for kept in range(4):
        few = {index: signatures[index] for index in told[:kept]}
        with refused("CSL-404"):
            attack.made.sites[attack.victim].unmask(attack.unmask(told, few))
    attack.made.sites[attack.victim].unmask(attack.unmask(told, signatures))


def pooled(attack: Attack) -> list[int]:
    """Open the victim's input with what the colluders hold, and with nothing else."""
    attack.collect()
    held = {attack.made.names.index(site): attack.held(site) for site in attack.colluders}
    return attack.uncover(
        {index: pair[0] for index, pair in held.items()}, {index: pair[1] for index, pair in held.items()}
    )


def test_colluders_alone_open_nothing() -> None:
    assert pooled(Attack(6, colluders=2)) != SECRET


def test_a_threshold_as_low_as_the_colluders_gives_the_update_away(monkeypatch: Patch) -> None:
    monkeypatch.setattr(Terms, "threshold", lambda self, cohort: 2)
    with refused("CSL-404"):
        pooled(Attack(6, colluders=2))
    monkeypatch.setattr(Terms, "check_own", nothing)
    assert pooled(Attack(6, colluders=2)) == SECRET


def both_shares(attack: Attack, *, snapshots: bool) -> list[int]:
    """Ask each site for the victim's seed share on the fast path, and for its mask share after a view."""
    attack.collect()
    names, told = attack.made.names, (1, 2, 3, 4)
    later = dict(attack.made.sites)
    if snapshots:
        for site, session in attack.made.sites.items():
            later[site] = copy.copy(session)
            later[site]._opened, later[site]._journal = copy.copy(session._opened), MemoryJournal()
    fast = attack.unmask(range(5), {})
    seeds = {index: attack.share(attack.made.sites[names[index]].unmask(fast)) for index in told}
    signatures = {index: later[names[index]].view(attack.view(told))[2:] for index in told}
    request = attack.unmask(told, signatures)
    return attack.uncover(seeds, {index: attack.share(later[names[index]].unmask(request)) for index in told})


def test_no_site_reveals_both_shares_of_another() -> None:
    with refused("CSL-402"):
        both_shares(Attack(5), snapshots=False)


def test_sites_whose_memory_is_rolled_back_reveal_both_which_is_why_sessions_live_in_one_process() -> None:
    # Outside the promise, and said so (RULES 5): the state that forbids it has been taken away.
    assert both_shares(Attack(5), snapshots=True) == SECRET


def late(attack: Attack) -> list[int]:
    """Declare the victim lost, open the honest sum, and then open the victim's late input with its mask key."""
    attack.collect()
    names, told = attack.made.names, (1, 2, 3, 4)
    signatures = {index: attack.sign_view(names[index], told) for index in told}
    request = attack.unmask(told, signatures)
    masks = {index: attack.share(attack.made.sites[names[index]].unmask(request)) for index in told}
    return attack.uncover({0: bytes(32)}, masks)


def test_a_late_input_of_a_site_that_was_declared_lost_stays_masked() -> None:
    assert late(Attack(5)) != SECRET


def test_without_the_self_mask_a_late_input_is_read(monkeypatch: Patch) -> None:
    def unseeded(secret: bytes, purpose: bytes, context: bytes) -> bytes:
        return mask_key(bytes(32) if purpose == SEED else secret, purpose, context)

    monkeypatch.setattr("common.secagg.site.mask_key", unseeded)
    assert late(Attack(5)) == SECRET


# what is sealed and revealed ------------------------------------------------------------------------------------------
def test_sealed_shares_that_were_forged_cut_or_given_to_another_are_refused() -> None:
    attack = Attack(4)
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    relay(attack.made)
    request = attack.server.requests()[attack.victim]
    mine = attack.server._epoch.prepares[1].prepare.sealed[0]
    other = attack.server._epoch.prepares[1].prepare.sealed[2]
    site = attack.made.sites[attack.victim]
    for forged in (bytes(80), mine[:-1] + bytes([mine[-1] ^ 1]), other):
        with refused("CSL-407"):
            site.acknowledge(request.replace(mine, forged))
    with refused("CSL-407"):
        site.acknowledge(request.replace(b"\x00\x00\x00\x50" + mine, b"\x00\x00\x00\x4f" + mine[:-1]))
    site.acknowledge(request)


def test_a_colluder_that_seals_something_else_than_two_shares_is_named() -> None:
    attack = Attack(4)
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    cheat = attack.made.sites[attack.made.names[3]]
    for site, request in attack.server.requests().items():
        attack.server.receive(site, attack.made.sites[site].prepare(request))
    attack.server.advance()
    shared = attack.server._epoch.prepares[3]
    short = cheat._channels[0].seal(1, bytes(40), shared.prepare.key + bytes([0, 3, 0, 0]))
    request = attack.server.requests()[attack.victim]
    sealed = shared.prepare.sealed[0]
    forged = request.replace(len(sealed).to_bytes(4, "big") + sealed, len(short).to_bytes(4, "big") + short)
    with pytest.raises(ConsiliumError, match=r"CSL-407.*site-003.*no pair"):
        attack.made.sites[attack.victim].acknowledge(forged)


def to_unmask(attack: Attack) -> dict[SiteId, bytes]:
    """Return every site's unmask reply, the server waiting for them."""
    set_up(attack.made)
    send_inputs(attack.made, attack.encoding, attack.values)
    return {site: attack.made.sites[site].unmask(request) for site, request in attack.server.requests().items()}


def forgeries(reply: bytes) -> dict[str, tuple[bytes, str]]:
    return {
        "changed": (reply[:40] + bytes([reply[40] ^ 1]) + reply[41:], "CSL-407"),
        "swapped": (reply[:2] + reply[34:66] + reply[2:34] + reply[66:], "CSL-407"),
        "cut": (reply[:-1], "CSL-401"),
        "a share short": (reply[:2] + reply[34:], "CSL-40"),
        "zeros": (reply[:2] + bytes(32 * 4) + reply[2 + 32 * 4 :], "CSL-407"),
    }


def test_revealed_shares_that_were_forged_are_refused_and_the_pair_is_named() -> None:
    attack = Attack(4)
    replies = to_unmask(attack)
    cheat = attack.made.names[3]
    for forged, code in forgeries(replies[cheat]).values():
        with refused(code):
            attack.server.receive(cheat, forged)
    with pytest.raises(ConsiliumError, match="of site-001, revealed by site-003"):
        attack.server.receive(cheat, forgeries(replies[cheat])["changed"][0])
    for site, reply in replies.items():
        attack.server.receive(site, reply)
    attack.server.advance()
    assert attack.server.result().values.tolist() == total(attack.values, attack.made.names)


def test_without_commitments_a_forged_share_makes_a_wrong_sum(monkeypatch: Patch) -> None:
    class Whatever:
        def __ne__(self, other: object) -> bool:
            return False

    attack = Attack(4)
    replies = to_unmask(attack)
    monkeypatch.setattr("common.secagg.server.commit", lambda *_: Whatever())
    first = attack.made.names[0]
    for site, reply in replies.items():
        attack.server.receive(site, forgeries(reply)["zeros"][0] if site == first else reply)
    attack.server.advance()
    assert attack.server.result().values.tolist() != total(attack.values, attack.made.names)


def test_another_site_s_reply_is_not_taken_for_one_s_own() -> None:
    attack = Attack(4)
    replies = to_unmask(attack)
    with refused("CSL-407"):
        attack.server.receive(attack.made.names[1], replies[attack.made.names[2]])
    with refused("CSL-122"):
        attack.server.receive(SiteId("stranger"), replies[attack.made.names[2]])


def test_what_is_delivered_twice_is_counted_once_and_answered_alike() -> None:
    attack = Attack(4)
    set_up(attack.made)
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    for site, request in attack.server.requests().items():
        leave = ticket(attack.made, site, request, attack.encoding)
        reply = attack.made.sites[site].mask(leave, attack.values[site])
        attack.server.receive(site, reply)
        with refused("CSL-402"):
            attack.server.receive(site, reply)
    attack.server.advance()
    for site, request in attack.server.requests().items():
        reply = attack.made.sites[site].unmask(request)
        assert attack.made.sites[site].unmask(request) == reply
        attack.server.receive(site, reply)
        with refused("CSL-402"):
            attack.server.receive(site, reply)
    attack.server.advance()
    assert attack.server.result().values.tolist() == total(attack.values, attack.made.names)


def test_two_members_with_one_mask_key_are_refused() -> None:
    # A colluder that repeats the victim's neighbour's key would make two masks cancel that should not.
    attack = Attack(4)
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    twin: dict[str, bytes] = {}

    def same(size: int) -> bytes:
        return twin.setdefault(str(size), b"\x09" * size)

    for name in attack.made.names[2:]:
        attack.made.sites[name]._entropy = same
    relay(attack.made)
    with refused("CSL-406"):
        attack.made.sites[attack.victim].acknowledge(attack.server.requests()[attack.victim])


def test_a_ticket_that_looks_like_the_open_one_masks_nothing() -> None:
    attack = Attack(4)
    set_up(attack.made)
    attack.server.begin(stage="fit", input_digest=INPUT, encoding=attack.encoding)
    leave = ticket(attack.made, attack.victim, attack.server.requests()[attack.victim], attack.encoding)
    with refused("CSL-405"):
        attack.made.sites[attack.victim].mask(replace(leave, context=bytes(32)), attack.values[attack.victim])


def test_a_view_of_the_whole_cohort_is_refused() -> None:
    attack = Attack(5)
    attack.collect()
    with refused("CSL-402"):
        attack.sign_view(attack.victim, range(5))


def test_losses_after_which_one_survivor_weighs_too_much_are_refused() -> None:
    attack = Attack(5)
    site = attack.made.sites[attack.victim]
    bands = {name: 40 if name == attack.victim else 15 for name in attack.made.names}
    site._terms = replace(attack.made.terms, bands=bands, max_share=0.45)
    attack.collect()
    with refused("CSL-404.*too large a part"):
        attack.sign_view(attack.victim, (0, 1, 2, 3))


def test_losses_after_which_only_strangers_are_left_are_refused() -> None:
    attack = Attack(6)
    attack.made.sites[attack.victim]._verified = frozenset(attack.made.names[:3])
    attack.collect()
    with refused("CSL-404.*verified"):
        attack.sign_view(attack.victim, (0, 1, 3, 4, 5))
    attack.sign_view(attack.victim, (0, 1, 2, 3, 4))


def test_a_site_keeps_nothing_of_a_sum_that_it_helped_to_open() -> None:
    attack = Attack(5)
    attack.collect()
    told = (0, 1, 2, 3)
    signatures = {index: attack.sign_view(attack.made.names[index], told) for index in told}
    site = attack.made.sites[attack.victim]
    site.unmask(attack.unmask(told, signatures))
    assert (site._current, site._following, site._opened) == (None, None, None)


def test_a_prepare_for_fewer_peers_is_refused() -> None:
    attack = Attack(4)
    attack.server.open_epoch(attack.made.names)
    relay(attack.made)
    reply = attack.made.sites[attack.victim].prepare(attack.server.requests()[attack.victim])
    with Reader(reply, Kind.PREPARE) as reader:
        prepare = Prepare.read(reader)
    writer = Writer(Kind.PREPARE)
    replace(prepare, sealed=prepare.sealed[:3], commitments=prepare.commitments[:3]).write(writer)
    with refused("CSL-401"):
        attack.server.receive(attack.victim, writer.done())


def test_a_colluder_that_shared_another_mask_key_than_its_own_is_named_when_it_is_lost() -> None:
    class Liar(KeyPair):
        def private_bytes(self) -> bytes:
            return b"\x42" * 32

    attack = Attack(5)
    cheat = attack.made.sites[attack.made.names[4]]
    with pytest.MonkeyPatch.context() as lying:
        # The cheat is asked last, so nobody else draws a lying pair.
        attack.server.open_epoch(attack.made.names)
        relay(attack.made)
        for name, request in attack.server.requests().items():
            if attack.made.sites[name] is cheat:
                lying.setattr("common.secagg.site.KeyPair", Liar)
            attack.server.receive(name, attack.made.sites[name].prepare(request))
    attack.server.advance()
    relay(attack.made)
    with refused("CSL-407.*site-004"):
        take_sum(attack.made, attack.encoding, attack.values, {Phase.INPUT: [attack.made.names[4]]})


def test_a_forged_acknowledgement_of_the_next_instance_is_refused_and_a_missing_one_ends_the_epoch() -> None:
    attack = Attack(4)
    replies = to_unmask(attack)
    first = attack.made.names[0]
    forged = replies[first][:-1] + bytes([replies[first][-1] ^ 1])
    with refused("CSL-403"):
        attack.server.receive(first, forged)
    silent = replies[first][: 2 + 32 * 4] + b"\x00"
    for site, reply in replies.items():
        attack.server.receive(site, silent if site == first else reply)
    attack.server.advance()
    assert attack.server.result().values.tolist() == total(attack.values, attack.made.names)
    assert attack.server.phase is Phase.DONE


def test_parties_are_honest_unless_told_otherwise() -> None:
    attack = Attack(4)
    made: Parties = attack.made
    set_up(made)
    assert take_sum(made, attack.encoding, attack.values).values.tolist() == total(attack.values, made.names)
