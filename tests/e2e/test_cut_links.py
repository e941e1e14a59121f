"""Links are cut in the middle of what they carry, and the study comes to its end all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulations.network.processes import free_port
from tests.e2e.network import BIG, names_of, network, until
from tests.e2e.proxies import Passage, Relay, Rule

VICTIM = names_of(5)[2]


def vector_comes(way: str, passage: Passage) -> bool:
    """Cut while the request's vector is on its way to the site."""
    return way == "down" and passage.down > BIG


def update_goes(way: str, passage: Passage) -> bool:
    """Cut while the masked update is on its way to the operator."""
    return way == "up" and passage.up > BIG


def update_is_there(way: str, passage: Passage) -> bool:
    """Cut when the operator has the masked update and the site does not know it yet: the worst moment."""
    return way == "down" and passage.up > BIG


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param(vector_comes, marks=pytest.mark.slow),
        pytest.param(update_goes, marks=pytest.mark.slow),
        update_is_there,
    ],
)
def test_a_site_whose_link_is_cut_is_neither_lost_nor_charged_twice(tmp_path: Path, rule: Rule) -> None:
    port = free_port()
    with (
        Relay(port) as relay,
        network(tmp_path, rounds=2, port=port, through={VICTIM: relay.address}) as net,
    ):
        relay.cut_when(rule)
        net.start()
        until(lambda: relay.cuts == 1, "a cut")
        until(lambda: "CSL-642" in net.codes(VICTIM), "the site's word for a link that is down")
        relay.mend()
        net.finish()
        net.end()
        net.check_release()
        assert all(record.survivors == tuple(net.sites) for record in net.rounds())
        assert all(len(net.charges(site)) == 2 + 1 for site in net.sites)


def test_a_study_whose_links_are_all_cut_at_once_goes_on_when_they_are_back(tmp_path: Path) -> None:
    port = free_port()
    with Relay(port) as relay:
        through = dict.fromkeys(names_of(5), relay.address)
        with network(tmp_path, rounds=2, port=port, through=through) as net:
            relay.cut_when(update_goes)
            net.start()
            until(lambda: relay.cuts == 1, "a cut")
            for site in net.sites:
                until(lambda: "CSL-642" in net.codes(site), "a site's word for a link that is down")  # noqa: B023
            relay.mend()
            net.finish()
            net.end()
            net.check_release()
