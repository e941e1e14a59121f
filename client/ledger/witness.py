"""The operator as a witness of where a site's ledger ended, without learning anything from it (RULES 18).

Each signed reply carries era, number and digest of the chain's end, encrypted under a key that only the site can derive
and only for this one ledger. The operator hands the latest back when an epoch opens. A ledger that was put back from an
older copy, its anchor with it, does not contain that digest. Operators cannot make one up, an old one does no harm, and
one of another ledger of the same site is not read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from client.ledger.book import Head
from common import errors
from common.errors import ConsiliumError
from common.identity import Identity
from common.parts import Digest
from common.payloads import LEDGER_BYTES

_NONCE_BYTES = 12
_HEAD = struct.Struct(">IQ32s")


class Witness:
    """Seals heads of one site's one ledger, and opens what it sealed before.

    identity  of the site
    ledger    the ledger's name, with which its chain begins
    entropy   source of nonces
    """

    def __init__(self, identity: Identity, ledger: str, entropy: Callable[[int], bytes]) -> None:
        self._cipher = ChaCha20Poly1305(identity.derive_key(f"consilium/v1/ledger/witness/{ledger}"))
        self._entropy = entropy

    def seal(self, head: Head) -> bytes:
        """Return 72 bytes: a nonce of 12, the head encrypted (44), the tag of 16."""
        nonce = self._entropy(_NONCE_BYTES)
        plain = _HEAD.pack(head.era, head.number, bytes.fromhex(head.digest))
        return nonce + self._cipher.encrypt(nonce, plain, None)

    def open(self, sealed: bytes) -> Head:
        """Return a head that was sealed here; raises CSL-130 for anything else, another ledger's head included."""
        if len(sealed) != LEDGER_BYTES:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, f"a ledger's head has {LEDGER_BYTES} bytes")
        try:
            plain = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], None)
        except InvalidTag as error:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "a head was not sealed for this ledger") from error
        era, number, digest = _HEAD.unpack(plain)
        return Head(era, number, Digest(digest.hex()))
