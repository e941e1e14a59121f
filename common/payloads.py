"""What both sides must read alike inside an envelope: vectors, round numbers, and how each sum is encoded."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.errors import ConsiliumError
from common.messages import Stage
from common.privacy.accounting import EVALUATION_CELLS
from common.privacy.plan import cell_bound
from common.secagg import Encoding
from common.study import Study

LEDGER_PART = "ledger"
"""The part of an envelope that says where a site's ledger ended: sealed by the site, kept for it by the operator."""
LEDGER_BYTES = 72
STUDY_PART, SIGNATURE_PART, APPROVALS_PART, APPROVAL_PART = "study", "signature", "approvals", "approval"
"""The parts in which a study is offered and agreed: canonical bytes, the operator's signature, all approvals, one."""
SIGNATURE_BYTES = 64


def dump_vector(vector: NDArray[np.float32]) -> bytes:
    """Return a vector's bytes: little-endian float32, in the adapter's order."""
    return np.ascontiguousarray(vector, dtype="<f4").tobytes()


def parse_vector(raw: bytes, dimension: int) -> NDArray[np.float32]:
    """Read a vector; raises CSL-311 for another length or a value that is not finite."""
    if len(raw) != 4 * dimension:
        raise ConsiliumError(errors.ADAPTER_VECTOR, f"{len(raw)} bytes where {4 * dimension} were expected")
    vector = np.frombuffer(raw, dtype="<f4").astype(np.float32)
    if not np.isfinite(vector).all():
        raise ConsiliumError(errors.ADAPTER_VECTOR, "a value is not finite")
    return vector


def dump_round(round_index: int) -> bytes:
    """Return a round's number, counted from 0, as four big-endian bytes."""
    return round_index.to_bytes(4, "big")


def parse_round(raw: bytes, rounds: int) -> int:
    """Read a round's number; raises CSL-130 if it is not one of the study's."""
    round_index = int.from_bytes(raw, "big")
    if len(raw) != 4 or round_index >= rounds:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, "the round is not one of the study's")
    return round_index


def input_digest(stage: Stage, *parts: bytes) -> bytes:
    """Return SHA-256 over everything public that a site's computation depends on.

    It enters the masks (RULES 1): sites that were shown different models or rounds add up to noise.
    """
    digest = hashlib.sha256(stage.value.encode() + b"\x00")
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def vector_encoding(study: Study, dimension: int) -> Encoding:
    """Return how updates are encoded for the sum; raises CSL-409 if the sum could overflow."""
    return Encoding.vector(study, dimension)


def count_encoding(study: Study) -> Encoding:
    """Return how the evaluation's cells are encoded."""
    return Encoding.counts(study, cells=EVALUATION_CELLS, maximum=cell_bound(study))
