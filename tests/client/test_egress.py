"""Nothing leaves that the study does not allow, and what leaves is written down first."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from client.egress import Egress, EgressEntry
from common.chunks import NEED
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import OPERATOR, Envelope, Stage, unseal
from common.payloads import LEDGER_BYTES, LEDGER_PART
from tests.studies import signed_study

SIGNED = signed_study()
SITE = SiteId("site-000")


HEAD = b"h" * LEDGER_BYTES


def door_writing(write: Callable[[EgressEntry], None], head: bytes = HEAD) -> Egress:
    return Egress(SIGNED.study, SITE, SIGNED.sites[SITE], dimension=100, cells=2, witness=lambda: head, write=write)


def door() -> tuple[Egress, list[EgressEntry]]:
    entries: list[EgressEntry] = []
    return door_writing(entries.append), entries


def request(stage: Stage) -> Envelope:
    return Envelope(SIGNED.study.digest, stage, 3, 1, OPERATOR, SITE, {})


@pytest.mark.parametrize("stage", [stage for stage in Stage if not stage.value.startswith("query.")])
def test_a_reply_is_signed_bound_to_its_request_and_written_down(stage: Stage) -> None:
    egress, entries = door()
    sealed = egress.release(request(stage), {"secagg": b"x" * 100})
    reply = unseal(
        sealed,
        SIGNED.sites[SITE].public_key,
        study=SIGNED.study.digest,
        stage=stage,
        sender=SITE,
        recipient=OPERATOR,
    )
    assert (reply.instance, reply.attempt) == (3, 1)
    (entry,) = entries
    assert (entry.number, entry.study) == (1, SIGNED.study.digest)
    assert (entry.stage, entry.total_bytes) == (stage, sealed.size)
    assert entry.part_bytes == {"secagg": 100, LEDGER_PART: LEDGER_BYTES}
    assert entry.guarantee


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"secagg": b"", "loss": b"0.3"},
        {"loss": b"0.3"},
        {"secagg": bytes(100_000)},
    ],
)
@pytest.mark.parametrize("stage", [Stage.KEYS, Stage.FIT, Stage.UNMASK, Stage.COUNTS])
def test_a_part_that_is_not_listed_or_too_large_stays_inside(stage: Stage, parts: dict[str, bytes]) -> None:
    egress, entries = door()
    with pytest.raises(ConsiliumError) as caught:
        egress.release(request(stage), parts)
    assert caught.value.code == "CSL-601"
    assert entries == []


@pytest.mark.parametrize("stage", [Stage.OFFER, Stage.AGREED])
@pytest.mark.parametrize("parts", [{"approval": b"a" * 65}, {"secagg": b"x"}, {"study": b"x"}])
def test_to_an_offer_a_signature_may_leave_and_nothing_longer(stage: Stage, parts: dict[str, bytes]) -> None:
    egress, entries = door()
    with pytest.raises(ConsiliumError) as caught:
        egress.release(request(stage), parts)
    assert caught.value.code == "CSL-601"
    assert entries == []


@pytest.mark.parametrize("stage", list(Stage))
def test_where_the_ledger_ends_leaves_with_every_reply_or_nothing_does(stage: Stage) -> None:
    own = {
        Stage.IDENTIFY: {"nonce": b"n" * 32},
        Stage.BACKBONE: {NEED: b"n" * 16},
        Stage.OFFER: {"approval": b"a" * 64},
        Stage.AGREED: {},
    }
    parts = own.get(stage, {"secagg": b"x"})
    egress, _ = door()
    assert egress.release(request(stage), parts).parts[LEDGER_PART] == HEAD
    with pytest.raises(ConsiliumError) as caught:
        door_writing(lambda _: None, head=b"").release(request(stage), parts)
    assert caught.value.code == "CSL-601"
    with pytest.raises(ConsiliumError):
        egress.release(request(stage), {**parts, LEDGER_PART: HEAD})


def test_an_update_is_too_large_for_any_stage_but_its_own() -> None:
    egress, _ = door()
    update = bytes(1024 * 8 + 200)
    egress.release(request(Stage.FIT), {"secagg": update})
    for stage in (Stage.KEYS, Stage.VIEW, Stage.UNMASK, Stage.COUNTS):
        with pytest.raises(ConsiliumError):
            egress.release(request(stage), {"secagg": update})


@pytest.mark.parametrize(("stage", "always"), [(Stage.IDENTIFY, {"nonce": b"n" * 32}), (Stage.BACKBONE, {})])
def test_of_the_backbone_a_place_may_leave_and_nothing_longer(stage: Stage, always: dict[str, bytes]) -> None:
    egress, entries = door()
    egress.release(request(stage), always)
    egress.release(request(stage), {**always, NEED: b"n" * 16})
    assert [entry.part_bytes.get(NEED) for entry in entries] == [None, 16]
    for parts in ({NEED: b"n" * 17}, {"secagg": b"x"}, {"chunk": b"x"}):
        with pytest.raises(ConsiliumError) as caught:
            egress.release(request(stage), {**always, **parts})
        assert caught.value.code == "CSL-601"
    with pytest.raises(ConsiliumError):
        egress.release(request(Stage.FIT), {"secagg": b"x", NEED: b"n" * 16})
    assert len(entries) == 2


def test_nothing_leaves_when_it_cannot_be_written_down() -> None:
    def full(_: EgressEntry) -> None:
        raise OSError("disk full")

    egress = door_writing(full)
    with pytest.raises(OSError, match="disk full"):
        egress.release(request(Stage.KEYS), {"secagg": b"x"})
