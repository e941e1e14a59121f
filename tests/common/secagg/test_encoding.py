"""What goes in comes out: sums of encoded vectors against clamped inputs, and what is refused instead of wrapping."""

from __future__ import annotations

import os
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.errors import ConsiliumError
from common.identity import SiteId
from common.secagg.encoding import Encoding
from common.secagg.rotation import rotate, unrotate
from common.study import Aggregation, Study
from tests.studies import fields

BITS = (8, 12, 16, 20, 32)
DIMENSIONS = (1, 2, 3, 5, 100, 1000)
CLAMP = 1.0


def study(sites: int, *, bits: int = 16, clamp: float = CLAMP, bands: list[int] | None = None) -> Study:
    raw, _, keys = fields(sites, aggregation={"clamp": clamp, "minimum_cohort": 2, "bits": bits})
    raw["roster"] = [
        {"site": site, "key": identity.public_key.hex(), "band": bands[i] if bands else 100}
        for i, (site, identity) in enumerate(keys.items())
    ]
    return Study.from_fields(raw)


def names(encoding: Encoding) -> list[SiteId]:
    return [site for site, _ in encoding.weights]


def summed(encoding: Encoding, inputs: dict[SiteId, NDArray[np.float32]]) -> NDArray[np.float64] | NDArray[np.int64]:
    """Encode, pack, unpack, add and decode, as a round does, without masks."""
    total = encoding.empty()
    for site, values in inputs.items():
        lanes, _ = encoding.encode(site, values, os.urandom)
        total += encoding.unpack(encoding.pack(lanes))
    return encoding.decode(total, inputs)


def largest_error(encoding: Encoding, inputs: dict[SiteId, NDArray[np.float32]]) -> tuple[float, float]:
    """Return the largest error of a rotated coordinate and its bound, which the module states."""
    weights = dict(encoding.weights)
    total = sum(weights[site] for site in inputs)
    exact = np.sum([weights[site] / total * encoding.clamped(values) for site, values in inputs.items()], axis=0)
    error = rotate(np.asarray(summed(encoding, inputs), dtype=np.float64) - exact, encoding.stream)
    # Up to 16 bits, float32 arithmetic adds at most a few parts in 2**23 of the clamp; beyond, none worth naming.
    arithmetic = 1e-5 * encoding.bound if encoding.bits <= 16 else 1e-9 * encoding.bound
    return float(np.abs(error).max()), len(inputs) * encoding.step / total + arithmetic


def test_these_are_all_widths_there_are() -> None:
    assert get_args(Aggregation.model_fields["bits"].annotation) == BITS


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_a_sum_is_the_mean_of_the_clamped_inputs_within_rounding(bits: int, dimension: int) -> None:
    encoding = Encoding.vector(study(5, bits=bits, bands=[100, 10, 55, 100, 1]), dimension)
    generator = np.random.default_rng(bits * 1000 + dimension)
    # Some coordinates lie beyond the clamp.
    inputs = {site: generator.normal(0, 0.7, dimension).astype(np.float32) for site in names(encoding)[1:]}
    error, bound = largest_error(encoding, inputs)
    assert error <= bound


@pytest.mark.parametrize("bits", BITS)
def test_sums_are_right_at_every_length(bits: int) -> None:
    made = study(4, bits=bits, bands=[100, 10, 55, 1])
    for dimension in (*range(1, 301), 32_767, 32_769, 100_003):
        encoding = Encoding.vector(made, dimension)
        generator = np.random.default_rng(dimension)
        inputs = {site: generator.normal(0, 0.5, dimension).astype(np.float32) for site in names(encoding)}
        error, bound = largest_error(encoding, inputs)
        assert error <= bound, dimension


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from(BITS),
    dimension=st.sampled_from((1, 2, 3, 5, 100)),
    bands=st.lists(st.integers(1, 10_000), min_size=3, max_size=9),
    scale=st.floats(1e-6, 1e6),
    clamp=st.floats(1e-3, 1e3),
    seed=st.integers(0, 2**32),
)
def test_sums_are_right_for_any_bands_and_scales(
    bits: int, dimension: int, bands: list[int], scale: float, clamp: float, seed: int
) -> None:
    encoding = Encoding.vector(study(len(bands), bits=bits, clamp=clamp, bands=bands), dimension)
    generator = np.random.default_rng(seed)
    inputs = {site: (generator.normal(0, 1, dimension) * scale).astype(np.float32) for site in names(encoding)}
    error, bound = largest_error(encoding, inputs)
    if scale < 100 * clamp:
        assert error <= bound
    else:
        # Far beyond the clamp, float32 may put a coordinate that nearly cancels on either side of it.
        assert error <= 2 * clamp + bound


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("sites", [3, 4, 7, 60])
def test_all_sites_at_the_clamp_never_wrap(bits: int, sign: float, sites: int) -> None:
    for clamp in (1.0, 0.1, 0.3, 1e-4, 7e5):
        encoding = Encoding.vector(study(sites, bits=bits, clamp=clamp), 1)
        inputs = {site: np.array([sign * 10 * clamp], dtype=np.float32) for site in names(encoding)}
        # A wrapped sum would have the other sign. In one dimension the rotation is a sign.
        decoded = summed(encoding, inputs)
        expected = encoding.clamped(inputs[names(encoding)[0]])
        assert abs(expected[0]) == pytest.approx(clamp)
        assert abs(decoded[0] - expected[0]) <= sites * encoding.step / sites + 1e-6 * clamp, clamp


@pytest.mark.parametrize("bits", BITS)
def test_the_proof_of_no_overflow_holds_in_exact_numbers(bits: int) -> None:
    for bands in ([1, 1, 1], [100_000_000, 1, 1, 1], [3, 7, 11, 13, 17], [1] * 60):
        encoding = Encoding.vector(study(len(bands), bits=bits, bands=bands), 4)
        largest = sum(weight * encoding.bound / encoding.step + 1 for _, weight in encoding.weights)
        assert largest < 2 ** (bits - 1)


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 7, 8, 100, 127, 129, 1023])
def test_the_rotation_is_orthonormal_and_undone(length: int) -> None:
    stream = "5a" * 32
    matrix = np.stack([rotate(row, stream) for row in np.eye(length, dtype=np.float64)])
    assert np.allclose(matrix @ matrix.T, np.eye(length), atol=1e-12)
    values = np.random.default_rng(length).normal(size=length)
    rotated = np.asarray(rotate(values, stream), dtype=np.float64)
    assert np.allclose(unrotate(rotated, stream), values, atol=1e-12)
    # No coordinate stays large, and most reach each other (some paths cancel), whatever the length.
    assert np.abs(matrix).max() * np.sqrt(length) < 6
    assert (np.abs(matrix) > 0).mean() > 0.5


@pytest.mark.parametrize("length", [1000, 1023, 1024, 1025, 1536])
def test_the_rotation_spreads_every_corner_over_the_whole_vector(length: int) -> None:
    """Also from the tail, whose slab reaches the others through one matrix of entries up to sqrt(2 / side)."""
    for place in (0, length // 2, length - 1):
        values = np.zeros(length)
        values[place] = 1.0
        rotated = np.asarray(rotate(values, "5a" * 32), dtype=np.float64)
        assert np.abs(rotated).max() < 8.0 / np.sqrt(length)
        quarters = np.array([np.sum(part**2) for part in np.array_split(rotated, 4)])
        assert quarters == pytest.approx(0.25, abs=0.18)


def test_the_rotation_spreads_a_lonely_coordinate() -> None:
    values = np.zeros(1000)
    values[17] = 1.0
    assert np.abs(rotate(values, "5a" * 32)).max() < 0.2


def test_the_rotation_leaves_its_input_alone() -> None:
    values = np.ones(5)
    rotate(values, "5a" * 32)
    assert (values == 1).all()


@settings(max_examples=60, deadline=None)
@given(bits=st.sampled_from(BITS), dimension=st.integers(1, 70), seed=st.integers(0, 2**32))
def test_what_is_packed_is_unpacked(bits: int, dimension: int, seed: int) -> None:
    encoding = Encoding.vector(study(3, bits=bits), dimension)
    lanes = encoding.empty()
    lanes[:] = np.random.default_rng(seed).integers(0, 1 << bits, dimension, dtype=np.uint64).astype(lanes.dtype)
    packed = encoding.pack(lanes)
    assert len(packed) == encoding.packed_bytes == -(-dimension * bits // 8)
    unpacked = encoding.unpack(packed)
    assert unpacked.dtype == lanes.dtype
    assert (unpacked == lanes).all()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("change", [-1, 1, 100])
def test_bytes_of_another_length_are_refused(bits: int, change: int) -> None:
    encoding = Encoding.vector(study(3, bits=bits), 11)
    with pytest.raises(ConsiliumError, match="CSL-401"):
        encoding.unpack(bytes(encoding.packed_bytes + change))


def test_a_modulus_that_is_too_small_for_the_roster_is_refused() -> None:
    Encoding.vector(study(63, bits=8), 4)
    with pytest.raises(ConsiliumError, match="CSL-409"):
        Encoding.vector(study(64, bits=8), 4)


def test_counts_that_could_overflow_are_refused() -> None:
    four = study(4)
    Encoding.counts(four, cells=1, maximum=2**60)
    for maximum in (2**61, 2**61 - 1, 2**80):  # The middle one is 2**61 as the float that bounds it.
        with pytest.raises(ConsiliumError, match="CSL-409"):
            Encoding.counts(four, cells=1, maximum=maximum)
    with pytest.raises(ConsiliumError, match="CSL-409"):
        Encoding.counts(four, cells=0, maximum=1)
    with pytest.raises(ConsiliumError, match="CSL-409"):
        Encoding.vector(four, 0)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("dimension", [1, 3, 8, 100])
def test_a_value_that_is_not_finite_is_refused(bits: int, bad: float, dimension: int) -> None:
    encoding = Encoding.vector(study(3, bits=bits), dimension)
    for place in {0, dimension // 2, dimension - 1}:
        values = np.zeros(dimension, dtype=np.float32 if bad != 1e39 else np.float64)
        values[place] = bad
        if bad == 1e39 and bits > 16:
            _, clamped = encoding.encode(names(encoding)[0], values, os.urandom)
            assert clamped > 0  # Twice the precision holds it, and the clamp catches it.
            continue
        with pytest.raises(ConsiliumError, match="CSL-408"):
            encoding.encode(names(encoding)[0], values, os.urandom)


@pytest.mark.parametrize("bits", BITS)
def test_values_that_overflow_in_the_rotation_are_refused_and_never_encoded_as_nothing(bits: int) -> None:
    encoding = Encoding.vector(study(3, bits=bits), 8)
    values = np.full(8, np.finfo(np.float32 if bits <= 16 else np.float64).max)
    with pytest.raises(ConsiliumError, match="CSL-408"):
        encoding.encode(names(encoding)[0], values, os.urandom)


@pytest.mark.parametrize("shape", [(0,), (4,), (6,), (5, 1), (1, 5), ()])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    for encoding in (Encoding.vector(study(3), 5), Encoding.counts(study(3), cells=5, maximum=9)):
        with pytest.raises(ConsiliumError, match="CSL-408"):
            encoding.encode(names(encoding)[0], np.zeros(shape, dtype=np.int64), os.urandom)


@pytest.mark.parametrize("value", [11, -11, 2**62, -(2**63)])
def test_a_count_out_of_range_is_refused(value: int) -> None:
    encoding = Encoding.counts(study(3), cells=2, maximum=10)
    with pytest.raises(ConsiliumError, match="CSL-408"):
        encoding.encode(names(encoding)[0], np.array([0, value]), os.urandom)


def test_counts_are_integers() -> None:
    encoding = Encoding.counts(study(3), cells=2, maximum=10)
    for values in (np.array([1.0, 2.0]), np.array([True, False])):
        with pytest.raises(ConsiliumError, match="CSL-408"):
            encoding.encode(names(encoding)[0], values, os.urandom)
    with pytest.raises(ConsiliumError, match="CSL-408"):
        encoding.encode(names(encoding)[0], np.array([2**64 - 1, 0], dtype=np.uint64), os.urandom)


@given(st.lists(st.tuples(*[st.integers(-(10**6), 10**6)] * 3), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_counts_add_up_exactly(cells: list[tuple[int, int, int]]) -> None:
    encoding = Encoding.counts(study(6), cells=3, maximum=10**6)
    total = encoding.empty()
    for site, row in zip(names(encoding), cells, strict=False):
        lanes, _ = encoding.encode(site, np.array(row), os.urandom)
        total += encoding.unpack(encoding.pack(lanes))
    assert encoding.decode(total, names(encoding)[: len(cells)]).tolist() == np.sum(cells, axis=0).tolist()


@pytest.mark.parametrize("bits", BITS)
def test_rounding_has_no_bias(bits: int) -> None:
    # A coordinate at 0.3 of a grid cell: 20,000 roundings. The mean's deviation is below 5 standard errors but for a
    # false alarm of 6e-7 a width.
    encoding = Encoding.vector(study(3, bits=bits), 1)
    site = names(encoding)[0]
    exact = 5.3 * encoding.step
    draws = 20_000
    one = Encoding.vector(study(3, bits=bits), draws)
    rotated = unrotate(np.full(draws, exact), one.stream)
    lanes, _ = one.encode(site, rotated, os.urandom)
    values = lanes.astype(np.float64)
    assert set(np.unique(values)) <= {5.0, 6.0}
    assert abs(values.mean() - 5.3) <= 5 * np.sqrt(0.3 * 0.7 / draws) + 1e-3


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("share", [0.93, -0.93, 0.41, -1e-4])
def test_rounding_has_no_bias_near_the_bound_either(bits: int, share: float) -> None:
    """Where float32 is as coarse as 2**-9 of a step, adding a uniform in float32 would lean by as much."""
    draws = 4_000_000
    encoding = Encoding.vector(study(3, bits=bits), draws)
    kind = np.float32 if bits <= 16 else np.float64
    fraction = 16 if bits <= 16 else 32
    value = kind(share * encoding.bound)
    lanes, clamped = encoding._rounded(np.full(draws, value), 1 / encoding.step, os.urandom)
    exact = np.rint(value * kind(2.0**fraction / encoding.step)) / 2.0**fraction
    below = int(np.floor(exact))
    shift = lanes.dtype.type(below & np.iinfo(lanes.dtype).max)
    up = np.bincount((lanes - shift).astype(np.int64), minlength=2)
    assert clamped == 0
    assert len(up) == 2
    # 5.5 standard errors: a false alarm of 4e-8 a case, of 8e-7 in all.
    chance = float(exact) - below
    assert abs(up[1] / draws - chance) <= 5.5 * np.sqrt(chance * (1 - chance) / draws)


def test_whoever_clamps_knows_how_much_and_a_sum_is_of_the_clamped() -> None:
    encoding = Encoding.vector(study(3, bits=20), 1)
    _, none = encoding.encode(names(encoding)[0], np.array([0.999]), os.urandom)
    _, one = encoding.encode(names(encoding)[0], np.array([1.001]), os.urandom)
    assert (none, one) == (0, 1)


def test_encodings_that_differ_in_anything_have_other_names() -> None:
    base = study(3)
    digests = [
        Encoding.vector(base, 4).digest(),
        Encoding.vector(base, 5).digest(),
        Encoding.vector(study(3, bits=20), 4).digest(),
        Encoding.vector(study(3, clamp=0.5), 4).digest(),
        Encoding.vector(study(3, bands=[100, 100, 99]), 4).digest(),
        Encoding.counts(base, cells=4, maximum=5).digest(),
        Encoding.counts(base, cells=4, maximum=6).digest(),
    ]
    assert len(set(digests)) == len(digests)
    assert Encoding.vector(base, 4).digest() == digests[0]
