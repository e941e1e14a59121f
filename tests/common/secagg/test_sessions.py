"""Whole sums: whoever is lost and whenever, the right sum over the survivors or a named abort, never a wrong sum."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import chain, combinations
from random import Random

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg import Encoding, Phase
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
from tests.studies import signed_study

Losses = Mapping[Phase, frozenset[SiteId]]
STAGES = (Phase.HELLO, Phase.PREPARE, Phase.ACKNOWLEDGE, Phase.INPUT, Phase.VIEW, Phase.UNMASK)


def subsets(sites: Collection[SiteId]) -> Iterator[frozenset[SiteId]]:
    listed = sorted(sites)
    return map(frozenset, chain.from_iterable(combinations(listed, size) for size in range(len(listed) + 1)))


def one_of_each_size(sites: Collection[SiteId]) -> Iterator[frozenset[SiteId]]:
    """Who is lost at the hello changes nothing but the places of the rest; one choice a size is enough."""
    listed = sorted(sites)
    return (frozenset((listed[1::2] + listed[0::2])[:size]) for size in range(len(listed) + 1))


def schedules(made: Parties, at_hello: Callable[[Collection[SiteId]], Iterator[frozenset[SiteId]]]) -> Iterator[Losses]:
    """Yield every way to lose sites, each with its losses by stage, none after the loss that must abort."""
    terms = made.terms

    def grow(stage: int, alive: frozenset[SiteId], cohort: int, before: Losses) -> Iterator[Losses]:
        if stage == len(STAGES):
            yield before
            return
        phase = STAGES[stage]
        if phase is Phase.VIEW and len(alive) == cohort:
            yield from grow(stage + 1, alive, cohort, before)
            return
        for lost in at_hello(alive) if phase is Phase.HELLO else subsets(alive):
            losses, left = {**before, phase: lost}, alive - lost
            size = len(left) if phase is Phase.HELLO else cohort
            need = {
                Phase.HELLO: terms.survivors_needed(size),
                Phase.PREPARE: size,
                Phase.ACKNOWLEDGE: size,
                Phase.INPUT: terms.survivors_needed(size),
                Phase.VIEW: terms.threshold(size),
                Phase.UNMASK: terms.threshold(size),
            }[phase]
            if len(left) < need:
                yield losses
            else:
                yield from grow(stage + 1, left, size, losses)

    yield from grow(0, frozenset(made.names), 0, {})


def run_schedule(sites: int, losses: Losses) -> bool:
    """Run one schedule; True where a sum was opened, which is then the right one."""
    made = parties(sites)
    encoding, values = numbered(made)
    try:
        set_up(made, lost=losses)
        opened = take_sum(made, encoding, values, losses)
    except ConsiliumError as error:
        if error.code not in ("CSL-404", "CSL-410") or made.server.phase is not Phase.CLOSED:
            raise
        with pytest.raises(ConsiliumError, match="CSL-402"):
            made.server.result()
        return False
    expected = set(made.names) - losses[Phase.HELLO] - losses[Phase.INPUT]
    assert set(opened.survivors) == expected, losses
    assert opened.values.tolist() == total(values, expected), losses
    anyone_lost = any(lost for phase, lost in losses.items() if phase is not Phase.HELLO)
    assert made.server.phase is (Phase.DONE if anyone_lost else Phase.READY)
    return True


def must_open(made: Parties, losses: Losses) -> bool:
    """Say from the terms alone whether a schedule opens a sum."""
    terms, cohort = made.terms, len(made.sites) - len(losses[Phase.HELLO])
    left = cohort
    for phase in STAGES:
        left -= len(losses.get(phase, ())) if phase is not Phase.HELLO else 0
        enough = {
            Phase.HELLO: left >= terms.survivors_needed(cohort),
            Phase.PREPARE: left == cohort,
            Phase.ACKNOWLEDGE: left == cohort,
            Phase.INPUT: left >= terms.survivors_needed(cohort),
        }.get(phase, left >= terms.threshold(cohort))
        if not enough:
            return False
    return True


def check_all(sites: int, at_hello: Callable[[Collection[SiteId]], Iterator[frozenset[SiteId]]]) -> None:
    made, opened = parties(sites), 0
    for losses in schedules(made, at_hello):
        expected = must_open(made, losses)
        assert run_schedule(sites, losses) is expected, losses
        opened += expected
    assert opened > 1


def test_every_schedule_of_losses_among_four_sites_gives_the_right_sum_or_an_abort() -> None:
    check_all(4, subsets)


def test_every_schedule_of_losses_among_five_sites_gives_the_right_sum_or_an_abort() -> None:
    check_all(5, one_of_each_size)


@pytest.mark.slow
def test_every_schedule_of_losses_among_six_sites_gives_the_right_sum_or_an_abort() -> None:
    check_all(6, one_of_each_size)


def test_three_sites_are_refused_whatever_is_lost() -> None:
    """With one colluder among three nobody has two honest others (RULES 2, 3): a named abort before any key is sent."""
    made = parties(3)
    for online in subsets(made.names):
        with pytest.raises(ConsiliumError, match="CSL-404"):
            made.server.open_epoch(sorted(online))


def one_hot(made: Parties) -> tuple[Encoding, dict[SiteId, NDArray[np.int64]]]:
    """Return counts of as many cells as sites: the sum says who is in it, and how often."""
    encoding = Encoding.counts(made.signed.study, cells=len(made.sites), maximum=7)
    return encoding, {site: 7 * np.eye(len(made.sites), dtype=np.int64)[at] for at, site in enumerate(made.names)}


def run_at_random(made: Parties, dice: Random, most_lost: float) -> bool:
    """Lose a random few at each stage of two sums; True where one was opened. Each that was is exactly right."""
    encoding, values = one_hot(made)

    def few() -> list[SiteId]:
        return [site for site in made.names if dice.random() < most_lost * dice.random()]

    opened = False
    try:
        early = few()
        set_up(made, lost={Phase.HELLO: early})
        for _ in range(2):
            losses = {phase: few() for phase in (Phase.INPUT, Phase.VIEW, Phase.UNMASK) if dice.random() < 0.6}
            summed = take_sum(made, encoding, values, losses)
            expected = set(made.names) - set(early) - set(losses.get(Phase.INPUT, ()))
            assert set(summed.survivors) == expected
            assert summed.values.tolist() == total(values, expected)
            opened = True
            if made.server.phase is Phase.DONE:
                break
    except ConsiliumError as error:
        if error.code not in ("CSL-404", "CSL-410") or made.server.phase is not Phase.CLOSED:
            raise
    return opened


@pytest.mark.slow
@pytest.mark.parametrize("sites", [7, 16, 31, 64, 100])
def test_random_schedules_give_the_right_sum_or_an_abort(sites: int) -> None:
    dice = Random(sites)
    opened = [run_at_random(parties(sites), dice, most) for most in (0.05, 0.3, 0.6) for _ in range(100 // sites + 2)]
    assert any(opened)
    assert not all(opened)


def test_a_vector_comes_out_as_the_weighted_mean_of_the_survivors() -> None:
    made = parties(5, aggregation={"clamp": 1.0, "minimum_cohort": 3, "bits": 20})
    encoding = Encoding.vector(made.signed.study, 37)
    generator = np.random.default_rng(1)
    values = {site: generator.uniform(-0.1, 0.1, 37).astype(np.float32) for site in made.names}
    set_up(made)
    lost = made.names[2]
    opened = take_sum(made, encoding, values, {Phase.INPUT: [lost]})
    expected = np.mean([values[site].astype(np.float64) for site in made.names if site != lost], axis=0)
    # Each site's rounding is below one step a rotated coordinate, and the rotation keeps lengths.
    assert np.linalg.norm(opened.values - expected) <= encoding.step * np.sqrt(37) * 1.01


def test_instances_follow_each_other_in_one_epoch_with_two_trips_each() -> None:
    made = parties(4)
    encoding, values = numbered(made)
    set_up(made)
    for instance in range(1, 6):
        doubled = {site: cells * instance for site, cells in values.items()} if instance < 3 else values
        opened = take_sum(made, encoding, doubled)
        assert opened.instance == instance
        assert opened.values.tolist() == total(doubled, made.names)
        assert made.server.phase is Phase.READY


def test_a_loss_ends_the_epoch_after_its_sum() -> None:
    made = parties(5)
    encoding, values = numbered(made)
    set_up(made)
    take_sum(made, encoding, values)
    take_sum(made, encoding, values, {Phase.INPUT: [made.names[0]]})
    assert made.server.phase is Phase.DONE
    with pytest.raises(ConsiliumError, match="CSL-402"):
        made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)


def test_instance_numbers_never_go_back_over_epochs() -> None:
    made = parties(5)
    encoding, values = numbered(made)
    last = 0
    for epoch in range(4):
        made.renew()
        online = made.names if epoch % 2 == 0 else made.names[:4]
        set_up(made, online)
        for _ in range(2):
            opened = take_sum(made, encoding, values)
            assert opened.instance > last
            assert opened.values.tolist() == total(values, online)
            last = opened.instance


def test_a_server_that_aborted_opens_another_epoch() -> None:
    made = parties(5)
    encoding, values = numbered(made)
    set_up(made)
    take_sum(made, encoding, values)
    with pytest.raises(ConsiliumError, match="CSL-404"):
        take_sum(made, encoding, values, {Phase.INPUT: made.names[:2]})
    set_up(made, made.names[1:])
    with pytest.raises(ConsiliumError, match="CSL-402"):
        made.server.result()
    opened = take_sum(made, encoding, values)
    assert opened.survivors == made.names[1:]
    assert opened.values.tolist() == total(values, made.names[1:])
    assert opened.instance == 3


def test_too_few_sites_online_open_no_epoch_and_more_may_come() -> None:
    made = parties(5)
    with pytest.raises(ConsiliumError, match="CSL-404"):
        made.server.open_epoch(made.names[:3])
    set_up(made)
    assert made.server.phase is Phase.READY


def test_a_request_that_comes_again_gets_the_very_same_bytes() -> None:
    made = parties(5)
    encoding, values = numbered(made)
    made.server.open_epoch(made.names)
    for _ in range(3):
        for site, request in made.server.requests().items():
            reply = answer(made.sites[site], made.server.phase, request)
            assert answer(made.sites[site], made.server.phase, request) == reply
            made.server.receive(site, reply)
        made.server.advance()
    send_inputs(made, encoding, values, [made.names[4]])
    while made.server.phase in (Phase.VIEW, Phase.UNMASK):
        for site, request in made.server.requests().items():
            reply = answer(made.sites[site], made.server.phase, request)
            assert answer(made.sites[site], made.server.phase, request) == reply
            made.server.receive(site, reply)
        made.server.advance()
    assert made.server.result().values.tolist() == total(values, made.names[:4])


def test_another_request_for_a_step_that_is_done_is_refused() -> None:
    made, other = parties(4), parties(4)
    encoding, values = numbered(made)
    made.server.open_epoch(made.names)
    other.server.open_epoch(other.names)
    site = made.names[0]
    for _ in range(2):
        relay(made)
        relay(other)
        phase = made.server.phase
        answer(made.sites[site], phase, made.server.requests()[site])
        with pytest.raises(ConsiliumError, match="CSL-402"):
            answer(made.sites[site], phase, other.server.requests()[site])
    relay(made)
    relay(other)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    request = made.server.requests()[site]
    leave = ticket(made, site, request, encoding)
    with pytest.raises(ConsiliumError, match="CSL-402"):
        ticket(made, site, request, encoding)
    made.sites[site].mask(leave, values[site])
    with pytest.raises(ConsiliumError, match="CSL-402"):
        made.sites[site].mask(leave, values[site])


def test_steps_out_of_order_are_refused_and_harm_nothing() -> None:
    made = parties(5)
    encoding, values = numbered(made)
    requests: dict[Phase, bytes] = {}
    site = made.names[1]

    def try_all_others() -> None:
        for phase, request in requests.items():
            if phase not in (made.server.phase, Phase.HELLO) and phase not in answered:
                with pytest.raises(ConsiliumError, match="CSL-40"):
                    answer(made.sites[site], phase, request)

    answered: set[Phase] = set()
    for phase in (Phase.PREPARE, Phase.ACKNOWLEDGE, Phase.VIEW, Phase.UNMASK):
        requests[phase] = b"\x01\x03" + bytes(40)
    made.server.open_epoch(made.names)
    for _ in range(3):
        try_all_others()
        relay(made)
    try_all_others()
    opened = take_sum(made, encoding, values, {Phase.INPUT: [made.names[0]]})
    assert opened.values.tolist() == total(values, made.names[1:])


def test_a_value_that_is_refused_leaves_the_ticket_open() -> None:
    made = parties(4)
    encoding, values = numbered(made)
    set_up(made)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    for site, request in made.server.requests().items():
        leave = ticket(made, site, request, encoding)
        with pytest.raises(ConsiliumError, match="CSL-408"):
            made.sites[site].mask(leave, values[site] * 10**9)
        made.server.receive(site, made.sites[site].mask(leave, values[site]))
    made.server.advance()
    relay(made)
    assert made.server.result().values.tolist() == total(values, made.names)


def test_a_late_or_second_reply_changes_nothing() -> None:
    made = parties(5)
    encoding, values = numbered(made)
    set_up(made)
    made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    replies = {
        site: made.sites[site].mask(ticket(made, site, request, encoding), values[site])
        for site, request in made.server.requests().items()
    }
    late = made.names[4]
    for site in made.names[:4]:
        made.server.receive(site, replies[site])
        with pytest.raises(ConsiliumError, match="CSL-402"):
            made.server.receive(site, replies[site])
    made.server.advance()
    with pytest.raises(ConsiliumError, match="CSL-402"):
        made.server.receive(late, replies[late])
    relay(made)
    relay(made)
    assert made.server.result().values.tolist() == total(values, made.names[:4])


def test_clamped_coordinates_are_counted_on_the_site() -> None:
    made = parties(4)
    encoding = Encoding.vector(made.signed.study, 1)
    values = {site: np.array([5.0 if i == 0 else 0.5]) for i, site in enumerate(made.names)}
    set_up(made)
    opened = take_sum(made, encoding, values)
    assert [made.sites[site].clamped for site in made.names] == [1, 0, 0, 0]
    assert opened.values[0] == pytest.approx(2.5 / 4, abs=4 * encoding.step)


def test_no_secret_shows_in_any_repr() -> None:
    drawn: list[bytes] = []

    def watched(size: int) -> bytes:
        drawn.append(np.random.default_rng(len(drawn)).bytes(size))
        return drawn[-1]

    made = parties(4)
    site = made.names[0]
    made.sites[site]._entropy = watched
    encoding, values = numbered(made)
    set_up(made)
    take_sum(made, encoding, values)
    session = made.sites[site]
    shown = [repr(session)]
    for name in vars(session):
        value = getattr(session, name)
        if name not in ("_journal", "_nonce", "_entropy"):
            shown.append(repr(value))
    assert len(drawn) > 5
    nonce = session._nonce
    for secret in drawn:
        if secret and secret != nonce:
            assert not any(secret.hex() in text or repr(secret) in text for text in shown)


def test_an_epoch_forgets_the_secrets_of_the_one_before() -> None:
    made = parties(4)
    encoding, values = numbered(made)
    set_up(made)
    send_inputs(made, encoding, values)
    waiting = dict(made.server.requests())
    made.renew()
    made.server.open_epoch(made.names)
    relay(made)
    for site, request in waiting.items():
        with pytest.raises(ConsiliumError, match="CSL-402"):
            made.sites[site].unmask(request)


def test_a_stranger_has_no_session() -> None:
    signed = signed_study(4)
    made = parties(4)
    with pytest.raises(ConsiliumError, match="CSL-122"):
        type(made.sites[made.names[0]]).for_study(
            signed.study, signed.operator, SiteId("stranger"), verified=frozenset()
        )
