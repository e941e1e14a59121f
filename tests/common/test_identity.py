"""Signatures hold for one purpose, one key and one payload."""

from __future__ import annotations

import pickle

import pytest

from common import errors
from common.errors import ConsiliumError
from common.identity import Domain, Identity, fingerprint, parse_public_key, verify


def test_a_signature_holds_for_its_payload_key_and_purpose_only() -> None:
    identity, other = Identity.generate(), Identity.generate()
    signature = identity.sign(Domain.MESSAGE, b"payload")
    verify(identity.public_key, Domain.MESSAGE, b"payload", signature)
    for key, domain, payload in (
        (other.public_key, Domain.MESSAGE, b"payload"),
        (identity.public_key, Domain.STUDY, b"payload"),
        (identity.public_key, Domain.MESSAGE, b"Payload"),
    ):
        with pytest.raises(ConsiliumError) as caught:
            verify(key, domain, payload, signature)
        assert caught.value.code == "CSL-121"


def test_no_domain_is_a_prefix_that_a_payload_could_complete() -> None:
    assert all("\x00" not in domain.value for domain in Domain)
    assert len({domain.value for domain in Domain}) == len(Domain)


def test_a_private_key_is_in_no_repr() -> None:
    identity = Identity.generate()
    assert identity.private_bytes().hex() not in repr(identity)
    assert fingerprint(identity.public_key) in repr(identity)


def test_an_identity_is_restored_from_its_bytes() -> None:
    identity = Identity.generate()
    assert Identity.from_private_bytes(identity.private_bytes()).public_key == identity.public_key


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "00" * 33])
def test_what_is_no_key_is_a_coded_error(text: str) -> None:
    with pytest.raises(ConsiliumError) as caught:
        parse_public_key(text)
    assert caught.value.code == "CSL-120"


def test_a_short_private_key_is_a_coded_error() -> None:
    with pytest.raises(ConsiliumError) as caught:
        Identity.from_private_bytes(b"short")
    assert caught.value.code == "CSL-120"


def test_fingerprints_are_short_enough_to_read_aloud_and_differ() -> None:
    prints = {fingerprint(Identity.generate().public_key) for _ in range(50)}
    assert len(prints) == 50
    assert all(len(text) == 24 for text in prints)


def test_an_error_prints_on_one_line_and_survives_pickling() -> None:
    error = ConsiliumError(errors.STUDY_INVALID, "two\nlines")
    assert "\n" not in str(error)
    assert str(error).startswith("CSL-102 study: ")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301
