"""Split views exhausted: whoever is told what, nobody collects t shares of both secrets of one honest site."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ConsiliumError
from common.identity import PublicKey, SiteId
from common.secagg.terms import Terms

Counts = NDArray[np.int64]


def terms_of(roster: int) -> Terms:
    sites = tuple(SiteId(f"site-{i:03d}") for i in range(roster))
    return Terms(bytes(32), sites, dict.fromkeys(sites, PublicKey(bytes(32))), dict.fromkeys(sites, 1), 3, 0.9)


def sizes(most: int) -> Iterator[tuple[Terms, int, int]]:
    """Yield every roster's terms, cohort from which a sum can be opened, and number of colluders."""
    for roster in range(4, most + 1):
        terms = terms_of(roster)
        for cohort in range(1, roster + 1):
            try:
                terms.check_cohort(terms.roster[:cohort])
            except ConsiliumError:
                continue
            for colluders in range(min(terms.tolerated, cohort - 1) + 1):
                yield terms, cohort, colluders


def ones(values: Counts) -> Counts:
    """Count the bits of each number."""
    return np.bitwise_count(values).astype(np.int64)


def told_anything(cohort: int, colluders: int, threshold: int) -> bool:
    """Say whether both secrets of one honest site open, if honest sites reveal either kind, as the server pleases.

    All 2**honest ways, with no regard for views, quorums or the least number of survivors: more than a server can do.
    """
    honest = cohort - colluders
    seeds = ones(np.arange(1 << honest))
    return bool(np.any((seeds + colluders >= threshold) & (honest - seeds + colluders >= threshold)))


@pytest.mark.parametrize("most", [10, pytest.param(15, marks=pytest.mark.slow)])
def test_no_division_of_the_honest_sites_opens_both_secrets_of_one(most: int) -> None:
    tried = 0
    for terms, cohort, colluders in sizes(most):
        assert not told_anything(cohort, colluders, terms.threshold(cohort)), (terms.roster, cohort, colluders)
        tried += 1
    assert tried > 30


def test_one_share_fewer_and_some_division_opens_both() -> None:
    broken = [
        (len(terms.roster), cohort, colluders)
        for terms, cohort, colluders in sizes(10)
        if told_anything(cohort, colluders, terms.threshold(cohort) - 1)
    ]
    assert {(6, 6, 2), (9, 9, 3)} <= set(broken)


def test_one_colluder_more_than_tolerated_and_some_division_opens_both() -> None:
    assert any(
        told_anything(cohort, terms.tolerated + 1, terms.threshold(cohort))
        for terms, cohort, colluders in sizes(10)
        if colluders == terms.tolerated
    )


def two_stories(terms: Terms, cohort: int, colluders: int, threshold: int) -> str:
    """Tell honest sites one of two survivor lists each, in every way, under the protocol's own rules.

    A list is refused that lacks the site itself or is too short; any list but the whole cohort needs ``threshold``
    signatures of its survivors; colluders sign everything and hold both kinds of share of everyone.
    Returns what went wrong: a site of which both secrets open, or two lists whose sums both open.
    """
    honest, everyone = cohort - colluders, (1 << cohort) - 1
    honest_mask = (1 << honest) - 1
    needed = max(threshold, terms.tolerated + 3, terms.minimum_cohort)
    lists = [told for told in range(1 << cohort) if told.bit_count() >= needed]
    divisions = np.arange(1 << honest)
    for first, second in product(lists, repeat=2):
        if first <= second:
            continue
        answering = []
        for told, group in ((first, divisions & first), (second, ~divisions & honest_mask & second)):
            signed = ones(group) + (told & ~honest_mask).bit_count()
            answering.append(np.where((told == everyone) | (signed >= threshold), ones(group), 0))
        for victim in range(honest):
            seeds, masks = np.full((2, len(divisions)), colluders)
            for told, answers in zip((first, second), answering, strict=True):
                if told >> victim & 1:
                    seeds += answers
                else:
                    masks += answers
            if np.any((seeds >= threshold) & (masks >= threshold)):
                return f"both secrets of site {victim}: told {first:b} and {second:b}"
        if np.any((answering[0] + colluders >= threshold) & (answering[1] + colluders >= threshold)):
            return f"two sums: told {first:b} and {second:b}"
    return ""


@pytest.mark.parametrize("most", [7, pytest.param(10, marks=pytest.mark.slow)])
def test_no_two_stories_about_the_survivors_open_both_secrets_or_two_sums(most: int) -> None:
    for terms, cohort, colluders in sizes(most):
        assert two_stories(terms, cohort, colluders, terms.threshold(cohort)) == "", (terms.roster, cohort, colluders)


def test_one_share_fewer_and_two_stories_do() -> None:
    told = [two_stories(*size, size[0].threshold(size[1]) - 1) for size in sizes(7)]
    assert any(story.startswith("both secrets") for story in told)
