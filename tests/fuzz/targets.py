"""What reads bytes that somebody else wrote, one target each: a message or a coded error, and nothing else.

A target is a function of bytes that raises nothing but what it found. Its seeds come from one small study, whose keys
and dice are fixed, so that a seed reaches the same place in every process.
"""

from __future__ import annotations

import hashlib
import json
import random
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common import agreement, payloads
from common.agreement import SignedStudy, verify_agreement
from common.errors import ConsiliumError
from common.identity import Domain, Signature, SiteId
from common.link import records
from common.messages import OPERATOR, Envelope, Sealed, Stage, peek_sender, seal, unseal
from common.secagg import Encoding, Phase, ServerSession, SiteSession
from common.secagg.terms import Terms
from common.secagg.wire import Delivery, Hello, Kind, Prepare, Reader, read_deliveries, read_signatures
from common.study import Study
from tests.protocols import INPUT, Losses, Parties, answer, numbered, parties, relay, send_inputs
from tests.studies import NOW, Signed, signed_study

SITES = 5
"""The fewest of which one may be lost."""
LOST = SiteId("site-004")
SITE = SiteId("site-000")


@dataclass(frozen=True)
class Target:
    """One decoder: what to do with bytes, and real bytes to start from."""

    run: Callable[[bytes], object]
    seeds: Callable[[], list[bytes]]

    def __call__(self, raw: bytes) -> None:
        """Read bytes; whatever is raised is a finding, for a refusal is coded and passes."""
        with suppress(ConsiliumError):
            self.run(raw)


# the protocol's messages ------------------------------------------------------------------------------------------
DECODERS: Mapping[Kind, Callable[[Reader], object]] = {
    Kind.HELLO: Hello.read,
    Kind.PREPARE: Prepare.read,
    Kind.ACKNOWLEDGE: Delivery.read,
    Kind.ACKNOWLEDGE_REQUEST: read_deliveries,
    Kind.INPUT_REQUEST: read_signatures,
    Kind.VIEW_REQUEST: lambda reader: reader.indices(5),
    Kind.INPUT: lambda reader: reader.blob(1 << 20),
}
STEPS: tuple[tuple[Phase, bool], ...] = (
    (Phase.HELLO, False),
    (Phase.PREPARE, False),
    (Phase.ACKNOWLEDGE, False),
    (Phase.INPUT, False),
    (Phase.VIEW, True),
    (Phase.UNMASK, True),
    (Phase.UNMASK, False),
)
"""Every phase that carries messages, and whether a site was lost on the way there."""


@cache
def small_study() -> Signed:
    return signed_study(SITES)


def dice(seed: int) -> Callable[[int], bytes]:
    return random.Random(seed).randbytes


def at(phase: Phase, lossy: bool) -> Parties:
    """Return parties that have come to a phase, always by the same bytes."""
    made = parties(SITES)
    study, names = made.signed.study, frozenset(made.sites)
    made.server = ServerSession.for_study(study, entropy=dice(99))
    for place, site in enumerate(made.names):
        identity = made.signed.sites[site]
        made.sites[site] = SiteSession.for_study(study, identity, site, verified=names, entropy=dice(place))
    made.server.open_epoch(made.names)
    encoding, values = numbered(made)
    lost: Losses = {Phase.INPUT: (LOST,)} if lossy else {}
    while made.server.phase is not phase:
        if made.server.phase is Phase.READY:
            if phase is Phase.INPUT:
                made.server.begin(stage="fit", input_digest=INPUT, encoding=encoding)
            else:
                send_inputs(made, encoding, values, lost.get(Phase.INPUT, ()))
        else:
            relay(made)
    return made


@cache
def encoding() -> Encoding:
    return numbered(parties(SITES))[0]


def ask(made: Parties, phase: Phase, request: bytes) -> bytes:
    """Have a site answer, with its values where it is asked for them."""
    site = made.sites[SITE]
    if phase is not Phase.INPUT:
        return answer(site, phase, request)
    kind, values = numbered(made)
    return site.mask(site.open_input(request, input_digest=INPUT, stage="fit", encoding=kind), values[SITE])


class Stands:
    """Parties that wait in every phase; those that took something are set up again."""

    def __init__(self, take: Callable[[Parties, Phase, bytes], object]) -> None:
        self._take, self._made = take, dict[int, Parties]()

    def __call__(self, raw: bytes) -> None:
        step = raw[0] % len(STEPS) if raw else 0
        if step not in self._made:
            self._made[step] = at(*STEPS[step])
        self._take(self._made[step], STEPS[step][0], raw[1:])
        del self._made[step]


def requests() -> list[bytes]:
    return [bytes([step]) + at(*where).server.requests()[SITE] for step, where in enumerate(STEPS)]


def replies() -> list[bytes]:
    found = []
    for step, (phase, lossy) in enumerate(STEPS):
        made = at(phase, lossy)
        found.append(bytes([step]) + ask(made, phase, made.server.requests()[SITE]))
    return found


def read_wire(raw: bytes) -> None:
    for kind, decoder in DECODERS.items():
        if raw[1:2] == bytes([kind]):
            with Reader(raw, kind) as reader:
                decoder(reader)


def wire_seeds() -> list[bytes]:
    session = b"s" * 32
    deliveries = requests()[2][1:]
    return [
        *(reply[1:] for reply in replies()[:2]),
        deliveries[:2] + deliveries[2 + len(session) :],
        bytes([1, Kind.VIEW_REQUEST, 0, 3, 0, 0, 0, 2, 0, 4]),
        bytes([1, Kind.INPUT, 0, 0, 0, 3]) + b"abc",
        bytes([1, Kind.INPUT_REQUEST, 1, 0, 4]) + bytes(64),
    ]


def restore(raw: bytes) -> ServerSession:
    return ServerSession.restore(Terms.from_study(small_study().study), raw, encodings=[encoding()])


def stored() -> list[bytes]:
    return [at(*where).server.store() for where in STEPS]


# envelopes --------------------------------------------------------------------------------------------------------
def envelope() -> Sealed:
    """Return what the operator sends to a site."""
    parts = {"vector": payloads.dump_vector(np.ones(5, dtype=np.float32)), "round": payloads.dump_round(1)}
    made = small_study()
    return seal(Envelope(made.study.digest, Stage.FIT, 3, 0, OPERATOR, SITE, parts), made.operator)


def split(raw: bytes) -> tuple[bytes, bytes]:
    """Return the first field, after its length in two bytes, and the rest."""
    size = int.from_bytes(raw[:2], "big")
    return raw[2 : 2 + size], raw[2 + size :]


def join(first: bytes, rest: bytes) -> bytes:
    return len(first).to_bytes(2, "big") + first + rest


def open_envelope(raw: bytes) -> None:
    """Read an envelope whose header the sender itself may have signed, whatever it says."""
    made = small_study()
    header, rest = split(raw[1:])
    signature = made.operator.sign(Domain.MESSAGE, header) if raw[:1] == b"\x01" else Signature(rest[:64])
    parts = dict(zip(("round", "vector"), split(rest[64:]), strict=True))
    sealed = Sealed(header, signature, parts)
    with suppress(ConsiliumError):
        peek_sender(sealed)
    unseal(
        sealed,
        made.operator.public_key,
        study=made.study.digest,
        stage=Stage.FIT,
        sender=OPERATOR,
        recipient=SITE,
    )


def envelope_seeds() -> list[bytes]:
    sealed = envelope()
    tail = sealed.signature + join(sealed.parts["round"], sealed.parts["vector"])
    return [bytes([signs]) + join(sealed.header, tail) for signs in (0, 1)]


DTYPES = ("uint8", "float32", "object", "|u1", "")
STYPES = ("numpy.ndarray", "", "pickle")
RECORDS = ("consilium", "parts")


def open_records(raw: bytes) -> None:
    """Read a Flower message: the kinds, names and shape that it claims, then its header, then an array's bytes."""
    if len(raw) < 8:
        return
    dtype, stype, odd, dimensions = DTYPES[raw[0] % 5], STYPES[raw[1] % 3], raw[2], raw[3] % 3
    shape = tuple(int.from_bytes(raw[4 + 2 * at : 6 + 2 * at], "big") for at in range(dimensions))
    header, data = split(raw[8:])
    arrays = ArrayRecord({"vector": Array(dtype, shape, stype, data)})
    config = ConfigRecord({"header": odd if odd & 1 else header, "signature": raw[:4]})
    if odd & 2:
        config["more"] = 1
    if odd & 8:
        config["part.secagg"] = data
    content = RecordDict({RECORDS[0]: config})
    if not odd & 16:
        content[RECORDS[1]] = config if odd & 4 else arrays
    sealed = records.from_records(content)
    records.to_records(sealed)


def record_seeds() -> list[bytes]:
    header = envelope().header
    array = Array(np.arange(5, dtype=np.uint8))
    return [bytes([0, 0, odd, 1, 0, 5, 0, 0]) + join(header, array.data) for odd in range(32)]


def read_payload(raw: bytes) -> None:
    with suppress(ConsiliumError):
        payloads.parse_round(raw, 3)
    payloads.parse_vector(raw, 5)


def payload_seeds() -> list[bytes]:
    return [*envelope().parts.values(), payloads.dump_vector(np.full(5, np.inf, dtype=np.float32))]


# studies ----------------------------------------------------------------------------------------------------------
def read_canonical(raw: bytes) -> None:
    assert Study.from_canonical(raw).canonical() == raw


def read_toml(raw: bytes) -> None:
    study = Study.from_toml(raw.decode("utf-8", "replace"))
    assert Study.from_canonical(study.canonical()) == study


def as_toml(value: object) -> str:
    """Return a value as TOML; JSON's strings, numbers, booleans and arrays are TOML's too."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(item) for item in value) + "]"
    return json.dumps(value)


def toml_seeds() -> list[bytes]:
    fields = json.loads(small_study().study.canonical())
    lines = [f"{key} = {as_toml(_without_null(value))}" for key, value in fields.items() if value is not None]
    return ["\n".join(lines).encode(), b"created = 2026-11-24T00:00:00Z\n[training]\nlearning_rate = nan\n"]


def _without_null(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    return value


@cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="consilium-fuzz-"))


def read_agreement(raw: bytes) -> None:
    """Read a study's folder, whose operator may have signed anything."""
    made, place = small_study(), folder()
    canonical, signatures = split(raw[1:])
    (place / "study.json").write_bytes(canonical)
    (place / "signatures.json").write_bytes(signatures)
    signed, approvals = agreement.read(place)
    if raw[:1] == b"\x01":
        digest = hashlib.sha256(canonical).hexdigest()
        signed = SignedStudy(canonical, made.operator.sign(Domain.STUDY_SIMULATION, digest.encode()))
    verify_agreement(signed, approvals, made.operator.public_key, now=NOW, kind=made.study.kind)


def agreement_seeds() -> list[bytes]:
    made, place = small_study(), folder()
    agreement.write(place, made.signed, made.approvals)
    signatures = (place / "signatures.json").read_bytes()
    return [bytes([signs]) + join(made.signed.canonical, signatures) for signs in (0, 1)]


TARGETS: Mapping[str, Target] = {
    "wire": Target(read_wire, wire_seeds),
    "site": Target(Stands(ask), requests),
    "server": Target(Stands(lambda made, _, raw: made.server.receive(SITE, raw)), replies),
    "snapshot": Target(restore, stored),
    "envelope": Target(open_envelope, envelope_seeds),
    "records": Target(open_records, record_seeds),
    "payloads": Target(read_payload, payload_seeds),
    "canonical": Target(read_canonical, lambda: [small_study().study.canonical()]),
    "toml": Target(read_toml, toml_seeds),
    "agreement": Target(read_agreement, agreement_seeds),
}
