"""What fuzzing found, byte for byte: each is read or refused with a code."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest

from tests.fuzz.targets import TARGETS, agreement_seeds, envelope, join, small_study, split, toml_seeds

BEYOND = 2**53 + 1
"""No double holds it, so RFC 8785 has no form for it."""


def record(data: bytes) -> bytes:
    """Return a Flower message with a proper header, of one array with these bytes."""
    return bytes([0, 0, 0, 1, 0, 5, 0, 0]) + join(envelope().header, data)


def array(head: str) -> bytes:
    """Return an array in NumPy's format that claims this of itself, and holds nothing."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode()


def archive() -> bytes:
    made = io.BytesIO()
    np.savez(made, np.zeros(3))
    return made.getvalue()


def claims(shape: str) -> bytes:
    return record(array(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({shape},)}}"))


def finding(name: str, target: str, raw: bytes) -> object:
    return pytest.param(target, raw, id=name)


@pytest.mark.parametrize(
    ("target", "raw"),
    [
        finding("an array of no bytes", "records", record(b"")),
        finding("no archive", "records", record(b"PK\x03\x04" + bytes(50))),
        finding("an archive", "records", record(archive())),
        finding("an array of an exabyte", "records", claims("1000000000000000000")),
        finding("a shape beyond 64 bits", "records", claims("9" * 23)),
        finding("an open string", "records", record(array('{"a\n  b\n c"""      '))),
        finding("deep arrays", "toml", b"a=" + b"[" * 5000),
        finding("a deep key", "toml", b"a" + b".a" * 5000 + b"=1"),
        finding("a long number", "toml", b"a=" + b"9" * 5000),
        finding(
            "a large number as TOML",
            "toml",
            toml_seeds()[0].replace(b'"last_layers" = 1', f'"last_layers" = {BEYOND}'.encode()),
        ),
        finding(
            "a large number as JSON",
            "canonical",
            small_study().study.canonical().replace(b'"last_layers":1', f'"last_layers":{BEYOND}'.encode()),
        ),
        finding(
            "deep signatures",
            "agreement",
            b"\x00" + join(split(agreement_seeds()[0][1:])[0], b"[" * 5000),
        ),
    ],
)
def test_what_was_found_is_read_or_refused_with_a_code(target: str, raw: bytes) -> None:
    TARGETS[target](raw)
