"""Restarts (RULES 5): the server goes on from what it stored; a site re-sends what it journalled and rejoins."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from random import Random

import numpy as np
import pytest

from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg import Encoding, Phase, ServerSession, SiteSession
from common.secagg.journal import MemoryJournal
from tests.protocols import INPUT, NOBODY, Losses, Parties, answer, numbered, parties, set_up, take_sum, ticket, total
from tests.studies import signed_study


class Forgetful:
    """A server that is killed between any two calls: every call is made on what a store gave back."""

    def __init__(self, made: Parties, encodings: Collection[Encoding]) -> None:
        self._terms, self._encodings = made.terms, encodings
        self._stored = made.server.store()
        self.restarts = 0

    def _restored(self) -> ServerSession:
        self.restarts += 1
        server = ServerSession.restore(self._terms, self._stored, encodings=self._encodings)
        assert server.store() == self._stored
        return server

    def __getattr__(self, name: str) -> object:
        server = self._restored()
        found = getattr(server, name)
        if not callable(found):
            return found

        def call(*args: object, **kwargs: object) -> object:
            try:
                return found(*args, **kwargs)
            finally:
                self._stored = server.store()

        return call


def forget(made: Parties, *encodings: Encoding) -> Forgetful:
    forgetful = Forgetful(made, encodings)
    made.server = forgetful  # type: ignore[assignment]
    return forgetful


@pytest.mark.parametrize("losses", [NOBODY, {Phase.INPUT: (2,)}, {Phase.HELLO: (5,), Phase.UNMASK: (0,)}])
def test_a_server_that_is_killed_between_any_two_messages_opens_the_same_sums(
    losses: dict[Phase, tuple[int, ...]],
) -> None:
    made = parties(6)
    encoding, values = numbered(made)
    lost: Losses = {phase: [made.names[index] for index in indices] for phase, indices in losses.items()}
    forgetful = forget(made, encoding)
    set_up(made, lost=lost)
    summed = take_sum(made, encoding, values, lost)
    assert list(summed.values) == total(values, summed.survivors)
    assert len(summed.survivors) == 6 - len(lost.get(Phase.HELLO, ())) - len(lost.get(Phase.INPUT, ()))
    if not lost:
        again = take_sum(made, encoding, values)
        assert (again.instance, list(again.values)) == (2, total(values, made.names))
    assert forgetful.restarts > 40


def test_a_vector_s_sum_survives_too() -> None:
    made = parties(5)
    encoding = Encoding.vector(made.signed.study, 33)
    values = {site: np.linspace(-0.01, 0.01 * at, 33, dtype=np.float32) for at, site in enumerate(made.names)}
    forget(made, encoding)
    set_up(made)
    mean = take_sum(made, encoding, values).values
    weights = dict(encoding.weights)
    exact = sum(weights[site] * encoding.clamped(values[site]) for site in made.names) / sum(weights.values())
    np.testing.assert_allclose(mean, exact, atol=6 * encoding.step)


def test_a_store_of_another_study_or_with_any_byte_cut_off_is_refused() -> None:
    made = parties(4)
    encoding, values = numbered(made)
    set_up(made)
    take_sum(made, encoding, values)
    stored = made.server.store()
    with pytest.raises(ConsiliumError, match="CSL-401"):
        ServerSession.restore(parties(5).terms, stored, encodings=[encoding])
    dice = Random(5)
    for cut in [*range(40), *(dice.randrange(len(stored)) for _ in range(60))]:
        with pytest.raises(ConsiliumError, match="CSL-4"):
            ServerSession.restore(made.terms, stored[:cut], encodings=[encoding])
    with pytest.raises(ConsiliumError, match="CSL-401"):
        ServerSession.restore(made.terms, stored + b"\0", encodings=[encoding])


def test_a_flipped_bit_in_a_store_gives_a_coded_error_or_a_session() -> None:
    made = parties(4)
    encoding, _ = numbered(made)
    set_up(made)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    stored, dice = made.server.store(), Random(6)
    for _ in range(300):
        at = dice.randrange(len(stored))
        flipped = stored[:at] + bytes([stored[at] ^ 1 << dice.randrange(8)]) + stored[at + 1 :]
        with suppress(ConsiliumError):
            ServerSession.restore(made.terms, flipped, encodings=[encoding])


def test_an_open_sum_is_restored_with_an_encoding_of_the_study_or_not_at_all() -> None:
    made = parties(4)
    encoding, _ = numbered(made)
    set_up(made)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    with pytest.raises(ConsiliumError, match=r"CSL-401.*encoding"):
        ServerSession.restore(made.terms, made.server.store(), encodings=[Encoding.vector(made.signed.study, 3)])


# sites ----------------------------------------------------------------------------------------------------------------
class Ward:
    """Parties whose sites keep journals, so that they can be started again."""

    def __init__(self, sites: int = 5) -> None:
        self.made = parties(sites)
        self.journals = {site: MemoryJournal() for site in self.made.names}
        for site in self.made.names:
            self.restart(site)

    def restart(self, site: SiteId) -> None:
        signed = self.made.signed
        self.made.sites[site] = SiteSession.for_study(
            signed.study,
            signed.sites[site],
            site,
            verified=frozenset(signed.sites),
            journal=self.journals[site],
        )


def test_a_site_that_starts_again_re_sends_every_reply_byte_for_byte() -> None:
    ward = Ward()
    made, site = ward.made, ward.made.names[1]
    encoding, values = numbered(made)
    made.server.open_epoch(made.names)
    asked: list[tuple[Phase, bytes, bytes]] = []
    while made.server.phase is not Phase.READY or len(asked) < 4:
        if made.server.phase is Phase.READY:
            made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
        phase = made.server.phase
        for name, request in made.server.requests().items():
            if phase is Phase.INPUT:
                reply = made.sites[name].mask(ticket(made, name, request, encoding), values[name])
            else:
                reply = answer(made.sites[name], phase, request)
            made.server.receive(name, reply)
            if name == site:
                asked.append((phase, request, reply))
        made.server.advance()
    ward.restart(site)
    for phase, request, reply in asked:
        session = made.sites[site]
        again = (
            session.answered(request, input_digest=INPUT, stage="fit", encoding=encoding)
            if phase is Phase.INPUT
            else answer(session, phase, request)
        )
        assert again == reply
    assert [phase for phase, _, _ in asked] == [
        Phase.HELLO, Phase.PREPARE, Phase.ACKNOWLEDGE, Phase.INPUT, Phase.UNMASK,
    ]  # fmt: skip


def test_an_input_that_differs_in_anything_gets_no_reply_of_before() -> None:
    ward = Ward()
    made, site = ward.made, ward.made.names[0]
    encoding, values = numbered(made)
    set_up(made)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    request = made.server.requests()[site]
    made.sites[site].mask(ticket(made, site, request, encoding), values[site])
    ward.restart(site)
    session, other = made.sites[site], Encoding.vector(made.signed.study, 2)
    for question, digest, stage, form in (
        (request + b"\0", INPUT, "fit", encoding),
        (request, bytes(32), "fit", encoding),
        (request, INPUT, "counts", encoding),
        (request, INPUT, "fit", other),
    ):
        assert session.answered(question, input_digest=digest, stage=stage, encoding=form) is None
        with pytest.raises(ConsiliumError, match="CSL-402"):
            session.open_input(question, input_digest=digest, stage=stage, encoding=form)


def test_a_site_that_starts_again_has_no_secret_of_before_and_takes_part_in_a_new_epoch_only() -> None:
    ward = Ward()
    made, site = ward.made, ward.made.names[2]
    encoding, values = numbered(made)
    set_up(made)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    request = made.server.requests()[site]
    ward.restart(site)
    with pytest.raises(ConsiliumError, match="CSL-402"):
        ticket(made, site, request, encoding)
    made.renew()
    set_up(made)
    assert list(take_sum(made, encoding, values).values) == total(values, made.names)


def test_instance_numbers_rise_over_restarts_of_every_site() -> None:
    ward = Ward()
    made = ward.made
    encoding, values = numbered(made)
    instances = []
    for _ in range(3):
        set_up(made)
        instances.append(take_sum(made, encoding, values).instance)
        for site in made.names:
            ward.restart(site)
        made.renew()
    assert instances == [1, 2, 3]


def test_without_the_journal_a_site_that_starts_again_goes_back() -> None:
    """What the floor on disk prevents: the same instance number for another input."""
    ward = Ward()
    made = ward.made
    encoding, values = numbered(made)
    set_up(made)
    first = take_sum(made, encoding, values).instance
    for site in made.names:
        ward.journals[site] = MemoryJournal()
        ward.restart(site)
    made.renew()
    set_up(made)
    assert take_sum(made, encoding, values).instance == first


def test_what_is_opened_is_journalled_before_anything_is_computed_and_what_is_sent_before_it_is_returned() -> None:
    class Watched(MemoryJournal):
        def __init__(self) -> None:
            super().__init__()
            self.steps: list[str] = []

        def opened(self, instance: int) -> None:
            super().opened(instance)
            self.steps.append(f"opened {instance}")

        def write(self, entry: object) -> None:
            super().write(entry)  # type: ignore[arg-type]
            self.steps.append(getattr(entry, "step", "?"))

    signed = signed_study(5)
    made, watched = parties(5), Watched()
    site = made.names[0]
    made.sites[site] = SiteSession.for_study(
        made.signed.study, made.signed.sites[site], site, verified=frozenset(made.names), journal=watched
    )
    assert signed.study.roster[0].site == site
    encoding, values = numbered(made)
    set_up(made)
    take_sum(made, encoding, values, {Phase.INPUT: [made.names[4]]})
    assert watched.steps == [
        "hello", "prepare", "acknowledge", "opened 1", "mask", "view", "unmask a signed view",
    ]  # fmt: skip


class Broken(MemoryJournal):
    """A disk that is full when a masked input is written."""

    def write(self, entry: object) -> None:
        if getattr(entry, "step", "") == "mask":
            raise OSError("no space left")
        super().write(entry)  # type: ignore[arg-type]


def test_a_reply_that_cannot_be_journalled_does_not_leave_and_is_not_masked_again() -> None:
    made = parties(4)
    site = made.names[0]
    made.sites[site] = SiteSession.for_study(
        made.signed.study, made.signed.sites[site], site, verified=frozenset(made.names), journal=Broken()
    )
    encoding, values = numbered(made)
    set_up(made)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    leave = ticket(made, site, made.server.requests()[site], encoding)
    with pytest.raises(OSError, match="space"):
        made.sites[site].mask(leave, values[site])
    with pytest.raises(ConsiliumError, match="CSL-402"):
        made.sites[site].mask(leave, values[site])
