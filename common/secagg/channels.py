"""Pairwise channels of one epoch: X25519 between keys that identities signed, HKDF-SHA256, AES-256-GCM.

One key a direction. A channel seals one message an instance, so the instance is the nonce, and no nonce repeats under
a key.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common import errors
from common.errors import ConsiliumError


class KeyPair:
    """An X25519 key pair drawn from the given entropy."""

    __slots__ = ("_private", "public")

    def __init__(self, private: bytes) -> None:
        self._private = X25519PrivateKey.from_private_bytes(private)
        self.public = self._private.public_key().public_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """Return the 32 secret bytes shared with a public key; raises CSL-403 for a point of low order."""
        try:
            return self._private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError as error:
            raise ConsiliumError(errors.SECAGG_SIGNATURE, "a public key is not usable") from error

    def private_bytes(self) -> bytes:
        """Return the private key, to be shared among the peers."""
        return self._private.private_bytes_raw()

    def __repr__(self) -> str:
        return f"KeyPair({self.public.hex()[:8]})"


class Channel:
    """Seals to one peer and opens what the peer sealed."""

    __slots__ = ("_receive", "_send")

    def __init__(self, own: KeyPair, peer: bytes, session: bytes) -> None:
        secret = own.agree(peer)
        self._send = AESGCM(_key(secret, session, own.public, peer))
        self._receive = AESGCM(_key(secret, session, peer, own.public))

    def seal(self, instance: int, plain: bytes, bound: bytes) -> bytes:
        """Seal one instance's message; ``bound`` is authenticated with it."""
        return self._send.encrypt(instance.to_bytes(12, "big"), plain, bound)

    def open(self, instance: int, sealed: bytes, bound: bytes) -> bytes:
        """Open one instance's message; raises CSL-407 if anything was changed."""
        try:
            return self._receive.decrypt(instance.to_bytes(12, "big"), sealed, bound)
        except InvalidTag as error:
            raise ConsiliumError(errors.SECAGG_SHARE, "a sealed share cannot be opened") from error

    def __repr__(self) -> str:
        return "Channel()"


def _key(secret: bytes, session: bytes, sender: bytes, receiver: bytes) -> bytes:
    info = b"consilium/v1/secagg/channel" + sender + receiver
    return HKDF(hashes.SHA256(), 32, salt=session, info=info).derive(secret)
