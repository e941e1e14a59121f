"""Any threshold of shares gives the secret back, and one fewer says nothing at all."""

from __future__ import annotations

import os
from collections import Counter
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.secagg import shamir


def multiply(a: int, b: int) -> int:
    """Multiply in GF(256) bit by bit: an independent look at the field."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a = (a << 1) ^ (0x11B if a & 0x80 else 0)
        b >>= 1
    return product


def value_at(coefficients: bytes, point: int) -> int:
    result = 0
    for coefficient in reversed(coefficients):
        result = multiply(result, point) ^ coefficient
    return result


@given(st.binary(min_size=1, max_size=40), st.integers(1, 20), st.data())
def test_any_threshold_of_shares_gives_the_secret_back(secret: bytes, holders: int, data: st.DataObject) -> None:
    threshold = data.draw(st.integers(1, holders))
    places = data.draw(st.permutations(range(holders)))[:threshold]
    shares = shamir.split(secret, holders, threshold, os.urandom)
    assert len(shares) == holders
    assert shamir.combine(places, [shares[place] for place in places]) == secret


def test_every_set_of_shares_of_a_small_secret_gives_it_back() -> None:
    for holders in range(1, 7):
        for threshold in range(1, holders + 1):
            shares = shamir.split(b"\x00\xff\x35", holders, threshold, os.urandom)
            for places in combinations(range(holders), threshold):
                assert shamir.combine(places, [shares[place] for place in places]) == b"\x00\xff\x35"


@pytest.mark.parametrize("holders", [255])
def test_the_largest_roster_has_its_shares(holders: int) -> None:
    secret = os.urandom(32)
    shares = shamir.split(secret, holders, 171, os.urandom)
    assert len(set(shares)) == holders
    assert shamir.combine(range(84, 255), shares[84:]) == secret
    assert shamir.combine(range(171), shares[:171]) == secret


@given(st.integers(0, 255), st.binary(min_size=3, max_size=3))
def test_shares_are_the_values_of_the_polynomial(secret: int, coefficients: bytes) -> None:
    shares = shamir.split(bytes([secret]), 255, 4, lambda size: coefficients[:size])
    assert [share[0] for share in shares] == [value_at(bytes([secret]) + coefficients, x) for x in range(1, 256)]


@pytest.mark.parametrize("holder", [0, 1, 4])
def test_one_share_of_two_says_nothing_of_a_byte(holder: int) -> None:
    # Exhaustive: for each secret, the 256 possible coefficients give this holder each byte exactly once.
    for secret in range(256):
        seen = Counter(
            shamir.split(bytes([secret]), 5, 2, lambda size, c=c: bytes([c]))[holder][0]  # type: ignore[misc]
            for c in range(256)
        )
        assert set(seen.values()) == {1}
        assert len(seen) == 256


def test_two_shares_of_three_leave_every_secret_possible_alike() -> None:
    # What holders 1 and 4 saw fits every secret, each with exactly one third share: a bijection.
    for secret in (0, 1, 200):
        shares = shamir.split(bytes([secret]), 5, 3, lambda size: b"\x11\xa7")
        fitting = {shamir.combine([1, 4, 2], [shares[1], shares[4], bytes([third])]) for third in range(256)}
        assert len(fitting) == 256


def test_fewer_shares_than_the_threshold_give_something_else() -> None:
    secret = os.urandom(32)
    shares = shamir.split(secret, 5, 4, os.urandom)
    for places in combinations(range(5), 3):
        # False alarm: 10 * 2**-256.
        assert shamir.combine(places, [shares[place] for place in places]) != secret


def test_a_share_that_is_given_twice_is_refused() -> None:
    shares = shamir.split(b"secret", 5, 3, os.urandom)
    with pytest.raises(ConsiliumError, match="CSL-407"):
        shamir.combine([0, 1, 0], [shares[0], shares[1], shares[0]])


@pytest.mark.parametrize(("holders", "threshold"), [(3, 4), (3, 0), (0, 0), (256, 2), (256, 256), (-1, -1), (3, -2)])
def test_a_threshold_that_cannot_be_is_refused(holders: int, threshold: int) -> None:
    with pytest.raises(ConsiliumError, match="CSL-404"):
        shamir.split(b"secret", holders, threshold, os.urandom)


def test_a_changed_share_changes_the_secret() -> None:
    secret = os.urandom(32)
    shares = shamir.split(secret, 5, 3, os.urandom)
    for place in range(3):
        forged = list(shares[:3])
        forged[place] = bytes([forged[place][0] ^ 1]) + forged[place][1:]
        assert shamir.combine([0, 1, 2], forged) != secret
