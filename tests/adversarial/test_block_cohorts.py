"""A block of coordinates to which few contribute: one rank-8 site among rank-2 sites (RULES 4)."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg import Encoding, Phase
from common.secagg.terms import Terms
from tests.protocols import Losses, Parties, parties, set_up, take_sum

RANK_2, RANK_8 = 10, 40
"""Coordinates of ranks 1 and 2, which everybody has, and of all ranks."""
Vectors = dict[SiteId, NDArray[np.float32]]


def consortium(sites: int, large: int, *, beyond: int = RANK_2) -> tuple[Parties, Encoding, Vectors]:
    """Return sites of which the first ``large`` alone have the ranks above 2, and everybody's numbers."""
    names = [f"site-{at:03d}" for at in range(sites)]
    block = {"name": "ranks-3-to-8", "start": beyond, "stop": RANK_8, "sites": names[:large]}
    made = parties(sites, aggregation={"clamp": 1.0, "bits": 32, "blocks": [block]})
    dice = np.random.default_rng(sites)
    values = {site: dice.uniform(-0.1, 0.1, RANK_8).astype(np.float32) for site in made.names}
    return made, Encoding.vector(made.signed.study, RANK_8), values


def opened(made: Parties, encoding: Encoding, values: Vectors, lost: Losses | None = None) -> NDArray[np.float64]:
    set_up(made)
    return np.asarray(take_sum(made, encoding, values, lost or {}).values, dtype=np.float64)


def test_what_one_site_alone_has_is_not_in_the_sum() -> None:
    made, encoding, values = consortium(6, 1)
    mean = opened(made, encoding, values)
    assert (mean[RANK_2:] == 0).all()
    everybody = np.mean([values[site] for site in made.names], axis=0)
    assert mean[:RANK_2] == pytest.approx(everybody[:RANK_2], abs=1e-5)


def test_without_the_rule_the_one_site_s_numbers_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Terms, "contributors_needed", property(lambda _: 1))
    monkeypatch.setattr(Terms, "check_own", lambda *_: None)
    monkeypatch.setattr(Encoding, "among", lambda self, *_: self)
    monkeypatch.setattr(Encoding, "check_survivors", lambda *_: None)
    made, encoding, values = consortium(6, 1)
    mean = opened(made, encoding, values)
    assert mean[RANK_2:] == pytest.approx(values[made.names[0]][RANK_2:], abs=1e-4)


def test_a_block_to_which_enough_contribute_is_their_mean() -> None:
    made, encoding, values = consortium(8, 6)
    mean = opened(made, encoding, values)
    theirs = np.mean([values[site] for site in made.names[:6]], axis=0)
    assert mean[RANK_2:] == pytest.approx(theirs[RANK_2:], abs=1e-5)
    everybody = np.mean([values[site] for site in made.names], axis=0)
    assert mean[:RANK_2] == pytest.approx(everybody[:RANK_2], abs=1e-5)


def test_what_a_site_sends_in_a_block_that_is_not_its_own_does_not_matter() -> None:
    made, encoding, values = consortium(8, 6)
    values[made.names[7]][RANK_2:] = 1e6
    mean = opened(made, encoding, values)
    assert np.abs(mean).max() < 0.1


def test_losses_that_leave_too_few_contributors_abort_and_the_next_cohort_leaves_the_block_out() -> None:
    made, encoding, values = consortium(8, 5)
    gone = made.names[:1]
    set_up(made)
    with pytest.raises(ConsiliumError, match=r"CSL-404.*ranks-3-to-8"):
        take_sum(made, encoding, values, {Phase.INPUT: gone})
    made.renew()
    rest = made.names[1:]
    set_up(made, online=rest)
    mean = np.asarray(take_sum(made, encoding, values).values)
    assert (mean[RANK_2:] == 0).all()
    assert mean[:RANK_2] == pytest.approx(np.mean([values[site] for site in rest], axis=0)[:RANK_2], abs=1e-5)


def test_a_site_refuses_to_unmask_a_block_that_a_cheating_server_keeps_in(monkeypatch: pytest.MonkeyPatch) -> None:
    made, encoding, values = consortium(8, 5)
    set_up(made)
    honest = Encoding.check_survivors
    asked: list[int] = []

    def server_looks_away(self: Encoding, survivors: object, needed: int, share: float) -> None:
        asked.append(1)
        if len(asked) > 8:  # The first eight are the sites' own, when they open the sum; the next is the server's.
            monkeypatch.setattr(Encoding, "check_survivors", honest)
            return
        honest(self, survivors, needed, share)  # type: ignore[arg-type]

    monkeypatch.setattr(Encoding, "check_survivors", server_looks_away)
    with pytest.raises(ConsiliumError, match=r"CSL-404.*ranks-3-to-8"):
        take_sum(made, encoding, values, {Phase.INPUT: made.names[:1]})
    assert made.server.phase is Phase.VIEW


def test_blocks_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-408.*ends at 40 of 30"):
        Encoding.vector(consortium(6, 4)[0].signed.study, 30)
    with pytest.raises(ConsiliumError, match=r"CSL-102.*start must be below stop"):
        consortium(6, 4, beyond=RANK_8)
    with pytest.raises(ConsiliumError, match=r"CSL-102.*not in the roster"):
        parties(4, aggregation={"clamp": 1.0, "blocks": [{"name": "x", "start": 0, "stop": 1, "sites": ["nobody"]}]})
