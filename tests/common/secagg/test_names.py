"""Sessions, contexts, commitments and channels are bound to everything they stand for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.errors import ConsiliumError
from common.secagg import Encoding
from common.secagg.channels import Channel, KeyPair
from common.secagg.commitments import Tree, climb, commit
from common.secagg.context import acknowledged, context_of, session_of, view_of
from common.secagg.terms import Terms
from common.secagg.wire import Hello
from tests.studies import signed_study

TERMS = Terms.from_study(signed_study(4).study)
HELLOS = {index: Hello(bytes([index]) * 32, bytes([9, index]) * 16, 0, bytes(64)) for index in range(4)}


def test_a_session_is_named_by_the_study_and_every_nonce_and_key() -> None:
    names = {
        session_of(TERMS.study, b"n" * 32, HELLOS),
        session_of(TERMS.study, b"m" * 32, HELLOS),
        session_of(b"s" * 32, b"n" * 32, HELLOS),
        session_of(TERMS.study, b"n" * 32, {**HELLOS, 3: replace(HELLOS[3], nonce=b"x" * 32)}),
        session_of(TERMS.study, b"n" * 32, {**HELLOS, 3: replace(HELLOS[3], key=b"x" * 32)}),
        session_of(TERMS.study, b"n" * 32, {index: HELLOS[index] for index in range(3)}),
    }
    assert len(names) == 6


def test_a_context_changes_with_everything_about_a_sum() -> None:
    study = signed_study(4).study
    four, five = Encoding.vector(study, 4), Encoding.vector(study, 5)
    keys = {0: b"a" * 32, 1: b"b" * 32}
    names = {
        context_of(TERMS, b"s", 1, "fit", b"d", four, keys),
        context_of(replace(TERMS, study=b"t" * 32), b"s", 1, "fit", b"d", four, keys),
        context_of(TERMS, b"r", 1, "fit", b"d", four, keys),
        context_of(TERMS, b"s", 2, "fit", b"d", four, keys),
        context_of(TERMS, b"s", 1, "fi", b"d", four, keys),
        context_of(TERMS, b"s", 1, "fi", b"td", four, keys),
        context_of(TERMS, b"s", 1, "fit", b"e", four, keys),
        context_of(TERMS, b"s", 1, "fit", b"d", five, keys),
        context_of(TERMS, b"s", 1, "fit", b"d", four, {0: b"a" * 32}),
        context_of(TERMS, b"s", 1, "fit", b"d", four, {**keys, 1: b"c" * 32}),
        context_of(TERMS, b"s", 1, "fit", b"d", four, {0: b"a" * 32, 2: b"b" * 32}),
    }
    assert len(names) == 11


def test_acknowledgements_and_views_name_what_they_cover() -> None:
    roots = {0: (b"k" * 32, b"r" * 32), 1: (b"l" * 32, b"s" * 32)}
    names = {
        acknowledged(b"s", 1, roots),
        acknowledged(b"t", 1, roots),
        acknowledged(b"s", 2, roots),
        acknowledged(b"s", 1, {**roots, 1: (b"l" * 32, b"r" * 32)}),
        acknowledged(b"s", 1, {**roots, 1: (b"k" * 32, b"s" * 32)}),
        acknowledged(b"s", 1, {0: roots[0]}),
        view_of(b"s", [0, 1]),
        view_of(b"s", [0, 2]),
        view_of(b"t", [0, 1]),
    }
    assert len(names) == 9


def test_a_commitment_is_to_one_kind_of_share_of_one_owner_at_one_holder() -> None:
    share = b"s" * 32
    found = {
        commit(share, b"seed", 1, 2),
        commit(share, b"mask", 1, 2),
        commit(share, b"seed", 2, 1),
        commit(share, b"seed", 1, 3),
        commit(b"t" * 32, b"seed", 1, 2),
    }
    assert len(found) == 5


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 9, 255])
def test_every_leaf_climbs_to_the_root_and_to_no_other(count: int) -> None:
    leaves = [bytes([place]) * 32 for place in range(1, count + 1)]
    tree = Tree(leaves)
    for place in range(count):
        path = tree.path(place)
        assert climb(leaves[place], place, path) == tree.root
        assert climb(b"forged".ljust(32), place, path) != tree.root
        if path:
            assert climb(leaves[place], place, path[:-1]) != tree.root


def test_a_channel_opens_only_what_its_peer_sealed_here_and_now() -> None:
    here, there, other = KeyPair(b"\x01" * 32), KeyPair(b"\x02" * 32), KeyPair(b"\x03" * 32)
    session = b"s" * 32
    sealed = Channel(here, there.public, session).seal(1, b"shares", b"bound")
    receiver = Channel(there, here.public, session)
    assert receiver.open(1, sealed, b"bound") == b"shares"
    wrong = [
        (receiver, 2, b"bound"),
        (receiver, 1, b"other"),
        (Channel(there, here.public, b"t" * 32), 1, b"bound"),
        (Channel(other, here.public, session), 1, b"bound"),
        (Channel(here, there.public, session), 1, b"bound"),  # Reflected to its sender.
    ]
    for channel, instance, bound in wrong:
        with pytest.raises(ConsiliumError, match="CSL-407"):
            channel.open(instance, sealed, bound)
    for raw in (b"", sealed[:8], sealed[:-1]):
        with pytest.raises(ConsiliumError, match="CSL-407"):
            receiver.open(1, raw, b"bound")


def test_a_key_of_low_order_is_refused() -> None:
    for point in (bytes(32), b"\x01" + bytes(31)):
        with pytest.raises(ConsiliumError, match="CSL-403"):
            KeyPair(b"\x01" * 32).agree(point)
