"""Flower's own SecAgg+, driven step by step without a network: what the benchmarks measure ours against.

The steps are the installed flwr's functions; only the order in which its client mod and its server workflow call them
is written here. Nothing of Consilium's protocol uses this module.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version

import numpy as np
from flwr.app import ConfigRecord
from flwr.app.typing import ConfigRecordValues
from flwr.client.mod.secure_aggregation.secaggplus_mod import (
    SecAggPlusState,
    _collect_masked_vectors,
    _setup,
    _share_keys,
    _unmask,
)
from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.ndarrays_arithmetic import (
    factor_extract,
    get_parameters_shape,
    parameters_addition,
    parameters_mod,
    parameters_subtraction,
)
from flwr.common.secure_aggregation.quantization import dequantize
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError

CLIPPING, QUANTISATION, MODULUS, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000.0
"""Flower's defaults."""
Lanes = list[NDArray[np.int64]]


def check_version() -> None:
    """Raise CSL-109 for another flwr than the one whose internals are known here."""
    if not version("flwr").startswith("1.41."):
        raise ConsiliumError(errors.STUDY_SOFTWARE, f"flwr {version('flwr')}: SecAgg+ is known of 1.41 only")


class Client:
    """One client of one round.

    number     its node
    clients    in the round, all of them neighbours
    threshold  shares that open a secret
    """

    def __init__(self, number: int, clients: int, threshold: int) -> None:
        self.state = SecAggPlusState()
        self.state.nid = number
        self._clients, self._threshold = clients, threshold

    def setup(self) -> tuple[bytes, bytes]:
        """Return two fresh public keys."""
        settings: dict[str, ConfigRecordValues] = {
            Key.SAMPLE_NUMBER: self._clients,
            Key.SHARE_NUMBER: self._clients,
            Key.THRESHOLD: self._threshold,
            Key.CLIPPING_RANGE: CLIPPING,
            Key.TARGET_RANGE: QUANTISATION,
            Key.MOD_RANGE: MODULUS,
            Key.MAX_WEIGHT: MAX_WEIGHT,
        }
        _setup(self.state, ConfigRecord(settings))
        return self.state.pk1, self.state.pk2

    def share(self, keys: Mapping[int, tuple[bytes, bytes]]) -> dict[int, bytes]:
        """Return the sealed shares for every other client."""
        reply = _share_keys(self.state, ConfigRecord({str(node): list(pair) for node, pair in keys.items()}))
        return dict(zip(_ints(reply[Key.DESTINATION_LIST]), _bytes(reply[Key.CIPHERTEXT_LIST]), strict=True))

    def mask(self, received: Mapping[int, bytes], values: NDArray[np.float32]) -> list[bytes]:
        """Return the masked vector, quantised, weight in front; ``received`` is what the others sealed for this one."""
        request = ConfigRecord({Key.CIPHERTEXT_LIST: list(received.values()), Key.SOURCE_LIST: list(received)})
        reply = _collect_masked_vectors(self.state, request, int(MAX_WEIGHT), ndarrays_to_parameters([values]))
        return _bytes(reply[Key.MASKED_PARAMETERS])

    def unmask(self, active: Sequence[int], dead: Sequence[int]) -> dict[int, bytes]:
        """Return a share for every client: of the seed of the active, of the key of the dead."""
        request = ConfigRecord({Key.ACTIVE_NODE_ID_LIST: list(active), Key.DEAD_NODE_ID_LIST: list(dead)})
        reply = _unmask(self.state, request)
        return dict(zip(_ints(reply[Key.NODE_ID_LIST]), _bytes(reply[Key.SHARE_LIST]), strict=True))


def sealed_with(receiver: Client, sender: int, shares: tuple[bytes, bytes]) -> bytes:
    """Return what a sender would seal for a receiver: under the key they share, which the receiver knows too."""
    plain = share_keys_plaintext_concat(sender, receiver.state.nid, *shares)
    return encrypt(receiver.state.ss2_dict[sender], plain)


def shares_of(secret: bytes, threshold: int, clients: int) -> list[bytes]:
    """Return Flower's shares of one secret."""
    return create_shares(secret, threshold, clients)


def collect(masked: Sequence[bytes], total: Lanes | None) -> Lanes:
    """Add one masked vector to the total, as the server does for each that comes in."""
    vector: Lanes = [bytes_to_ndarray(part) for part in masked]
    return vector if total is None else parameters_addition(total, vector)


def open_total(
    total: Lanes,
    revealed: Mapping[int, list[bytes]],
    active: Collection[int],
    keys: Mapping[int, bytes],
) -> NDArray[np.float64]:
    """Take the masks off a total and return the mean.

    revealed  by owner, the shares that the active revealed
    keys      the first public key of every client
    """
    vector = parameters_mod(total, MODULUS)
    for owner, shares in revealed.items():
        secret = combine_shares(shares)
        if owner in active:
            vector = parameters_subtraction(vector, pseudo_rand_gen(secret, MODULUS, get_parameters_shape(vector)))
            continue
        for other, key in keys.items():
            if other == owner:
                continue
            shared = generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(key))
            mask = pseudo_rand_gen(shared, MODULUS, get_parameters_shape(vector))
            # It goes over all others, the dead too: their common masks are added once and taken away once.
            vector = (parameters_addition if owner > other else parameters_subtraction)(vector, mask)
    ratio, parts = factor_extract(parameters_mod(vector, MODULUS))
    mean = dequantize(parts, CLIPPING, QUANTISATION)[0]
    opened: NDArray[np.float64] = (mean - (len(active) - 1) * CLIPPING) * (QUANTISATION / ratio)
    return opened


def _ints(values: object) -> list[int]:
    assert isinstance(values, list)
    return [int(value) for value in values]


def _bytes(values: object) -> list[bytes]:
    assert isinstance(values, list)
    return [bytes(value) for value in values]
