"""Envelopes as Flower records: one form for each part, and nothing else is read."""

from __future__ import annotations

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import ConsiliumError
from common.identity import Signature
from common.link import records
from common.link.records import from_records, to_records
from common.messages import Sealed

LARGE = bytes(range(256)) * 4097


@pytest.mark.parametrize(
    "parts", [{}, {"secagg": b"x"}, {"vector": LARGE, "round": b"1"}, {"vector": LARGE[: 1 << 20]}]
)
def test_an_envelope_comes_back_as_it_was(parts: dict[str, bytes]) -> None:
    sealed = Sealed(b"header", Signature(bytes(64)), parts)
    assert from_records(to_records(sealed)) == sealed


def test_what_is_small_is_one_record_and_what_is_large_travels_in_pieces() -> None:
    content = to_records(Sealed(b"h", Signature(bytes(64)), {"vector": LARGE, "round": b"1"}))
    assert set(content) == {"consilium", "parts"}
    assert set(to_records(Sealed(b"h", Signature(bytes(64)), {"round": b"1"}))) == {"consilium"}


def envelope(**fields: bytes | int) -> ConfigRecord:
    return ConfigRecord({"header": b"h", "signature": bytes(64), **fields})


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({}),
        RecordDict({"consilium": ConfigRecord({"header": b"h"})}),
        RecordDict({"consilium": envelope(more=b"")}),
        RecordDict({"consilium": envelope(more=1)}),
        RecordDict({"consilium": envelope(), "other": ConfigRecord({})}),
        RecordDict({"consilium": envelope(), "parts": ArrayRecord({})}),
        RecordDict({"consilium": envelope(), "parts": ConfigRecord({})}),
        RecordDict({"consilium": envelope(**{"part.vector": LARGE})}),
        RecordDict({"consilium": envelope(), "parts": ArrayRecord({"vector": records._array_of(b"small")})}),
        RecordDict({"consilium": envelope(), "parts": ArrayRecord({"vector": Array("float32", (1,), "x", LARGE)})}),
        RecordDict({"consilium": envelope(**{"part.a": b"1"}), "parts": ArrayRecord({"a": records._array_of(LARGE)})}),
    ],
)
def test_any_other_form_is_refused(content: RecordDict) -> None:
    with pytest.raises(ConsiliumError) as caught:
        from_records(content)
    assert caught.value.code == "CSL-130"
