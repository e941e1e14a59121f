"""What the operator keeps of a ledger tells it nothing, serves one ledger alone, and cannot be made up."""

from __future__ import annotations

import os

import pytest

from client.ledger import MemoryLedger
from client.ledger.book import Head
from client.ledger.witness import Witness
from common import errors
from common.errors import ConsiliumError
from common.identity import Identity
from common.parts import Digest
from common.payloads import LEDGER_BYTES

SITE, STRANGER = Identity.generate(), Identity.generate()
LEDGER, OTHER = "1a" * 32, "1b" * 32
HEAD = Head(3, 1 << 40, Digest("5a" * 32))


def witness(identity: Identity = SITE, ledger: str = LEDGER) -> Witness:
    return Witness(identity, ledger, os.urandom)


def not_read(by: Witness, sealed: bytes) -> None:
    with pytest.raises(ConsiliumError) as caught:
        by.open(sealed)
    assert caught.value.fault is errors.MESSAGE_MALFORMED


def test_a_site_opens_what_it_sealed_even_after_a_restart() -> None:
    sealed = witness().seal(HEAD)
    assert len(sealed) == LEDGER_BYTES
    assert witness(Identity.from_private_bytes(SITE.private_bytes())).open(sealed) == HEAD


def test_nobody_else_reads_a_head_or_makes_one_up() -> None:
    sealed = witness().seal(HEAD)
    not_read(witness(STRANGER), sealed)
    not_read(witness(), witness(STRANGER).seal(HEAD))
    for forged in (sealed[:-1], sealed + b"\x00", b"", bytes(LEDGER_BYTES)):
        not_read(witness(), forged)
    for place in range(LEDGER_BYTES):
        not_read(witness(), sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])


def test_a_head_of_another_ledger_of_the_same_site_is_not_read() -> None:
    """Else an operator that saw a trial ledger could show its head to the real one, which would have to be mended."""
    not_read(witness(), witness(ledger=OTHER).seal(HEAD))


def test_no_two_ledgers_have_one_name() -> None:
    assert len({MemoryLedger().name for _ in range(50)}) == 50


def test_what_two_operators_hold_of_one_head_shares_no_bytes() -> None:
    """Neither two operators, nor one that compares two replies, can tell that the chain ended with the same entry."""
    sealed = [witness(identity).seal(HEAD) for identity in (SITE, SITE, STRANGER)]
    pieces = [{one[start : start + 4] for start in range(LEDGER_BYTES - 3)} for one in sealed]
    # Of 3 · 69² pairs of four random bytes one is equal with probability 3.4e-6.
    assert not any(pieces[first] & pieces[second] for first, second in ((0, 1), (0, 2), (1, 2)))
    for plain in (bytes.fromhex(HEAD.digest)[:4], HEAD.number.to_bytes(8, "big"), bytes.fromhex(LEDGER)[:4]):
        assert not any(plain in one for one in sealed)
