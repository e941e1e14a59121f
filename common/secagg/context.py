"""The names that both sides compute alike: sessions, contexts, and what acknowledgements and views sign."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType

from common.identity import Domain, PublicKey, verify
from common.secagg.encoding import Encoding
from common.secagg.terms import Terms
from common.secagg.wire import Hello, Kind, Reader, packed_indices


def session_of(study: bytes, server_nonce: bytes, hellos: Mapping[int, Hello]) -> bytes:
    """Return the 32 bytes that name an epoch; every participant's fresh nonce and key are in it (RULES 5)."""
    parts = [packed_indices((index,)) + hello.nonce + hello.key for index, hello in sorted(hellos.items())]
    return _digest(b"session", study, server_nonce, *parts)


@lru_cache(maxsize=1)
def read_members(request: bytes, below: int) -> Mapping[int, Hello]:
    """Read who takes part from a request to prepare, by rising index; raises CSL-401.

    below  sites in the roster

    All sites are sent the same bytes: where many live in one process, they are read once.
    """
    with Reader(request, Kind.PREPARE_REQUEST) as reader:
        return MappingProxyType({index: Hello.read(reader) for index in reader.indices(below)})


@lru_cache(maxsize=1)
def session_named(study: bytes, server_nonce: bytes, request: bytes, below: int) -> bytes:
    """Return :func:`session_of` what a request to prepare says."""
    return session_of(study, server_nonce, read_members(request, below))


def acknowledged(session: bytes, instance: int, roots: Mapping[int, tuple[bytes, bytes]]) -> bytes:
    """Return what an acknowledgement signs: every participant's mask key and the root of its prepare."""
    parts = [packed_indices((index,)) + key + root for index, (key, root) in sorted(roots.items())]
    return _digest(b"acknowledge", session, instance.to_bytes(8, "big"), *parts)


def context_of(
    terms: Terms,
    session: bytes,
    instance: int,
    stage: str,
    input_digest: bytes,
    encoding: Encoding,
    keys: Mapping[int, bytes],
) -> bytes:
    """Return the sum's context, which keys every mask (RULES 1): sites that differ in any of it share no mask."""
    parts = [packed_indices((index,)) + key for index, key in sorted(keys.items())]
    return _digest(
        b"context",
        terms.study,
        session,
        instance.to_bytes(8, "big"),
        stage.encode(),
        input_digest,
        encoding.digest(),
        *parts,
    )


def view_of(context: bytes, survivors: Sequence[int]) -> bytes:
    """Return what a site signs when it states who survived."""
    return _digest(b"view", context, packed_indices(survivors))


def input_name(request: bytes, input_digest: bytes, stage: str, encoding: Encoding) -> bytes:
    """Return the name under which a site keeps its reply to an input: all that it answers is in it."""
    return _digest(b"input", request, input_digest, stage.encode(), encoding.digest())


@lru_cache(maxsize=1 << 15)
def check_signature(key: PublicKey, domain: Domain, payload: bytes, signature: bytes) -> None:
    """Raise CSL-121 unless the signature holds; one that held is known to hold.

    A simulation's sites are shown the same signatures as their neighbours, and most of its time would go into them.
    """
    verify(key, domain, payload, signature)


def _digest(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(_framed((b"consilium/v1/secagg", *parts)))).digest()


def _framed(parts: Iterable[bytes]) -> Iterable[bytes]:
    for part in parts:
        yield len(part).to_bytes(8, "big") + part
