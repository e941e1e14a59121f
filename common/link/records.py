"""Sealed envelopes as Flower records and back, by flwr's public API alone.

Parts travel as uint8 arrays, because Flower sends arrays in chunks and configuration bytes in one piece.
"""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from numpy.lib.format import write_array_header_1_0

from common import errors
from common.errors import ConsiliumError
from common.identity import Signature
from common.messages import Sealed

_ENVELOPE = "consilium"
_PARTS = "parts"
_MAX_HEADER = 256


def to_records(sealed: Sealed) -> RecordDict:
    """Pack a sealed envelope into the content of a Flower message."""
    arrays = {name: _array_of(part) for name, part in sealed.parts.items()}
    return RecordDict(
        {
            _ENVELOPE: ConfigRecord({"header": sealed.header, "signature": bytes(sealed.signature)}),
            _PARTS: ArrayRecord(arrays),
        }
    )


def from_records(content: RecordDict) -> Sealed:
    """Read a sealed envelope from a Flower message; raises CSL-130 for anything that is not exactly one."""
    try:
        if set(content) != {_ENVELOPE, _PARTS}:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "unexpected records")
        envelope, arrays = content[_ENVELOPE], content[_PARTS]
        if not isinstance(envelope, ConfigRecord) or not isinstance(arrays, ArrayRecord):
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "unexpected kinds of records")
        header, signature = envelope["header"], envelope["signature"]
        if (
            set(envelope) != {"header", "signature"}
            or not isinstance(header, bytes)
            or not isinstance(signature, bytes)
        ):
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "unexpected fields")
        return Sealed(header, Signature(signature), {name: _bytes_of(array) for name, array in arrays.items()})
    except (KeyError, ValueError, TypeError) as error:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, type(error).__name__) from error


def _array_of(part: bytes) -> FlowerArray:
    """Return what Flower makes of an array of uint8, without the copies that it makes on the way."""
    return FlowerArray("uint8", (len(part),), "numpy.ndarray", _header(len(part)) + part)


def _bytes_of(array: FlowerArray) -> bytes:
    """Return the bytes of a one-dimensional array of uint8, read by hand.

    ``array.numpy()`` would let numpy open archives, parse a header's Python and allocate what the sender claims. What
    Flower's own writer makes of uint8 is one fixed header, in which the length alone changes.
    """
    if array.dtype != "uint8" or len(array.shape) != 1 or array.shape[0] < 0:
        raise ConsiliumError(errors.MESSAGE_MALFORMED, "a part is not bytes")
    length = array.shape[0]
    body = len(array.data) - length
    if not 0 < body <= _MAX_HEADER or array.data[:body] != _header(length):
        raise ConsiliumError(errors.MESSAGE_MALFORMED, "a part is not bytes")
    return array.data[body:]


@lru_cache(maxsize=64)
def _header(length: int) -> bytes:
    """Return what stands before ``length`` bytes in the form that Flower gives an array."""
    header = BytesIO()
    write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (length,)})
    return header.getvalue()
