"""Blocks of coordinates with contributors of their own: what a study may say, and what enters a sum (RULES 4)."""

from __future__ import annotations

import os

import numpy as np
import pytest
from numpy.typing import NDArray

from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg.encoding import Encoding
from common.study import Study
from tests.studies import fields

DIMENSION = 60
Fields = dict[str, object]


def block(name: str, start: int, stop: int, sites: list[int]) -> Fields:
    return {"name": name, "start": start, "stop": stop, "sites": [f"site-{i:03d}" for i in sites]}


def study(blocks: list[Fields], *, bits: int = 16, bands: list[int] | None = None) -> Study:
    raw, _, keys = fields(6, aggregation={"clamp": 1.0, "bits": bits, "blocks": blocks})
    raw["roster"] = [
        {"site": site, "key": identity.public_key.hex(), "band": bands[i] if bands else 100}
        for i, (site, identity) in enumerate(keys.items())
    ]
    return Study.from_fields(raw)


def sites(*numbers: int) -> list[SiteId]:
    return [SiteId(f"site-{i:03d}") for i in numbers]


EVERYBODY = sites(*range(6))
TWO = [block("low", 5, 20, [0, 1, 2, 3]), block("high", 20, 47, [2, 3, 4, 5])]


def summed(encoding: Encoding, inputs: dict[SiteId, NDArray[np.float32]]) -> NDArray[np.float64]:
    total = encoding.empty()
    for site, values in inputs.items():
        total += encoding.unpack(encoding.pack(encoding.encode(site, values, os.urandom)[0]))
    return np.asarray(encoding.decode(total, inputs), dtype=np.float64)


@pytest.mark.parametrize(
    ("blocks", "why"),
    [
        ([block("a", 3, 3, [0])], "start must be below stop"),
        ([block("a", 4, 3, [0])], "start must be below stop"),
        ([block("a", -1, 3, [0])], "greater than or equal to 0"),
        ([block("a", 0, 3, [])], "at least 1 item"),
        ([block("a", 0, 3, [1, 0])], "in order of their names"),
        ([block("a", 0, 3, [1, 1])], "each once"),
        ([block("a", 0, 3, [0, 99])], "not in the roster"),
        ([block("a", 0, 3, [0]), block("b", 2, 5, [0])], "may not overlap"),
        ([block("a", 5, 8, [0]), block("b", 0, 2, [0])], "in order of their coordinates"),
        ([block("a", 0, 3, [0]), block("a", 3, 5, [0])], "a name repeats"),
    ],
)
def test_a_study_refuses_blocks_that_make_no_sense(blocks: list[Fields], why: str) -> None:
    with pytest.raises(ConsiliumError, match=rf"CSL-102.*{why}"):
        study(blocks)


def test_a_study_with_blocks_is_read_back_from_its_canonical_bytes() -> None:
    made = study(TWO)
    assert Study.from_canonical(made.canonical()) == made
    assert made.digest != study([]).digest


def test_a_block_may_end_with_the_vector_and_not_after_it() -> None:
    made = study([block("a", 0, DIMENSION, [0, 1])])
    Encoding.vector(made, DIMENSION)
    with pytest.raises(ConsiliumError, match="CSL-408"):
        Encoding.vector(made, DIMENSION - 1)


@pytest.mark.parametrize("bits", [8, 12, 16, 20, 32])
def test_each_block_is_the_mean_of_its_contributors_within_rounding(bits: int) -> None:
    bands = [100, 10, 55, 100, 1, 70]
    encoding = Encoding.vector(study(TWO, bits=bits, bands=bands), DIMENSION)
    dice = np.random.default_rng(bits)
    there = sites(0, 1, 3, 4, 5)
    inputs = {site: dice.uniform(-0.05, 0.05, DIMENSION).astype(np.float32) for site in there}
    weights = dict(encoding.weights)
    # The inverse rotation gathers up to d coordinates, each off by a step a site: sqrt(d) steps a site at the most.
    slack = len(there) * encoding.step * np.sqrt(DIMENSION) + 1e-5
    mean = summed(encoding, inputs)
    for part, givers in (
        (slice(0, 5), there),
        (slice(5, 20), sites(0, 1, 3)),
        (slice(20, 47), sites(3, 4, 5)),
        (slice(47, DIMENSION), there),
    ):
        weight = sum(weights[site] for site in givers)
        exact = np.sum([weights[site] * inputs[site][part].astype(np.float64) for site in givers], axis=0) / weight
        assert np.abs(mean[part] - exact).max() <= slack / weight


def test_a_stranger_s_numbers_in_a_block_cannot_matter_not_even_if_they_are_no_numbers() -> None:
    encoding = Encoding.vector(study(TWO), DIMENSION)
    clean = np.full(DIMENSION, 0.01, dtype=np.float32)
    dirty = clean.copy()
    dirty[20:47] = np.nan  # Site 0 has no part in "high".
    seed = os.urandom(32)
    lanes, clamped = encoding.encode(EVERYBODY[0], dirty, lambda _: seed)
    assert (lanes == encoding.encode(EVERYBODY[0], clean, lambda _: seed)[0]).all()
    assert clamped == 0
    assert np.isnan(dirty[20:47]).all()  # The caller's vector is left alone.
    dirty[5] = np.nan
    with pytest.raises(ConsiliumError, match="CSL-408"):
        encoding.encode(EVERYBODY[0], dirty, os.urandom)


def test_a_block_is_left_out_for_too_few_contributors_in_the_cohort() -> None:
    encoding = Encoding.vector(study(TWO), DIMENSION)
    assert encoding.among(EVERYBODY, 4, 0.9) is encoding
    assert encoding.among(EVERYBODY, 5, 0.9).left_out == ("low", "high")
    assert encoding.among(sites(0, 1, 2, 3, 4), 4, 0.9).left_out == ("high",)
    assert encoding.among(sites(0, 1, 2, 3), 3, 0.9).left_out == ("high",)
    assert encoding.among([], 0, 0.9).left_out == ("low", "high")


def test_a_block_is_left_out_for_one_heavy_contributor() -> None:
    encoding = Encoding.vector(study(TWO, bands=[70, 10, 10, 10, 10, 10]), DIMENSION)
    assert encoding.among(EVERYBODY, 2, 0.71).left_out == ()
    assert encoding.among(EVERYBODY, 2, 0.69).left_out == ("low",)


def test_what_is_left_out_depends_on_the_cohort_alone() -> None:
    encoding = Encoding.vector(study(TWO), DIMENSION)
    fewer = encoding.among(sites(0, 1, 2, 3), 3, 0.9)
    assert fewer.among(EVERYBODY, 3, 0.9) == encoding
    assert fewer.among(sites(3, 2, 1, 0), 3, 0.9) is fewer
    names = {encoding.digest(), fewer.digest(), encoding.among(sites(2, 3, 4, 5), 3, 0.9).digest()}
    assert len(names) == 3


def test_a_block_left_out_is_exactly_zero_and_nobody_s_numbers_move_the_rest() -> None:
    encoding = Encoding.vector(study(TWO, bits=32), DIMENSION).among(sites(0, 1, 2, 3), 3, 0.9)
    inputs = {site: np.full(DIMENSION, 0.05, dtype=np.float32) for site in sites(0, 1, 2, 3)}
    for values in inputs.values():
        values[20:47] = 1e6
    mean = summed(encoding, inputs)
    assert (mean[20:47] == 0).all()
    assert np.delete(mean, np.s_[20:47]) == pytest.approx(0.05, abs=1e-6)


def test_losses_are_checked_for_the_blocks_that_are_in_the_sum() -> None:
    encoding = Encoding.vector(study(TWO), DIMENSION)
    encoding.check_survivors(EVERYBODY, 4, 0.9)
    with pytest.raises(ConsiliumError, match=r"CSL-404.*high"):
        encoding.check_survivors(sites(0, 1, 2, 3, 4), 4, 0.9)
    encoding.among(sites(0, 1, 2, 3, 4), 4, 0.9).check_survivors(sites(0, 1, 2, 3), 4, 0.9)
    heavy = Encoding.vector(study(TWO, bands=[70, 20, 20, 20, 20, 20]), DIMENSION)
    heavy.check_survivors(EVERYBODY, 2, 0.6)
    with pytest.raises(ConsiliumError, match=r"CSL-404.*too large a part of block low"):
        heavy.check_survivors(sites(0, 1, 4, 5), 2, 0.6)


def test_without_blocks_there_is_nothing_to_check() -> None:
    vectors, counts = Encoding.vector(study([]), 4), Encoding.counts(study(TWO), cells=2, maximum=9)
    for encoding in (vectors, counts):
        assert encoding.among([], 99, 0.01) is encoding
        encoding.check_survivors([], 99, 0.01)
