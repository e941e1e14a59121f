"""An envelope is good for one study, stage, instance, sender and recipient, and for nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.identity import Identity, Signature
from common.messages import OPERATOR, Envelope, Sealed, Stage, peek_sender, seal, unseal
from common.parts import Digest

STUDY = Digest("ab" * 32)
SITE = Identity.from_private_bytes(bytes(31) + b"\x07")
ENVELOPE = Envelope(STUDY, Stage.FIT, 3, 0, "site-000", OPERATOR, {"secagg": b"masked", "vector": b"\x00" * 8})


def opened(sealed: Sealed, **changes: object) -> Envelope:
    expected = {"study": STUDY, "stage": Stage.FIT, "sender": "site-000", "recipient": OPERATOR, **changes}
    return unseal(sealed, SITE.public_key, **expected)  # type: ignore[arg-type]


def test_what_was_sealed_is_what_is_opened() -> None:
    sealed = seal(ENVELOPE, SITE)
    assert opened(sealed) == ENVELOPE
    assert peek_sender(sealed) == "site-000"


@pytest.mark.parametrize(
    "changes",
    [
        {"study": Digest("cd" * 32)},
        {"stage": Stage.COUNTS},
        {"sender": "site-001"},
        {"recipient": "site-001"},
    ],
)
def test_a_message_bound_elsewhere_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ConsiliumError) as caught:
        opened(seal(ENVELOPE, SITE), **changes)
    assert caught.value.code == "CSL-131"


def test_a_site_cannot_speak_as_another() -> None:
    forged = seal(ENVELOPE, Identity.generate())
    with pytest.raises(ConsiliumError) as caught:
        opened(forged)
    assert caught.value.code == "CSL-121"


@pytest.mark.parametrize(
    "parts",
    [
        {"secagg": b"other!", "vector": b"\x00" * 8},
        {"secagg": b"masked"},
        {"secagg": b"masked", "vector": b"\x00" * 8, "accuracy": b"0.9"},
        {"vector": b"masked", "secagg": b"\x00" * 8},
    ],
)
def test_a_part_that_was_not_signed_is_refused(parts: dict[str, bytes]) -> None:
    with pytest.raises(ConsiliumError) as caught:
        opened(replace(seal(ENVELOPE, SITE), parts=parts))
    assert caught.value.code == "CSL-131"


@given(st.data())
def test_a_flipped_bit_anywhere_is_refused(data: st.DataObject) -> None:
    sealed = seal(ENVELOPE, SITE)
    pieces = [sealed.header, bytes(sealed.signature), sealed.parts["secagg"], sealed.parts["vector"]]
    which = data.draw(st.integers(0, 3))
    bit = data.draw(st.integers(0, 8 * len(pieces[which]) - 1))
    changed = bytearray(pieces[which])
    changed[bit // 8] ^= 1 << (bit % 8)
    pieces[which] = bytes(changed)
    with pytest.raises(ConsiliumError):
        opened(Sealed(pieces[0], Signature(pieces[1]), {"secagg": pieces[2], "vector": pieces[3]}))


@given(st.binary(max_size=300))
def test_no_header_crashes_the_reader(header: bytes) -> None:
    with pytest.raises(ConsiliumError) as caught:
        opened(Sealed(header, Signature(bytes(64)), {}))
    assert caught.value.code == "CSL-130"


def test_deep_nesting_is_refused_without_a_crash() -> None:
    with pytest.raises(ConsiliumError) as caught:
        opened(Sealed(b"[" * 4000, Signature(bytes(64)), {}))
    assert caught.value.code == "CSL-130"


def test_what_cannot_be_said_is_not_sealed() -> None:
    for bad in (
        replace(ENVELOPE, instance=-1),
        replace(ENVELOPE, sender="../etc"),
        replace(ENVELOPE, parts={"UPPER": b""}),
        replace(ENVELOPE, parts=dict.fromkeys("abcde", b"")),
    ):
        with pytest.raises(ConsiliumError) as caught:
            seal(bad, SITE)
        assert caught.value.code == "CSL-130"
