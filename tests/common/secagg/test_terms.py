"""Thresholds that no message can change, exhausted for every roster and cohort up to fifteen."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from common.errors import ConsiliumError
from common.identity import PublicKey, SiteId
from common.secagg.terms import Terms
from tests.protocols import parties, relay
from tests.studies import signed_study

MOST = 15
SIZES = [(roster, cohort) for roster in range(2, MOST + 1) for cohort in range(1, roster + 1)]


def terms_of(roster: int, **changes: object) -> Terms:
    sites = tuple(SiteId(f"site-{i:03d}") for i in range(roster))
    plain = Terms(bytes(32), sites, dict.fromkeys(sites, PublicKey(bytes(32))), dict.fromkeys(sites, 1), 3, 0.9)
    return replace(plain, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("roster", "cohort", "threshold", "needed"),
    [
        (4, 4, 3, 4),
        (5, 5, 4, 4),
        (5, 4, 3, 4),
        (6, 6, 5, 5),
        (6, 4, 4, 5),
        (7, 7, 5, 5),
        (8, 8, 6, 6),
        (9, 9, 7, 7),
        (10, 10, 7, 7),
        (12, 12, 9, 9),
        (15, 15, 11, 11),
        (15, 10, 8, 8),
        (20, 20, 14, 14),
        (100, 100, 67, 67),
        (255, 255, 171, 171),
    ],
)
def test_thresholds_are_these(roster: int, cohort: int, threshold: int, needed: int) -> None:
    terms = terms_of(roster)
    assert (terms.threshold(cohort), terms.survivors_needed(cohort)) == (threshold, needed)


def test_thresholds_follow_the_roster_and_not_the_cohort() -> None:
    for roster, cohort in SIZES:
        terms = terms_of(roster)
        assert terms.tolerated == roster // 3
        assert terms.threshold(cohort) == max(2 * cohort // 3, (cohort + roster // 3) // 2) + 1


def test_two_quorums_always_share_an_honest_site() -> None:
    for roster, cohort in SIZES:
        terms = terms_of(roster)
        assert 2 * terms.threshold(cohort) - cohort > terms.tolerated, (roster, cohort)


def test_the_threshold_is_above_two_thirds_of_the_cohort() -> None:
    for roster, cohort in SIZES:
        assert 3 * terms_of(roster).threshold(cohort) > 2 * cohort, (roster, cohort)


def test_colluders_alone_never_open_a_share() -> None:
    for roster, cohort in SIZES:
        terms = terms_of(roster)
        assert terms.threshold(cohort) > min(cohort, terms.tolerated), (roster, cohort)


def test_every_sum_hides_each_honest_site_behind_two_others_whoever_colludes() -> None:
    for roster, cohort in SIZES:
        terms = terms_of(roster)
        assert terms.survivors_needed(cohort) - terms.tolerated >= 3, (roster, cohort)


def test_the_server_waits_for_no_sum_that_a_site_would_refuse() -> None:
    for roster, cohort in SIZES:
        terms = terms_of(roster)
        everyone = terms.roster[:cohort]
        for size in range(1, cohort + 1):
            survivors = everyone[:size]
            try:
                terms.check_survivors(survivors, everyone)
            except ConsiliumError:
                continue
            for site in survivors:
                terms.check_own(site, terms.roster, survivors, everyone)


def test_a_full_roster_of_four_or_more_can_take_a_sum_and_a_smaller_one_cannot() -> None:
    for roster in range(1, MOST + 1):
        terms = terms_of(roster, minimum_cohort=2)
        if roster >= 4:
            terms.check_cohort(terms.roster)
        else:
            with pytest.raises(ConsiliumError, match="CSL-404"):
                terms.check_cohort(terms.roster)


def test_a_shrunken_cohort_does_not_lower_what_two_colluders_of_six_must_overcome() -> None:
    terms = terms_of(6)
    with pytest.raises(ConsiliumError, match="CSL-404"):
        terms.check_cohort(terms.roster[:4])


def test_the_study_s_minimum_counts_where_it_is_larger() -> None:
    terms = terms_of(5, minimum_cohort=5)
    assert terms.survivors_needed(5) == 5
    with pytest.raises(ConsiliumError, match="CSL-404"):
        terms.check_survivors(terms.roster[:4], terms.roster)


def test_a_survivor_from_outside_the_cohort_is_refused() -> None:
    terms = terms_of(6)
    with pytest.raises(ConsiliumError, match="CSL-406"):
        terms.check_survivors(terms.roster, terms.roster[:5])


def test_no_survivor_is_more_than_its_share_of_the_sum() -> None:
    terms = terms_of(5, max_share=0.5)
    at_most = replace(terms, bands={**terms.bands, terms.roster[0]: 4})
    at_most.check_survivors(terms.roster, terms.roster)
    too_much = replace(terms, bands={**terms.bands, terms.roster[0]: 5})
    with pytest.raises(ConsiliumError, match="CSL-404"):
        too_much.check_survivors(terms.roster, terms.roster)
    # The same bands are too much as soon as one of the small sites is lost.
    with pytest.raises(ConsiliumError, match="CSL-404"):
        at_most.check_survivors(terms.roster[:4], terms.roster)


@pytest.mark.parametrize(("roster", "unverified", "accepted"), [(6, 2, True), (6, 3, True), (6, 4, False)])
def test_unverified_peers_count_as_colluders(roster: int, unverified: int, accepted: bool) -> None:
    terms = terms_of(roster)
    site, verified = terms.roster[0], terms.roster[: roster - unverified]
    if accepted:
        terms.check_own(site, verified, terms.roster, terms.roster)
    else:
        with pytest.raises(ConsiliumError, match="CSL-404"):
            terms.check_own(site, verified, terms.roster, terms.roster)


def test_a_site_takes_part_only_beside_two_honest_verified_peers_whatever_was_invented() -> None:
    for roster in range(4, 11):
        terms = terms_of(roster)
        site = terms.roster[0]
        for invented in range(roster):
            verified = terms.roster[: roster - invented]
            for size in range(1, roster + 1):
                survivors = terms.roster[:size]
                try:
                    terms.check_own(site, verified, survivors, terms.roster)
                except ConsiliumError:
                    continue
                colluders = max(terms.tolerated, invented)
                assert 2 * terms.threshold(roster) - roster > colluders
                honest = len(set(survivors) & set(verified)) - 1 - max(0, terms.tolerated - invented)
                assert honest >= 2, (roster, invented, size)


def test_a_site_can_ever_take_part_exactly_where_some_cohort_lets_it() -> None:
    for roster in range(3, 9):
        terms = terms_of(roster)
        site, *peers = terms.roster
        for known in range(roster):
            verified = peers[:known]

            def allowed(cohort: tuple[SiteId, ...], verified: list[SiteId] = verified, terms: Terms = terms) -> bool:
                try:
                    terms.check_cohort(cohort)
                    terms.check_own(cohort[0], verified, cohort, cohort)
                except ConsiliumError:
                    return False
                return True

            cohorts = [(site, *others) for size in range(roster) for others in combinations(peers, size)]
            if any(allowed(cohort) for cohort in cohorts):
                terms.check_reachable(site, verified)
            else:
                with pytest.raises(ConsiliumError, match="CSL-404"):
                    terms.check_reachable(site, verified)


def test_a_site_is_its_own_verified_peer_for_nothing() -> None:
    terms = terms_of(4)
    with pytest.raises(ConsiliumError, match="CSL-404"):
        terms.check_own(terms.roster[0], terms.roster[:1], terms.roster, terms.roster)


def test_terms_are_read_from_the_study_alone() -> None:
    signed = signed_study(5)
    terms = Terms.from_study(signed.study)
    assert terms.roster == tuple(sorted(signed.sites))
    assert terms.study.hex() == signed.study.digest
    assert all(terms.keys[site] == identity.public_key for site, identity in signed.sites.items())
    assert [terms.index(site) for site in terms.roster] == list(range(5))
    with pytest.raises(ConsiliumError, match="CSL-122"):
        terms.index(SiteId("stranger"))


@pytest.mark.parametrize(("verified", "accepted"), [(3, True), (2, False)])
def test_a_session_refuses_to_prepare_among_too_many_strangers(verified: int, accepted: bool) -> None:
    made = parties(6, verified=verified)
    made.server.open_epoch(made.names)
    relay(made)
    site = made.sites[made.names[0]]
    if accepted:
        site.prepare(made.server.requests()[made.names[0]])
    else:
        with pytest.raises(ConsiliumError, match="CSL-404"):
            site.prepare(made.server.requests()[made.names[0]])
