"""Whatever bytes come, from the network or from a signed peer, there is a message or a coded error, nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.identity import Domain
from common.secagg import Encoding, Phase, ServerSession, SiteSession
from common.secagg.wire import (
    MAX_INSTANCE,
    Delivery,
    Hello,
    Kind,
    Prepare,
    Reader,
    Writer,
    read_deliveries,
    read_signatures,
    write_deliveries,
    write_signatures,
)
from tests.protocols import INPUT, Parties, answer, numbered, parties, relay, send_inputs, set_up, ticket, total

FUZZ = settings(max_examples=150, deadline=None)
DECODERS: dict[str, Callable[[Reader], object]] = {
    "hello": Hello.read,
    "prepare": Prepare.read,
    "delivery": Delivery.read,
    "deliveries": read_deliveries,
    "signatures": read_signatures,
    "indices": lambda reader: reader.indices(5),
    "blob": lambda reader: reader.blob(1 << 20),
}
HELLO = Hello(b"n" * 32, b"k" * 32, 7, b"s" * 64)
PREPARE = Prepare(3, b"k" * 32, (b"", b"c" * 80), ((b"a" * 32, b"b" * 32),) * 2, b"s" * 64)
DELIVERY = Delivery(b"k" * 32, b"c" * 80, (b"p" * 32, b"q" * 32), b"s" * 64)


def valid() -> dict[str, bytes]:
    """Return one well-formed body a decoder."""
    writers = {name: Writer(Kind.HELLO) for name in DECODERS}
    HELLO.write(writers["hello"])
    PREPARE.write(writers["prepare"])
    DELIVERY.write(writers["delivery"])
    write_deliveries(writers["deliveries"], [(0, DELIVERY), (4, DELIVERY)])
    write_signatures(writers["signatures"], [(4, b"t" * 64), (1, b"s" * 64)])
    writers["indices"].indices((0, 2, 3))
    writers["blob"].blob(b"vector")
    return {name: writer.done() for name, writer in writers.items()}


def read(name: str, raw: bytes) -> object:
    with Reader(raw, Kind.HELLO) as reader:
        return DECODERS[name](reader)


@st.composite
def mutated(draw: st.DrawFn, raw: bytes) -> bytes:
    """Flip, cut, extend, repeat or overwrite some of the bytes."""
    found = bytearray(raw)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(found)))
        change = draw(st.sampled_from(("flip", "cut", "insert", "extreme", "tail")))
        if change == "flip" and at < len(found):
            found[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del found[at : at + draw(st.integers(1, 100))]
        elif change == "insert":
            found[at:at] = draw(st.binary(min_size=1, max_size=40))
        elif change == "extreme":
            size = min(draw(st.sampled_from((1, 4, 8, 32))), len(found) - at)
            found[at : at + size] = bytes([draw(st.sampled_from((0, 255, 127, 128)))]) * size
        else:
            found.extend(draw(st.binary(min_size=1, max_size=10)))
    return bytes(found)


@pytest.mark.parametrize("name", DECODERS)
def test_what_was_written_is_what_is_read(name: str) -> None:
    expected: dict[str, object] = {
        "hello": HELLO,
        "prepare": PREPARE,
        "delivery": DELIVERY,
        "deliveries": {0: DELIVERY, 4: DELIVERY},
        "signatures": {1: b"s" * 64, 4: b"t" * 64},
        "indices": (0, 2, 3),
        "blob": b"vector",
    }
    assert read(name, valid()[name]) == expected[name]


@pytest.mark.parametrize("name", DECODERS)
def test_every_truncation_and_every_tail_is_refused(name: str) -> None:
    raw = valid()[name]
    for size in range(len(raw)):
        with pytest.raises(ConsiliumError, match="CSL-401"):
            read(name, raw[:size])
    with pytest.raises(ConsiliumError, match="CSL-401"):
        read(name, raw + b"\x00")


@pytest.mark.parametrize("name", DECODERS)
@FUZZ
@given(data=st.data())
def test_decoders_raise_coded_errors_and_read_one_way_only(name: str, data: st.DataObject) -> None:
    raw = data.draw(st.one_of(st.binary(max_size=400).map(lambda tail: b"\x01\x02" + tail), mutated(valid()[name])))
    try:
        found = read(name, raw)
    except ConsiliumError as error:
        if error.code != "CSL-401":
            raise
        return
    # What can be read is what would be written: no message has two forms.
    writer = Writer(Kind.HELLO)
    if isinstance(found, (Hello, Prepare, Delivery)):
        found.write(writer)
    elif isinstance(found, tuple):
        writer.indices(found)
    elif isinstance(found, bytes):
        writer.blob(found)
    elif isinstance(found, dict) and name == "deliveries":
        write_deliveries(writer, found.items())
    elif isinstance(found, dict):
        write_signatures(writer, found.items())
    assert writer.done() == raw


@pytest.mark.parametrize("version", [0, 2, 255])
@pytest.mark.parametrize("kind", [*Kind, 0, 13, 255])
def test_another_version_or_kind_is_refused(version: int, kind: int) -> None:
    body = valid()["hello"][2:]
    with pytest.raises(ConsiliumError, match="CSL-401"):
        read("hello", bytes([version, kind]) + body)
    if kind != Kind.HELLO:
        with pytest.raises(ConsiliumError, match="CSL-401"):
            read("hello", bytes([1, kind]) + body)


@pytest.mark.parametrize("values", [(1, 0), (1, 1), (0, 5), (255,)])
def test_indices_out_of_order_or_out_of_range_are_refused(values: tuple[int, ...]) -> None:
    raw = Writer(Kind.HELLO).number(len(values), 1).fixed(bytes(values)).done()
    with pytest.raises(ConsiliumError, match="CSL-401"):
        read("indices", raw)


def test_a_length_beyond_its_bound_is_refused_before_anything_is_read() -> None:
    raw = Writer(Kind.HELLO).number(2**32 - 1, 4).done()
    with pytest.raises(ConsiliumError, match="too long"):
        read("blob", raw)


def at_phase(phase: Phase) -> tuple[Parties, Encoding]:
    """Return parties whose server waits in a phase; VIEW and the UNMASK after it come from a lost site."""
    made = parties(5)
    encoding, values = numbered(made)
    made.server.open_epoch(made.names)
    for earlier in (Phase.HELLO, Phase.PREPARE, Phase.ACKNOWLEDGE):
        if made.server.phase is phase:
            return made, encoding
        relay(made)
        assert made.server.phase is not earlier
    if phase is Phase.INPUT:
        made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
    else:
        send_inputs(made, encoding, values, [made.names[2]])
        if phase is Phase.UNMASK:
            relay(made)
    return made, encoding


CACHE: dict[Phase, tuple[Parties, Encoding]] = {}
REPLIES: dict[tuple[Phase, str], tuple[Parties, bytes]] = {}


def waiting(phase: Phase) -> tuple[Parties, Encoding]:
    """Return parties in a phase that no message has changed yet."""
    if phase not in CACHE:
        CACHE[phase] = at_phase(phase)
    return CACHE[phase]


ASKED = (Phase.HELLO, Phase.PREPARE, Phase.ACKNOWLEDGE, Phase.INPUT, Phase.VIEW, Phase.UNMASK)


@pytest.mark.parametrize("phase", ASKED)
@FUZZ
@given(data=st.data())
def test_a_site_answers_any_bytes_with_a_reply_or_a_coded_error(phase: Phase, data: st.DataObject) -> None:
    made, encoding = waiting(phase)
    name = made.names[0]
    site, good = made.sites[name], made.server.requests()[name]
    raw = data.draw(st.one_of(st.binary(max_size=300), mutated(good)))
    steps: dict[str, Callable[[bytes], object]] = {
        "prepare": site.prepare,
        "acknowledge": site.acknowledge,
        "open": lambda request: site.open_input(request, input_digest=INPUT, stage="fit", encoding=encoding),
        "view": site.view,
        "unmask": site.unmask,
    }
    own = {Phase.INPUT: "open", Phase.HELLO: "prepare"}.get(phase, phase.value)
    step = data.draw(st.sampled_from((own, own, own, *steps)))
    with suppress(ConsiliumError):
        steps[step](raw)
        CACHE.pop(phase)  # Something was accepted; the next example needs a fresh site.


@pytest.mark.parametrize("phase", ASKED)
@FUZZ
@given(data=st.data())
def test_the_server_takes_any_bytes_or_raises_a_coded_error(phase: Phase, data: st.DataObject) -> None:
    made, encoding = waiting(phase)
    name = made.names[1]
    key = (phase, name)
    if key not in REPLIES or REPLIES[key][0] is not made:
        request = made.server.requests()[name]
        if phase is Phase.INPUT:
            reply = made.sites[name].mask(ticket(made, name, request, encoding), numbered(made)[1][name])
        else:
            reply = answer(made.sites[name], phase, request)
        REPLIES[key] = (made, reply)
    raw = data.draw(st.one_of(st.binary(max_size=300), mutated(REPLIES[key][1])))
    with suppress(ConsiliumError):
        made.server.receive(name, raw)
        CACHE.pop(phase)
    with pytest.raises(ConsiliumError):
        made.server.receive(made.names[0], b"")


@pytest.mark.parametrize("phase", ASKED)
def test_every_single_bit_that_is_flipped_in_a_reply_is_noticed(phase: Phase) -> None:
    made, encoding = at_phase(phase)
    name = made.names[1]
    request = made.server.requests()[name]
    if phase is Phase.INPUT:
        reply = made.sites[name].mask(ticket(made, name, request, encoding), numbered(made)[1][name])
    else:
        reply = answer(made.sites[name], phase, request)
    # The masked vector itself is signed by the envelope around it, not here.
    start = 6 + encoding.packed_bytes if phase is Phase.INPUT else 0
    for at in range(start, len(reply)):
        flipped = bytearray(reply)
        flipped[at] ^= 1 << (at % 8)
        with pytest.raises(ConsiliumError, match="CSL-4"):
            made.server.receive(name, bytes(flipped))
    made.server.receive(name, reply)


@pytest.mark.parametrize("phase", [Phase.PREPARE, Phase.ACKNOWLEDGE, Phase.INPUT, Phase.VIEW, Phase.UNMASK])
def test_every_single_bit_that_is_flipped_in_a_request_is_noticed(phase: Phase) -> None:
    made, encoding = at_phase(phase)
    name = made.names[1]
    request = made.server.requests()[name]

    def step(raw: bytes) -> object:
        return ticket(made, name, raw, encoding) if phase is Phase.INPUT else answer(made.sites[name], phase, raw)

    for at in range(len(request)):
        flipped = bytearray(request)
        flipped[at] ^= 1 << (at % 8)
        with pytest.raises(ConsiliumError, match="CSL-4"):
            step(bytes(flipped))
    step(request)


def test_a_signed_hello_with_the_last_instance_number_stops_no_other_site() -> None:
    made = parties(5)
    made.server.open_epoch(made.names)
    cheat = made.names[4]
    replies = {name: made.sites[name].hello(request) for name, request in made.server.requests().items()}
    with Reader(replies[cheat], Kind.HELLO) as reader:
        hello = Hello.read(reader)
    for floor in (2**64 - 1, MAX_INSTANCE + 1):
        forged = replace(hello, floor=floor)
        signed = forged.signed(made.terms.study, made.server._epoch.nonce, 4)
        forged = replace(forged, signature=made.signed.sites[cheat].sign(Domain.SECAGG_HELLO, signed))
        writer = Writer(Kind.HELLO)
        forged.write(writer)
        with pytest.raises(ConsiliumError, match="CSL-401"):
            made.server.receive(cheat, writer.done())
        # A server that colludes passes it on.
        request = Writer(Kind.PREPARE_REQUEST).indices(range(5))
        for name in made.names[:4]:
            request.fixed(replies[name][2:])
        with pytest.raises(ConsiliumError, match="CSL-401"):
            made.sites[made.names[0]].prepare(request.fixed(writer.done()[2:]).done())


def test_random_sessions_survive_random_bytes() -> None:
    made = parties(4)
    generator = os.urandom
    for _ in range(300):
        raw = generator(1 + generator(1)[0])
        for site in made.sites.values():
            for step in (site.hello, site.prepare, site.acknowledge, site.view, site.unmask):
                with pytest.raises(ConsiliumError):
                    step(raw)
        with pytest.raises(ConsiliumError):
            made.server.receive(made.names[0], raw)
    set_up(made)
    encoding, values = numbered(made)
    send_inputs(made, encoding, values)
    relay(made)
    assert made.server.result().values.tolist() == total(values, made.names)


def test_the_sessions_are_what_the_package_exports() -> None:
    made = parties(4)
    assert isinstance(made.server, ServerSession)
    assert all(isinstance(site, SiteSession) for site in made.sites.values())
