"""The operator as a witness of where a site's ledger ended, without learning anything from it (RULES 18).

Each signed reply carries the digest in which the chain ends, and beside it era and number of that entry, encrypted
under a key that only the site can derive. The operator hands the latest back when an epoch opens. A ledger that was put
back from an older copy, its anchor with it, does not contain that digest. Operators cannot make one up, and an old one
does no harm.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from client.ledger.keeping import Head
from common import errors
from common.errors import ConsiliumError
from common.identity import Identity
from common.payloads import LEDGER_BYTES
from common.study import Digest

_DIGEST_BYTES, _NONCE_BYTES = 32, 12
_PLACE = struct.Struct(">IQ")


class Witness:
    """Seals heads for one site, and opens what it sealed before.

    identity  of the site
    entropy   source of nonces
    """

    def __init__(self, identity: Identity, entropy: Callable[[int], bytes]) -> None:
        self._cipher = ChaCha20Poly1305(identity.derive_key("consilium/v1/ledger/witness"))
        self._entropy = entropy

    def seal(self, head: Head) -> bytes:
        """Return 72 bytes: the digest, a nonce, era and number encrypted and bound to the digest."""
        digest, nonce = bytes.fromhex(head.digest), self._entropy(_NONCE_BYTES)
        return digest + nonce + self._cipher.encrypt(nonce, _PLACE.pack(head.era, head.number), digest)

    def open(self, sealed: bytes) -> Head:
        """Return a head that this site sealed; raises CSL-130 for anything else."""
        digest, nonce = sealed[:_DIGEST_BYTES], sealed[_DIGEST_BYTES : _DIGEST_BYTES + _NONCE_BYTES]
        try:
            if len(sealed) != LEDGER_BYTES:
                raise ConsiliumError(errors.MESSAGE_MALFORMED, f"a ledger's head has {LEDGER_BYTES} bytes")
            era, number = _PLACE.unpack(self._cipher.decrypt(nonce, sealed[_DIGEST_BYTES + _NONCE_BYTES :], digest))
        except InvalidTag as error:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "a ledger's head was not sealed by this site") from error
        return Head(era, number, Digest(digest.hex()))
