"""Who speaks: Ed25519 identities, signatures that cannot be carried from one purpose to another, and fingerprints.

A signature is over ``domain || 0x00 || payload``; no domain contains a zero byte, so no two (domain, payload) pairs
share their signed bytes. Private keys never appear in a ``repr`` and leave only by :meth:`Identity.private_bytes`.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import NewType

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common import errors
from common.errors import ConsiliumError

SiteId = NewType("SiteId", str)
PublicKey = NewType("PublicKey", bytes)
"""32 raw bytes of an Ed25519 public key."""
Signature = NewType("Signature", bytes)
"""64 bytes."""


class Domain(StrEnum):
    """What a signature is for. A signature made in one domain never verifies in another."""

    STUDY = "consilium/v1/study"
    STUDY_SIMULATION = "consilium/v1/simulation/study"
    APPROVAL = "consilium/v1/approval"
    APPROVAL_SIMULATION = "consilium/v1/simulation/approval"
    MESSAGE = "consilium/v1/message"
    JOIN = "consilium/v1/join"
    ADMISSION = "consilium/v1/admission"
    SECAGG_HELLO = "consilium/v1/secagg/hello"
    SECAGG_PREPARE = "consilium/v1/secagg/prepare"
    SECAGG_ACKNOWLEDGE = "consilium/v1/secagg/acknowledge"
    SECAGG_VIEW = "consilium/v1/secagg/view"


class Identity:
    """A long-term Ed25519 key pair of a site or an operator."""

    __slots__ = ("_private", "public_key")

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_key = PublicKey(private.public_key().public_bytes_raw())

    @classmethod
    def generate(cls) -> Identity:
        """Draw a new identity from the operating system's CSPRNG."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_private_bytes(cls, raw: bytes) -> Identity:
        """Restore an identity from its 32 private bytes; raises CSL-120."""
        try:
            return cls(Ed25519PrivateKey.from_private_bytes(raw))
        except ValueError as error:
            raise ConsiliumError(errors.IDENTITY_INVALID, "a private key has 32 bytes") from error

    def private_bytes(self) -> bytes:
        """Return the 32 private bytes, for the keystore only."""
        return self._private.private_bytes_raw()

    def sign(self, domain: Domain, payload: bytes) -> Signature:
        """Sign ``payload`` for one purpose; 64 bytes."""
        return Signature(self._private.sign(_signed_bytes(domain, payload)))

    def derive_key(self, purpose: str) -> bytes:
        """Return 32 bytes that only the holder of the private key can make, different for each purpose [RFC 5869]."""
        return HKDF(hashes.SHA256(), 32, salt=b"consilium/v1/derived", info=purpose.encode()).derive(
            self._private.private_bytes_raw()
        )

    def __repr__(self) -> str:
        return f"Identity({fingerprint(self.public_key)})"


def verify(public_key: PublicKey, domain: Domain, payload: bytes, signature: bytes) -> None:
    """Check a signature; raises CSL-121 if it does not hold and CSL-120 if the key is no key."""
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
    except ValueError as error:
        raise ConsiliumError(errors.IDENTITY_INVALID, "a public key has 32 bytes") from error
    try:
        key.verify(signature, _signed_bytes(domain, payload))
    except InvalidSignature as error:
        raise ConsiliumError(errors.SIGNATURE_WRONG, f"{domain.value}, key {fingerprint(public_key)}") from error


def parse_public_key(text: str) -> PublicKey:
    """Read a public key from 64 hex digits; raises CSL-120."""
    try:
        raw = bytes.fromhex(text)
        Ed25519PublicKey.from_public_bytes(raw)
    except ValueError as error:
        raise ConsiliumError(errors.IDENTITY_INVALID, f"{len(text)} characters given") from error
    return PublicKey(raw)


def fingerprint(public_key: PublicKey) -> str:
    """Return 80 bits of the key's SHA-256 as five groups of four hex digits, to compare by telephone."""
    digest = hashlib.sha256(b"consilium/v1/fingerprint\x00" + public_key).hexdigest()[:20]
    return "-".join(digest[i : i + 4] for i in range(0, 20, 4))


def _signed_bytes(domain: Domain, payload: bytes) -> bytes:
    return domain.value.encode() + b"\x00" + payload
