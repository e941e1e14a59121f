"""RULES 16 and the promise of silence: what the operator receives tells nothing of one site, and the tests can tell.

False alarms: each statistical bound below is at five and a half standard deviations or p = 1e-9, under 1e-7 a test.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MetricRecord
from numpy.typing import NDArray
from scipy.stats import chisquare

import common.secagg.opening
import common.secagg.server
import common.secagg.site
from client.site import Site
from common.identity import SiteId
from common.link.records import from_records
from common.messages import Sealed, Stage
from common.secagg.masks import Lanes
from common.secagg.rotation import rotate
from common.secagg.wire import MAX_VECTOR_BYTES, Kind, Reader
from tests.federations import federation

SITES = 4
DIMENSION = 4096
UNIFORM = 1e-9
DEVIATIONS = 5.5
TRAINED_ON = 48_271
"""How many records a site holds; distinctive, so that finding its bytes by chance is next to impossible."""
LOSS = 0.6931471805
CELLS = {SiteId(f"site-{i:03d}"): np.array([7_654_321 + i, 6_543_210 + 7 * i], dtype=np.int64) for i in range(SITES)}


def updates(seed: int) -> dict[SiteId, NDArray[np.float32]]:
    generator = np.random.default_rng(seed)
    return {SiteId(f"site-{i:03d}"): generator.normal(0.0, 0.05, DIMENSION).astype(np.float32) for i in range(SITES)}


def study(rounds: int = 1, *, releases: int = 1) -> dict[str, Any]:
    """Return changes that make a study short, with bands large enough for the cells here."""
    return {
        "training": {"rounds": rounds},
        "evaluation": {"releases": releases},
        "roster": [
            {"site": member.site, "key": member.key, "band": 2000} for member in federation(SITES).signed.study.roster
        ],
    }


def received(made_updates: dict[SiteId, NDArray[np.float32]], **changes: Any) -> list[Message]:
    """Run one study and return every reply, as the operator receives it."""
    messages: list[Message] = []
    federation(SITES, updates=made_updates, cells=CELLS, **{**study(), **changes}).run(tap=messages.append)
    return messages


def masked_payload(sealed: Sealed) -> bytes:
    return Reader(sealed.parts["secagg"], Kind.INPUT).blob(MAX_VECTOR_BYTES)


def findings(messages: list[Message]) -> list[str]:
    """Return everything in the operator's messages that says something of one site."""
    found = []
    secrets = {
        "records": TRAINED_ON,
        **{f"cells of {site}": int(value) for site, cells in CELLS.items() for value in cells},
    }
    patterns = {
        (name, pattern)
        for name, value in secrets.items()
        for pattern in (
            str(value).encode(),
            value.to_bytes(8, "little"),
            value.to_bytes(8, "big"),
            struct.pack("<d", value),
            struct.pack(">d", value),
            struct.pack("<f", value),
        )
    } | {("loss", struct.pack(form, LOSS)) for form in ("<d", ">d", "<f", ">f")}
    for message in messages:
        if set(message.content) != {"consilium"}:
            found.append(f"a record besides the envelope: {sorted(message.content)}")
            continue
        sealed = from_records(message.content)
        stage = Stage(message.metadata.message_type)
        if set(sealed.parts) != {"ledger", "nonce" if stage is Stage.IDENTIFY else "secagg"}:
            found.append(f"{stage.value}: parts {sorted(sealed.parts)}")
        everything = sealed.header + sealed.signature + b"".join(sealed.parts.values())
        found += [f"{stage.value}: {name} in clear" for name, pattern in patterns if pattern in everything]
        if stage in (Stage.FIT, Stage.COUNTS):
            counts = np.bincount(np.frombuffer(masked_payload(sealed), dtype=np.uint8), minlength=256)
            if stage is Stage.FIT and chisquare(counts).pvalue < UNIFORM:
                found.append("an update that does not look like noise")
    return found


def no_mask(lanes: Lanes, masks: object) -> None:
    """Mask nothing."""
    del lanes, masks


@pytest.fixture
def unmasked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common.secagg.site, "add_masks", no_mask)
    monkeypatch.setattr(common.secagg.opening, "add_masks", no_mask)


def test_no_metric_count_or_loss_of_a_site_is_among_the_messages() -> None:
    messages = received(updates(1))
    stages = {message.metadata.message_type for message in messages}
    assert {Stage.IDENTIFY, Stage.KEYS, Stage.FIT, Stage.UNMASK, Stage.COUNTS, Stage.COUNTS_UNMASK} <= stages
    assert findings(messages) == []


@pytest.mark.usefixtures("unmasked")
def test_it_is_found_when_masking_is_switched_off() -> None:
    found = findings(received(updates(1)))
    assert "an update that does not look like noise" in found
    assert any("cells of site-002 in clear" in line for line in found)


@pytest.mark.parametrize(
    "plant",
    [
        lambda record: record.content.__setitem__("metrics", MetricRecord({"num_examples": TRAINED_ON})),
        lambda record: record.content.__setitem__("metrics", MetricRecord({"loss": LOSS})),
    ],
)
def test_it_is_found_when_a_count_or_a_loss_is_planted_beside_the_envelope(
    monkeypatch: pytest.MonkeyPatch, plant: Callable[[Message], None]
) -> None:
    honest = Site._handle

    def telling(self: Site, stage: Stage, message: Message, context: Context) -> Message:
        reply = honest(self, stage, message, context)
        if stage is Stage.FIT:
            plant(reply)
        return reply

    monkeypatch.setattr(Site, "_handle", telling)
    messages: list[Message] = []
    made = federation(SITES, updates=updates(1), cells=CELLS, **study())
    with pytest.raises(Exception, match="CSL-602"):
        made.run(tap=messages.append)
    assert any("a record besides the envelope" in line for line in findings(messages))


def test_it_is_found_when_a_count_is_hidden_inside_a_protocol_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def telling(share: bytes, kind: bytes, owner: int, holder: int) -> bytes:
        del share, kind, owner, holder
        return TRAINED_ON.to_bytes(8, "big") * 4

    monkeypatch.setattr(common.secagg.site, "commit", telling)
    monkeypatch.setattr(common.secagg.server, "commit", telling)
    found = findings(received(updates(1)))
    assert any("records in clear" in line for line in found)


def payloads_of_two_worlds(runs: int) -> tuple[NDArray[np.float64], NDArray[np.float64], set[tuple[int, ...]]]:
    """Return how far the first site's payload leans towards its own update, in two worlds, and all lengths seen.

    In one world the first two sites hold x and y, in the other y and x: the sums are equal. The lean is the inner
    product of the payload, as signed numbers, with x - y, over many runs with fresh keys.
    """
    x, y = updates(5)[SiteId("site-000")], updates(6)[SiteId("site-001")]
    rest = updates(7)
    lengths: set[tuple[int, ...]] = set()
    leans: list[list[float]] = [[], []]
    for world, (first, second) in enumerate(((x, y), (y, x))):
        held = {**rest, SiteId("site-000"): first, SiteId("site-001"): second}
        for _ in range(runs):
            messages = received(held, evaluation={"releases": 0})
            lengths.add(tuple(len(part) for m in messages for part in from_records(m.content).parts.values()))
            fits = [from_records(m.content) for m in messages if m.metadata.message_type == Stage.FIT]
            (mine,) = [sealed for sealed in fits if b'"sender":"site-000"' in sealed.header]
            lanes = np.frombuffer(masked_payload(mine), dtype="<u2").astype(np.int16).astype(np.float64)
            leans[world].append(float(lanes @ rotated(x - y)))
    return np.array(leans[0]), np.array(leans[1]), lengths


def rotated(vector: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return a vector as the encoding rotates it, which anybody can do: the rotation is public."""
    return np.asarray(rotate(vector.astype(np.float64), "5a" * 32))


def standardised_gap(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the difference of two means in standard errors."""
    error = np.sqrt(first.var(ddof=1) / len(first) + second.var(ddof=1) / len(second))
    return float(abs(first.mean() - second.mean()) / max(error, 1e-12))


def test_who_holds_which_update_cannot_be_told_from_equal_sums() -> None:
    first, second, lengths = payloads_of_two_worlds(runs=20)
    assert len(lengths) == 1
    assert standardised_gap(first, second) < DEVIATIONS


@pytest.mark.usefixtures("unmasked")
def test_it_can_be_told_when_masking_is_switched_off() -> None:
    first, second, _ = payloads_of_two_worlds(runs=5)
    assert standardised_gap(first, second) > DEVIATIONS
