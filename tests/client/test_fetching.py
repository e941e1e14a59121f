"""A site without its backbone says from where on bytes are missing, and keeps no file that is not the manifest's."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from client.egress import EgressEntry
from client.fetching import Cache, Fetching, cache_folder
from client.ledger import MemoryLedger
from common.chunks import CHUNK, CHUNK_BYTES, NEED, NEED_BYTES, PLACE, SIZE, Place, dump_size
from common.errors import ConsiliumError
from common.identity import Identity, SiteId
from common.messages import ANYONE, OPERATOR, Envelope, Sealed, Stage, seal, unseal
from common.payloads import LEDGER_BYTES, LEDGER_PART
from common.study import BackboneManifest
from tests.studies import NOW, Signed, signed_study

SITE = SiteId("site-001")
FILES = {"config.json": b"{}", "model.safetensors": b"weights" * 1000, "tokenizer.json": b"[]"}
WEIGHTS = 1


def manifest_of(files: dict[str, bytes]) -> BackboneManifest:
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return BackboneManifest(
        name="tiny", source="tests", revision="1", licence="Apache-2.0", training_data="none", files=digests
    )


def give(cache: Cache, files: dict[str, bytes], *, step: int = CHUNK_BYTES, chunks: int = 1000) -> None:
    """Give a cache what it asks for, in so many chunks of a length at most."""
    for _ in range(chunks):
        if cache.need is None:
            return
        content = files[sorted(files)[cache.need.file]]
        chunk = content[cache.need.offset : cache.need.offset + step]
        cache.add(cache.need, len(content), chunk)


def kept(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(cache: Cache, place: Place, size: int, chunk: bytes) -> str:
    with pytest.raises(ConsiliumError) as caught:
        cache.add(place, size, chunk)
    return caught.value.code


@pytest.mark.parametrize("step", [1 << 20, 7000, 6999, 1000, 123])
def test_whatever_the_chunks_the_files_arrive_as_they_are(tmp_path: Path, step: int) -> None:
    cache = Cache(tmp_path / "cache", manifest_of(FILES))
    give(cache, FILES, step=step)
    assert cache.need is None
    assert kept(tmp_path / "cache") == FILES


def test_a_file_without_bytes_and_one_in_a_folder_arrive(tmp_path: Path) -> None:
    files = {**FILES, "merges.txt": b"", "onnx/model.safetensors": b"more"}
    cache = Cache(tmp_path, manifest_of(files))
    give(cache, files)
    assert cache.need is None
    assert kept(tmp_path) == files


def test_after_a_start_it_goes_on_where_the_disk_is(tmp_path: Path) -> None:
    manifest = manifest_of(FILES)
    give(Cache(tmp_path, manifest), FILES, step=1000, chunks=4)
    cache = Cache(tmp_path, manifest)
    assert cache.need == Place(WEIGHTS, 3000)
    with (tmp_path / f".{WEIGHTS}.part").open("ab") as part:
        part.write(FILES["model.safetensors"][3000:3500])
    assert Cache(tmp_path, manifest).need == Place(WEIGHTS, 3500)
    cache = Cache(tmp_path, manifest)
    give(cache, FILES)
    assert kept(tmp_path) == FILES


def test_a_file_that_was_whole_but_had_no_name_yet_is_finished_without_another_byte(tmp_path: Path) -> None:
    manifest = manifest_of(FILES)
    give(Cache(tmp_path, manifest), FILES, chunks=1)
    (tmp_path / f".{WEIGHTS}.part").write_bytes(FILES["model.safetensors"])
    cache = Cache(tmp_path, manifest)
    cache.add(Place(WEIGHTS, 7000), 7000, b"")
    assert cache.need == Place(WEIGHTS + 1, 0)


def test_more_on_disk_than_the_file_has_is_thrown_away_and_asked_again(tmp_path: Path) -> None:
    manifest = manifest_of(FILES)
    give(Cache(tmp_path, manifest), FILES, chunks=1)
    (tmp_path / f".{WEIGHTS}.part").write_bytes(FILES["model.safetensors"] + b"!")
    cache = Cache(tmp_path, manifest)
    cache.add(Place(WEIGHTS, 7001), 7000, b"")
    assert cache.need == Place(WEIGHTS, 0)
    give(cache, FILES)
    assert kept(tmp_path) == FILES


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_file_that_changed_on_disk_is_the_only_one_asked_again(tmp_path: Path, name: str) -> None:
    manifest = manifest_of(FILES)
    give(Cache(tmp_path, manifest), FILES)
    (tmp_path / name).write_bytes(b"another")
    cache = Cache(tmp_path, manifest)
    assert cache.need == Place(sorted(FILES).index(name), 0)
    give(cache, FILES, chunks=1)
    assert cache.need is None


@pytest.mark.parametrize(
    "place", [Place(WEIGHTS, 0), Place(WEIGHTS, 999), Place(WEIGHTS, 1001), Place(0, 0), Place(2, 0), Place(99, 0)]
)
def test_a_chunk_that_belongs_elsewhere_is_passed_over(tmp_path: Path, place: Place) -> None:
    cache = Cache(tmp_path, manifest_of(FILES))
    give(cache, FILES, step=1000, chunks=2)
    before = kept(tmp_path)
    cache.add(place, 7000, b"x")
    assert (cache.need, kept(tmp_path)) == (Place(WEIGHTS, 1000), before)


@pytest.mark.parametrize(
    ("size", "chunk"),
    [
        pytest.param(7000, b"", id="no bytes where some are missing"),
        pytest.param(1999, bytes(1000), id="more than the file has"),
        pytest.param(1000, b"x", id="bytes after the end"),
        pytest.param(1 << 30, bytes(CHUNK_BYTES + 1), id="longer than a chunk"),
        pytest.param((64 << 30) + 1, b"x", id="a file without end"),
    ],
)
def test_a_chunk_that_does_not_fit_its_file_is_refused_and_nothing_of_it_kept(
    tmp_path: Path, size: int, chunk: bytes
) -> None:
    cache = Cache(tmp_path, manifest_of(FILES))
    give(cache, FILES, step=1000, chunks=2)
    before = kept(tmp_path)
    assert refused(cache, Place(WEIGHTS, 1000), size, chunk) == "CSL-130"
    assert (cache.need, kept(tmp_path)) == (Place(WEIGHTS, 1000), before)
    give(cache, FILES)
    assert cache.need is None


def test_other_bytes_are_thrown_away_and_after_three_times_nothing_more_is_taken(tmp_path: Path) -> None:
    cache = Cache(tmp_path, manifest_of(FILES))
    give(cache, FILES, chunks=1)
    for _ in range(3):
        cache.add(Place(WEIGHTS, 0), 7000, bytes(7000))
        assert cache.need == Place(WEIGHTS, 0)
        assert set(kept(tmp_path)) == {"config.json"}
    assert refused(cache, Place(WEIGHTS, 0), 7000, FILES["model.safetensors"]) == "CSL-302"
    assert set(kept(tmp_path)) == {"config.json"}


def test_a_full_disk_is_said_and_a_little_is_always_left_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, manifest_of(FILES))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, (1 << 30) + 1))
    assert refused(cache, Place(0, 0), 2, b"{}") == "CSL-306"
    assert kept(tmp_path) == {}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, (1 << 30) + 2))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", full)
        assert refused(cache, Place(0, 0), 2, b"{}") == "CSL-306"
    assert (cache.need, kept(tmp_path)) == (Place(0, 0), {".0.part": b""})
    give(cache, {**FILES}, chunks=1)
    assert cache.need == Place(1, 0)


@pytest.mark.parametrize("name", ["run.py", "model.bin", "config.json.part"])
def test_a_manifest_with_files_of_another_kind_leaves_nothing_on_disk(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConsiliumError) as caught:
        Cache(tmp_path / "cache", manifest_of({**FILES, name: b"x"}))
    assert caught.value.code == "CSL-303"
    assert not (tmp_path / "cache").exists()


def test_another_manifest_has_another_folder(tmp_path: Path) -> None:
    one, other = manifest_of(FILES), manifest_of({**FILES, "config.json": b"{ }"})
    assert cache_folder(tmp_path, one) == cache_folder(tmp_path, manifest_of(FILES))
    assert cache_folder(tmp_path, one) != cache_folder(tmp_path, other)
    assert cache_folder(tmp_path, one).parent == tmp_path


class Waiting:
    """A site that waits for its backbone, and its operator."""

    def __init__(self, folder: Path) -> None:
        self.signed: Signed = signed_study(backbone=manifest_of(FILES).model_dump(mode="json"))
        self.left: list[EgressEntry] = []
        self.site = Fetching(
            self.signed.agreement,
            SITE,
            self.signed.sites[SITE],
            MemoryLedger(),
            folder,
            record=self.left.append,
            clock=lambda: NOW,
        )

    def request(self, stage: Stage, parts: dict[str, bytes], *, operator: Identity | None = None) -> Sealed:
        recipient = ANYONE if stage is Stage.IDENTIFY else SITE
        envelope = Envelope(self.signed.study.digest, stage, 1, 0, OPERATOR, recipient, parts)
        return seal(envelope, operator or self.signed.operator)

    def chunk(self, place: Place, size: int, chunk: bytes, *, operator: Identity | None = None) -> Sealed:
        parts = {PLACE: place.dump(), SIZE: dump_size(size), CHUNK: chunk}
        return self.request(Stage.BACKBONE, parts, operator=operator)

    def parts(self, stage: Stage, sealed: Sealed) -> dict[str, bytes]:
        """Return the verified parts of the answer."""
        reply = self.site.answer(stage, sealed)
        assert reply is not None
        key = self.signed.sites[SITE].public_key
        return dict(
            unseal(reply, key, study=self.signed.study.digest, stage=stage, sender=SITE, recipient=OPERATOR).parts
        )


def test_it_proves_who_it_is_and_says_what_it_lacks_with_every_answer(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    parts = waiting.parts(Stage.IDENTIFY, waiting.request(Stage.IDENTIFY, {"nonce": b"n" * 32}))
    assert len(parts.pop(LEDGER_PART)) == LEDGER_BYTES
    assert parts == {"nonce": b"n" * 32, NEED: Place(0, 0).dump()}
    parts = waiting.parts(Stage.BACKBONE, waiting.chunk(Place(0, 0), 2, b"{}"))
    assert len(parts.pop(LEDGER_PART)) == LEDGER_BYTES
    assert parts == {NEED: Place(1, 0).dump()}
    assert [(entry.stage, entry.part_bytes[NEED]) for entry in waiting.left] == [
        (Stage.IDENTIFY, NEED_BYTES),
        (Stage.BACKBONE, NEED_BYTES),
    ]
    assert all("backbone" in entry.guarantee for entry in waiting.left)


def test_with_the_last_byte_it_leaves_the_answer_to_the_site(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    for file, name in enumerate(sorted(FILES)):
        assert not waiting.site.is_complete
        reply = waiting.site.answer(Stage.BACKBONE, waiting.chunk(Place(file, 0), len(FILES[name]), FILES[name]))
    assert reply is None
    assert waiting.site.is_complete
    assert kept(tmp_path) == FILES


@pytest.mark.parametrize("stage", [stage for stage in Stage if stage not in (Stage.IDENTIFY, Stage.BACKBONE)])
def test_no_other_stage_is_answered_before(tmp_path: Path, stage: Stage) -> None:
    waiting = Waiting(tmp_path)
    with pytest.raises(ConsiliumError) as caught:
        waiting.site.answer(stage, waiting.request(stage, {"secagg": b""}))
    assert caught.value.code == "CSL-301"
    assert waiting.left == []


def test_bytes_that_the_operator_did_not_sign_for_this_place_are_refused(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path)
    stranger = waiting.chunk(Place(0, 0), 2, b"{}", operator=Identity.generate())
    right = waiting.chunk(Place(0, 0), 2, b"{}")
    swapped = Sealed(right.header, right.signature, {**right.parts, CHUNK: b"[]"})
    nowhere = waiting.chunk(Place(3, 0), 2, b"{}")
    for sealed, code in ((stranger, "CSL-121"), (swapped, "CSL-131"), (nowhere, "CSL-130")):
        with pytest.raises(ConsiliumError) as caught:
            waiting.site.answer(Stage.BACKBONE, sealed)
        assert caught.value.code == code
    assert (waiting.left, kept(tmp_path)) == ([], {})


def test_a_site_with_another_key_than_the_rosters_begins_nothing(tmp_path: Path) -> None:
    signed = signed_study(backbone=manifest_of(FILES).model_dump(mode="json"))
    with pytest.raises(ConsiliumError) as caught:
        Fetching(signed.agreement, SITE, Identity.generate(), MemoryLedger(), tmp_path / "cache", record=lambda _: None)
    assert caught.value.code == "CSL-122"
    assert not (tmp_path / "cache").exists()
