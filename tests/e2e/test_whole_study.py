"""A whole study through Flower messages: right sums, lost sites, refusals, and the same answer to the same question."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Message

from client.site import Site
from common.errors import ConsiliumError
from common.identity import Identity, SiteId
from common.messages import ANYONE, OPERATOR, Envelope, Sealed, Stage, seal
from tests.federations import Federation, federation, mean_update
from tests.studies import signed_study

TOLERANCE = 2e-3
"""Stochastic rounding to 16 bits under a clamp of 1: far below any update's size here."""


def uneven(sites: int) -> list[dict[str, object]]:
    """Return a roster whose sites have different bands."""
    roster = signed_study(sites).study.roster
    return [{"site": member.site, "key": member.key, "band": 100 * (index + 1)} for index, member in enumerate(roster)]


def losing(made: Federation, site: SiteId, *stages: Stage) -> Callable[[Message], bool]:
    """Return a rule by which one site's replies at some stages never come, in the first attempt only."""
    seen: set[str] = set()

    def lost(message: Message) -> bool:
        stage = message.metadata.message_type
        if message.metadata.dst_node_id != made.node(site) or stage not in stages or stage in seen:
            return False
        seen.add(stage)
        return True

    return lost


def test_every_round_moves_the_vector_by_the_weighted_mean_of_the_updates() -> None:
    made = federation(5, roster=uneven(5))
    outcome = made.run()
    everyone = tuple(sorted(made.sites))
    assert len(outcome.rounds) == made.signed.study.training.rounds
    assert all(record.survivors == everyone for record in outcome.rounds)
    expected = len(outcome.rounds) * mean_update(made, everyone)
    assert outcome.vector == pytest.approx(expected, abs=TOLERANCE)
    for workload in made.workloads.values():
        assert np.array_equal(workload.seen[1], made.workloads[everyone[0]].seen[1])
    assert all(not site.log.incidents for site in made.sites.values())


def test_the_evaluation_is_the_sum_of_the_noised_cells() -> None:
    made = federation(4, cells={SiteId(f"site-{i:03d}"): np.array([50 + i, -3 * i]) for i in range(4)})
    counts = made.run().counts
    assert counts is not None
    assert np.asarray(counts.values).tolist() == [206, -18]


def test_a_study_that_cannot_be_evaluated_keeps_its_vector_and_says_why() -> None:
    made = federation(4)
    outcome = made.run(lost=lambda message: message.metadata.message_type == Stage.COUNTS)
    assert outcome.counts is None
    assert "CSL-602" in outcome.not_evaluated
    assert len(outcome.rounds) == made.signed.study.training.rounds
    assert outcome.vector.any()


def test_evaluation_happens_only_as_often_as_the_study_says() -> None:
    made = federation(4, evaluation={"releases": 0})
    assert made.run().counts is None
    assert all(
        key.stage is Stage.FIT for ledger in made.ledgers.values() for key in ledger.charges(made.signed.study.digest)
    )


@pytest.mark.parametrize("stage", [Stage.KEYS, Stage.PREPARE, Stage.FIT, Stage.UNMASK, Stage.COUNTS])
def test_a_site_lost_at_a_stage_leaves_a_right_result_or_a_named_error(stage: Stage) -> None:
    made = federation(6)
    gone = SiteId("site-002")
    outcome = made.run(lost=losing(made, gone, stage))
    expected = np.zeros(made.workloads[gone].dimension)
    for record in outcome.rounds:
        expected += mean_update(made, record.survivors)
    assert outcome.vector == pytest.approx(expected, abs=TOLERANCE)
    if stage is Stage.FIT:
        assert gone not in outcome.rounds[0].survivors
        assert gone in outcome.rounds[-1].survivors


def test_too_few_sites_end_the_study_with_a_named_error_and_no_result() -> None:
    made = federation(4)
    alive = {made.node(SiteId("site-000")), made.node(SiteId("site-001"))}
    with pytest.raises(ConsiliumError) as caught:
        made.run(lost=lambda message: message.metadata.dst_node_id not in alive)
    assert caught.value.code == "CSL-602"
    assert made.coordinator.outcome.rounds == []
    assert not made.coordinator.outcome.vector.any()


def test_each_site_is_charged_once_a_round_and_once_for_the_evaluation() -> None:
    made = federation(4)
    made.run()
    for ledger in made.ledgers.values():
        stages = [key.stage for key in ledger.charges(made.signed.study.digest)]
        assert stages == [Stage.FIT] * made.signed.study.training.rounds + [Stage.COUNTS]


def test_everything_that_left_is_in_the_egress_log_to_the_byte() -> None:
    made = federation(4)
    made.run()
    logged = sum(entry.total_bytes for site in made.sites.values() for entry in site.log.egress)
    assert logged == made.coordinator.traffic.up


@pytest.fixture
def asked() -> tuple[Federation, Site, Envelope]:
    made = federation(4)
    site = made.sites[SiteId("site-001")]
    return made, site, Envelope(made.signed.study.digest, Stage.IDENTIFY, 0, 0, OPERATOR, ANYONE, {"nonce": bytes(32)})


def test_the_same_request_gets_the_same_bytes(asked: tuple[Federation, Site, Envelope]) -> None:
    made, site, request = asked
    sealed = seal(request, made.signed.operator)
    assert site.answer(Stage.IDENTIFY, sealed) == site.answer(Stage.IDENTIFY, sealed)
    assert len(site.log.egress) == 1


def test_a_request_that_the_operator_did_not_sign_is_refused(asked: tuple[Federation, Site, Envelope]) -> None:
    _, site, request = asked
    with pytest.raises(ConsiliumError) as caught:
        site.answer(Stage.IDENTIFY, seal(request, Identity.generate()))
    assert caught.value.code == "CSL-121"
    assert site.log.egress == []


def test_a_request_of_another_study_is_refused(asked: tuple[Federation, Site, Envelope]) -> None:
    made, site, _ = asked
    other = signed_study(4, title="Another study").study.digest
    request = Envelope(other, Stage.IDENTIFY, 0, 0, OPERATOR, ANYONE, {"nonce": bytes(32)})
    with pytest.raises(ConsiliumError) as caught:
        site.answer(Stage.IDENTIFY, seal(request, made.signed.operator))
    assert caught.value.code == "CSL-131"


def test_a_site_refuses_a_study_whose_roster_holds_another_key_for_it() -> None:
    made = federation(4)
    site = SiteId("site-000")
    with pytest.raises(ConsiliumError) as caught:
        Site(
            made.signed.agreement,
            site,
            Identity.generate(),
            made.workloads[site],
            made.ledgers[site],
            verified=frozenset(made.sites),
        )
    assert caught.value.code == "CSL-122"


def test_a_site_whose_workload_breaks_says_unavailable_and_nothing_more() -> None:
    made = federation(6)
    broken = SiteId("site-003")

    def fail(*_: object) -> None:
        raise RuntimeError("patient 4711 has no label")

    made.workloads[broken].train = fail  # type: ignore[method-assign, assignment]
    errors: list[Message] = []
    outcome = made.run(tap=lambda message: errors.append(message) if message.has_error() else None)
    assert all(broken not in record.survivors for record in outcome.rounds)
    assert errors
    reasons = [str(message.error.reason) for message in errors]
    assert all("unavailable" in reason and "4711" not in reason for reason in reasons)
    assert not any("4711" in incident for incident in made.sites[broken].log.incidents)


@pytest.mark.parametrize(
    "damage",
    [
        lambda sealed: Sealed(sealed.header[:-1] + b"x", sealed.signature, sealed.parts),
        lambda sealed: Sealed(sealed.header, sealed.signature, {"nonce": bytes(31) + b"\x01"}),
        lambda sealed: Sealed(b"", sealed.signature, {}),
    ],
)
def test_a_damaged_request_is_refused(
    asked: tuple[Federation, Site, Envelope], damage: Callable[[Sealed], Sealed]
) -> None:
    made, site, request = asked
    with pytest.raises(ConsiliumError):
        site.answer(Stage.IDENTIFY, damage(seal(request, made.signed.operator)))
    assert site.log.egress == []
