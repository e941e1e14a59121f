"""Neighbourhoods of simulated sites: their parameters hold what they promise, and whole sums come out right in them."""

from __future__ import annotations

import math
from random import Random

import numpy as np
import pytest

from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg import Encoding, Phase, Terms
from common.secagg.graph import Graph
from common.secagg.neighbours import circles, required
from tests.protocols import Parties, parties, set_up, take_sum, total
from tests.studies import signed_study

WEAK = {"corrupt": 0.2, "lost": 0.2, "privacy_bits": 5.0, "liveness_bits": 4.0}


@pytest.mark.parametrize(
    ("sites", "cheating", "degree"),
    [(100, False, 48), (100, True, 82), (1000, False, 140), (1000, True, 638)],
)
def test_the_degrees_for_a_fifth_corrupt_and_three_tenths_lost(sites: int, cheating: bool, degree: int) -> None:
    """Known: 81 and 638 against a cheating server (here degrees are even); 55 and 161, coarser, else."""
    assert required(sites, corrupt=0.2, lost=0.3, cheating=cheating).degree == degree


def tail(total: int, marked: int, drawn: int, least: int) -> float:
    """P(at least ``least`` of ``marked`` are drawn), in exact integers."""
    ways = sum(math.comb(marked, i) * math.comb(total - marked, drawn - i) for i in range(least, drawn + 1))
    return ways / math.comb(total, drawn)


@pytest.mark.parametrize("cheating", [False, True])
@pytest.mark.parametrize("sites", [40, 100, 150])
def test_the_bounds_hold_in_exact_arithmetic_and_a_smaller_degree_breaks_one(sites: int, cheating: bool) -> None:
    corrupt, lost = sites // 5, math.ceil(sites * 0.1)

    def holds(k: int, t: int) -> bool:
        read = tail(sites - 1, corrupt, k, max(0, 2 * t - k) if cheating else t)
        apart = math.comb(corrupt + lost, k) / math.comb(sites, k) * sites**2 / 2
        closed = tail(sites - 1, lost, k, k - t + 1)
        return sites * read <= 2**-40 and apart <= 2**-40 and sites * closed <= 2**-20

    found = required(sites, corrupt=0.2, lost=0.1, cheating=cheating)
    assert holds(found.degree, found.threshold)
    if found.degree < sites - 1:
        assert not any(holds(k, t) for k in range(2, found.degree, 2) for t in range(1, k + 1))


@pytest.mark.parametrize("cheating", [False, True])
def test_failures_that_can_be_observed_are_as_rare_as_promised(cheating: bool) -> None:
    """Weak bounds, 2**-5 and 2**-4, over 3,000 graphs: an honest implementation fails this with less than 1e-9."""
    sites, trials, dice = 60, 3000, Random(11)
    found = required(sites, **WEAK, cheating=cheating)
    read = closed = 0
    for _ in range(trials):
        graph = circles(sites, found.degree, dice.randbytes(32))
        corrupt = set(dice.sample(range(sites), sites // 5))
        lost = set(dice.sample(range(sites), sites // 5))
        bad = [len(corrupt.intersection(circle)) for circle in graph]
        away = [len(lost.intersection(circle)) for circle in graph]
        read += any(2 * found.threshold <= found.degree + x if cheating else x >= found.threshold for x in bad)
        closed += any(found.degree - y < found.threshold for y in away)
    for seen, bound in ((read, 2**-5), (closed, 2**-4)):
        assert seen <= trials * bound + 6 * math.sqrt(trials * bound)
    # And the bound is no idle one: a tenth of the neighbours fewer, and failures are seen.
    assert read + closed > 0


def test_more_is_asked_for_more() -> None:
    base = required(400, corrupt=0.1, lost=0.1, cheating=False).degree
    assert required(400, corrupt=0.2, lost=0.1, cheating=False).degree > base
    assert required(400, corrupt=0.1, lost=0.2, cheating=False).degree > base
    assert required(400, corrupt=0.1, lost=0.1, privacy_bits=80, cheating=False).degree > base
    assert required(400, corrupt=0.1, lost=0.1, liveness_bits=40, cheating=False).degree > base
    assert required(400, corrupt=0.1, lost=0.1, cheating=True).degree > base


def test_where_no_number_of_neighbours_is_enough_it_says_so() -> None:
    with pytest.raises(ConsiliumError, match="CSL-404"):
        required(20, corrupt=0.3, lost=0.45, cheating=True)


@pytest.mark.parametrize(("sites", "degree"), [(5, 2), (9, 4), (9, 8), (100, 36), (1000, 2)])
def test_circles_are_regular_and_mutual(sites: int, degree: int) -> None:
    graph = circles(sites, degree, b"s" * 32)
    for place, circle in enumerate(graph):
        assert len(circle) == degree
        assert list(circle) == sorted(set(circle) - {place})
        assert all(place in graph[other] for other in circle)
    assert graph == circles(sites, degree, b"s" * 32)
    if degree < sites - 1 and sites > 5:
        assert graph != circles(sites, degree, b"t" * 32)


def test_every_site_is_as_likely_a_neighbour_as_any_other() -> None:
    """False-alarm rate below 1e-6: the largest of 29 binomial deviations in 4,000 graphs, at 5.5 each."""
    trials = 4000
    counts = np.zeros(30)
    for seed in range(trials):
        counts[list(circles(30, 6, seed.to_bytes(32, "big"))[4])] += 1
    expected = trials * 6 / 29
    assert counts[4] == 0
    assert np.abs(np.delete(counts, 4) - expected).max() < 5.5 * math.sqrt(expected * (1 - 6 / 29))


def village(sites: int = 40, **wanted: object) -> Parties:
    return parties(sites, neighbourhoods={"corrupt": 0.05, "lost": 0.25, "privacy_bits": 10.0, **wanted})


def one_hot(made: Parties) -> tuple[Encoding, dict[SiteId, np.ndarray[tuple[int], np.dtype[np.int64]]]]:
    encoding = Encoding.counts(made.signed.study, cells=len(made.sites), maximum=7)
    return encoding, {site: 7 * np.eye(len(made.sites), dtype=np.int64)[at] for at, site in enumerate(made.names)}


@pytest.mark.parametrize("cheating", [False, True])
def test_sums_among_neighbours_are_right_with_and_without_losses(cheating: bool) -> None:
    made = village(cheating=cheating)
    degree = made.terms.degree(40)
    assert degree is not None
    assert degree < 39
    encoding, values = one_hot(made)
    set_up(made)
    for _ in range(2):
        assert take_sum(made, encoding, values).values.tolist() == total(values, made.names)
    lost = {Phase.INPUT: made.names[3:11:2], Phase.UNMASK: made.names[20:22]}
    summed = take_sum(made, encoding, values, lost)
    assert set(summed.survivors) == set(made.names) - set(lost[Phase.INPUT])
    assert summed.values.tolist() == total(values, summed.survivors)


def test_a_site_shares_with_its_neighbours_alone() -> None:
    made = village()
    set_up(made)
    epoch = made.server._epoch
    graph = Graph.of(made.terms, epoch.session, epoch.members)
    degree = made.terms.degree(40)
    for index, shared in epoch.prepares.items():
        assert len(shared.prepare.sealed) == degree
        assert set(made.sites[made.names[index]]._channels) == set(graph.circle(index))


def test_losses_that_leave_some_secret_closed_abort_and_give_no_sum() -> None:
    made = village()
    encoding, values = one_hot(made)
    set_up(made)
    epoch = made.server._epoch
    circle = Graph.of(made.terms, epoch.session, epoch.members).circle(0)
    threshold = made.terms.threshold(40)
    lost = [made.names[index] for index in circle[threshold - 1 :]]
    with pytest.raises(ConsiliumError, match="CSL-404"):
        take_sum(made, encoding, values, {Phase.INPUT: lost})


def test_a_deployment_has_no_neighbourhoods_and_many_sites_need_them() -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-102.*neighbourhoods are for simulations"):
        signed_study(4, kind="deployment", neighbourhoods={})
    with pytest.raises(ConsiliumError, match=r"CSL-102.*more than 255 sites"):
        signed_study(256)


def test_a_stranger_among_the_peers_is_refused_in_a_neighbourhood() -> None:
    made = village()
    terms = Terms.from_study(made.signed.study)
    with pytest.raises(ConsiliumError, match=r"CSL-404.*verified"):
        terms.check_own(made.names[0], set(made.names[:-1]), made.names, made.names)
