"""Node keys as Flower's transport has them: it knows a node by the bytes of its public key."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes


def node_key_bytes(key: ec.EllipticCurvePublicKey) -> bytes:
    """Return a node's public key as it stands in Flower's requests."""
    return public_key_to_bytes(key)
