"""Sealed envelopes as Flower records and back, by flwr's public API alone.

Large parts travel as uint8 arrays, because Flower sends arrays in chunks. Small ones stand beside the header, since
over a network every record is requests of its own. A part has one form only, by its length.
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
_SMALL = 1 << 20
"""Bytes up to which a part stands beside the header."""
_PREFIX = "part."


def to_records(sealed: Sealed) -> RecordDict:
    """Pack a sealed envelope into the content of a Flower message."""
    small = {_PREFIX + name: part for name, part in sealed.parts.items() if len(part) <= _SMALL}
    envelope = ConfigRecord({"header": sealed.header, "signature": bytes(sealed.signature)})
    envelope.update(small)
    content = RecordDict({_ENVELOPE: envelope})
    large = {name: _array_of(part) for name, part in sealed.parts.items() if len(part) > _SMALL}
    if large:
        content[_PARTS] = ArrayRecord(large)
    return content


def from_records(content: RecordDict) -> Sealed:
    """Read a sealed envelope from a Flower message; raises CSL-130 for anything that is not exactly one."""
    try:
        if set(content) - {_PARTS} != {_ENVELOPE}:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "unexpected records")
        envelope, arrays = content[_ENVELOPE], content.get(_PARTS)
        if not isinstance(envelope, ConfigRecord) or not isinstance(arrays, ArrayRecord | None):
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "unexpected kinds of records")
        fields = {name: value for name, value in envelope.items() if isinstance(value, bytes)}
        parts = {name[len(_PREFIX) :]: part for name, part in fields.items() if name.startswith(_PREFIX)}
        if len(fields) != len(envelope) or set(fields) != {"header", "signature", *(_PREFIX + name for name in parts)}:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "unexpected fields")
        large = {} if arrays is None else {name: _bytes_of(array) for name, array in arrays.items()}
        if any(len(part) > _SMALL for part in parts.values()) or any(len(part) <= _SMALL for part in large.values()):
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "a part in the wrong form")
        if parts.keys() & large.keys() or (arrays is not None and not large):
            raise ConsiliumError(errors.MESSAGE_MALFORMED, "a part twice")
        return Sealed(fields["header"], Signature(fields["signature"]), parts | large)
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
