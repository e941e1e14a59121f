"""Where features are kept changes no step: in memory, on disk, found there, damaged there, or kept nowhere."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.training import features as features_module
from client.training.features import Features
from client.training.folder import SealedFolder
from client.training.gradients import PerExampleGradients
from client.training.prefix import FrozenPrefix
from client.training.sealed import SealedFile
from client.training.step import rounded_sum
from client.training.store import FeatureStore
from common.adapters import AdaptedModel, attach
from common.backbone import Backbone
from common.identity import Identity
from common.tasks import Encoded, Task
from common.transfer import AdapterSpec
from simulations.noise import SeededNoise
from tests.client.conftest import shaken
from tests.client.training.test_discrete_step import DISCRETE
from tests.client.training.test_every_method import without
from tests.client.training.test_step import PLAN, Chosen, gradient_of

Encode = Callable[..., Encoded]
KEY = bytes(range(32))
LARGE = 1 << 30


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features"


@pytest.fixture(params=["ffa-lora", "head-only"])
def adapted(request: pytest.FixtureRequest, backbone: Backbone, task: Task) -> AdaptedModel:
    layers = {"rank": 2, "last_layers": 2} if request.param == "ffa-lora" else {}
    return shaken(attach(backbone, AdapterSpec.model_validate({"method": request.param, **layers}), task, "5a" * 32))


def on_disk(path: Path, key: bytes = KEY, disk_bytes: int = LARGE, memory_bytes: int = 0) -> FeatureStore:
    return FeatureStore(memory_bytes=memory_bytes, folder=SealedFolder(path, key, disk_bytes))


def nowhere() -> FeatureStore:
    return FeatureStore(memory_bytes=0)


def files(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.name != "lock") if path.exists() else []


def with_empties(encoded: Encoded) -> Encoded:
    """Put a record without any token before, among and behind the others."""
    nothing = (np.zeros(0, dtype=np.int32),)
    tokens = nothing + encoded.inputs[:3] + nothing + encoded.inputs[3:] + nothing
    return Encoded(tokens, np.arange(len(tokens)) % 3, np.arange(len(tokens)))


def noised(model: AdaptedModel, features: Features, micro_batch: int = 4) -> NDArray[np.float64]:
    """Return a noised step under noise that repeats."""
    return gradient_of(model, features, PLAN, SeededNoise(3, "step"), micro_batch)


class Spy:
    """Writes down the tokens of every record whose prefix is computed."""

    def __init__(self, model: AdaptedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[int, ...]] = []
        honest = model.prefix

        def watched(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            self.seen += [tuple(row[: int(kept.sum())].tolist()) for row, kept in zip(ids, mask.long(), strict=True)]
            return honest(ids, mask)

        monkeypatch.setattr(model, "prefix", watched)

    def of(self, encoded: Encoded) -> int:
        """Return how many of these records were computed."""
        mine = {tuple(row.tolist()) for row in encoded.inputs}
        return sum(tokens in mine for tokens in self.seen)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("exact", [False, True])
def test_a_noised_step_has_the_same_bits_from_memory_and_from_disk(
    adapted: AdaptedModel, encode: Encode, path: Path, exact: bool, alone: bool
) -> None:
    encoded = with_empties(encode(14))
    memory = Features(adapted, encoded, exact=exact, alone=alone)
    fresh = Features(adapted, encoded, exact=exact, alone=alone, store=on_disk(path))
    assert len(files(path)) == 1
    found = Features(adapted, encoded, exact=exact, alone=alone, store=on_disk(path))
    assert memory.is_cached
    assert fresh.is_cached
    assert memory.cache_bytes == fresh.cache_bytes == found.cache_bytes
    expected = noised(adapted, memory)
    assert np.array_equal(noised(adapted, fresh), expected)
    assert np.array_equal(noised(adapted, found), expected)


@pytest.mark.parametrize("alone", [False, True])
def test_a_noised_step_is_the_same_where_nothing_is_kept(adapted: AdaptedModel, encode: Encode, alone: bool) -> None:
    encoded = with_empties(encode(14))
    memory, computed = (Features(adapted, encoded, alone=alone, store=store) for store in (None, nowhere()))
    assert not computed.is_cached
    assert computed.cache_bytes == 0
    assert computed.is_each_alone == alone
    if alone:
        assert np.array_equal(noised(adapted, computed), noised(adapted, memory))
    assert np.allclose(noised(adapted, computed), noised(adapted, memory), atol=1e-4 * PLAN.clip_norm / PLAN.divisor)


def test_a_step_is_that_of_the_whole_model_but_for_what_float16_rounds(
    adapted: AdaptedModel, encode: Encode, path: Path
) -> None:
    encoded = encode(14)
    direct = gradient_of(adapted, Features(adapted, encoded, cache=False), PLAN, Chosen())
    for exact, tolerance in ((False, 1e-2), (True, 1e-5)):
        stored = gradient_of(adapted, Features(adapted, encoded, exact=exact, store=on_disk(path)), PLAN, Chosen())
        assert np.linalg.norm(stored - direct) < tolerance * np.linalg.norm(direct)


def in_order(rows: NDArray[np.int64], _: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Divide a batch as it comes, whatever the lengths."""
    return iter(np.split(rows, range(size, len(rows), size)))


@pytest.mark.parametrize("store", ["memory", "disk", "nowhere"])
def test_a_step_is_the_same_with_and_without_bucketing(
    adapted: AdaptedModel, encode: Encode, path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {"memory": None, "disk": on_disk(path), "nowhere": nowhere()}[store]
    features = Features(adapted, encode(14), store=kept)
    bucketed = [gradient_of(adapted, features, PLAN, Chosen(), micro_batch=size) for size in (1, 3, 14)]
    monkeypatch.setattr(features_module, "buckets", in_order)
    for step in (*bucketed[1:], gradient_of(adapted, features, PLAN, Chosen(), micro_batch=5)):
        assert np.linalg.norm(step - bucketed[0]) < 1e-4 * np.linalg.norm(bucketed[0])


@pytest.mark.parametrize("folder", [False, True])
def test_one_record_more_that_exceeds_the_memory_adds_its_own_gradient_and_changes_no_other(
    adapted: AdaptedModel, encode: Encode, path: Path, folder: bool
) -> None:
    """To the last bit: were what is not kept computed otherwise, one record would change all others (RULES 11)."""
    whole = encode(9)
    rest, _ = without(whole, 4, np.arange(9))
    most = int(FrozenPrefix(adapted, adapted.task).sizes(rest.inputs).sum())

    def summed(encoded: Encoded, chosen: list[int]) -> NDArray[np.int64]:
        store = on_disk(path, memory_bytes=most) if folder else FeatureStore(memory_bytes=most)
        features = Features(adapted, encoded, alone=True, store=store)
        assert (len(files(path)) == 1, features.is_cached) == (folder and encoded is whole, folder or encoded is rest)
        units = np.arange(len(features))
        with PerExampleGradients(adapted, adapted.trainable()) as gradients:
            return rounded_sum(adapted, features, np.array(chosen), units, DISCRETE.grid, gradients)

    fewer = summed(rest, list(range(8)))
    own = summed(whole, [4])
    assert own.any()
    assert np.array_equal(summed(whole, list(range(9))), fewer + own)


def test_a_second_start_finds_the_features_and_computes_no_record(
    adapted: AdaptedModel, encode: Encode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded, spy = encode(14), Spy(adapted, monkeypatch)
    Features(adapted, encoded, store=on_disk(path))
    assert spy.of(encoded) == 14
    spy.seen.clear()
    features = Features(adapted, encoded, store=on_disk(path))
    noised(adapted, features)
    assert spy.of(encoded) == 0
    assert len(spy.seen) == 6, "the invented records are judged at every start, together and alone"


def test_a_batch_opens_only_its_own_records(
    model: AdaptedModel, encode: Encode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, memory = Features(model, encode(14), store=on_disk(path)), Features(model, encode(14))
    opened: list[int] = []
    honest = SealedFile.read

    def watched(file: SealedFile, index: int) -> bytes:
        opened.append(index)
        return honest(file, index)

    monkeypatch.setattr(SealedFile, "read", watched)
    for rows in ([9, 2, 11], [2], [13, 0]):
        opened.clear()
        assert torch.equal(features.batch(np.array(rows)).inputs, memory.batch(np.array(rows)).inputs)
        assert opened == rows


@pytest.mark.parametrize("harm", ["a byte", "cut short", "another site's", "other records'"])
def test_a_file_that_is_not_what_was_written_is_computed_again(
    adapted: AdaptedModel, encode: Encode, path: Path, tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoded = encode(14)
    expected = noised(adapted, Features(adapted, encoded, store=on_disk(path)))
    (file,) = files(path)
    whole = file.read_bytes()
    if harm == "a byte":
        file.write_bytes(whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:])
    elif harm == "cut short":
        file.write_bytes(whole[: len(whole) // 2])
    else:
        other = tmp_path / "other"
        key = Identity.generate().derive_key("consilium/v1/features") if harm == "another site's" else KEY
        seed = 0 if harm == "another site's" else 7
        Features(adapted, encode(14, seed=seed), store=on_disk(other, key))
        files(other)[0].replace(file)
    with caplog.at_level(logging.WARNING):
        again = Features(adapted, encoded, store=on_disk(path))
    assert [record.getMessage()[:7] for record in caplog.records] == ["CSL-340"]
    assert again.is_cached
    assert np.array_equal(noised(adapted, again), expected)
    caplog.clear()
    assert np.array_equal(noised(adapted, Features(adapted, encoded, store=on_disk(path))), expected)
    assert caplog.records == []


@pytest.mark.parametrize("harm", ["records", "end"])
def test_what_is_damaged_while_a_study_runs_is_computed_again_and_said_once(
    adapted: AdaptedModel, encode: Encode, path: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    features = Features(adapted, encode(14), alone=True, store=on_disk(path))
    expected = noised(adapted, features)
    (file,) = files(path)
    if harm == "end":
        os.truncate(file, 100)
    else:
        with file.open("r+b") as stream:
            stream.seek(100)
            stream.write(bytes(file.stat().st_size - 100))
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(noised(adapted, features), expected)
        assert np.array_equal(noised(adapted, features), expected)
    assert [record.getMessage()[:7] for record in caplog.records] == ["CSL-340"]


def test_what_fits_in_memory_is_never_written(model: AdaptedModel, encode: Encode, path: Path) -> None:
    one, two = encode(6), encode(6, seed=1)
    most = int(FrozenPrefix(model, model.task).sizes(one.inputs).sum())
    store = on_disk(path, memory_bytes=most)
    Features(model, one, store=store)
    assert files(path) == []
    # The memory is for all together.
    Features(model, two, store=store)
    assert len(files(path)) == 1


@pytest.mark.parametrize("case", ["no folder", "no room on disk", "a folder that cannot be made"])
def test_features_that_cannot_be_kept_fail_nothing_and_are_said(
    model: AdaptedModel, encode: Encode, tmp_path: Path, case: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = {
        "no folder": nowhere(),
        "no room on disk": on_disk(tmp_path / "features", disk_bytes=500),
        "a folder that cannot be made": on_disk(tmp_path / "file" / "features"),
    }[case]
    with caplog.at_level(logging.WARNING):
        features = Features(model, encode(6), store=store)
    assert [record.getMessage()[:7] for record in caplog.records] == ["CSL-341"]
    assert not features.is_cached
    assert np.isfinite(noised(model, features)).all()


def test_no_hidden_state_and_no_token_is_on_disk_in_clear_at_any_time(
    adapted: AdaptedModel, encode: Encode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode(14)
    prefix = FrozenPrefix(adapted, adapted.task)
    secrets = [row.numpy().tobytes()[:8] for row in prefix.gathered(encoded.inputs)]
    secrets += [row.astype(kind).tobytes() for row in encoded.inputs for kind in ("<i4", "<i8") if len(row) > 3]
    assert all(len(secret) >= 8 for secret in secrets)
    looked: list[int] = []
    honest = os.fsync

    def look(descriptor: int = -1) -> None:
        content = b"".join(file.read_bytes() for file in path.iterdir())
        looked.append(len(content))
        assert not [secret for secret in secrets if secret in content]
        if descriptor >= 0:
            honest(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    Features(adapted, encoded, store=on_disk(path))
    look()
    assert len(looked) == 2
    assert min(looked) > sum(len(row) for row in prefix.gathered(encoded.inputs))


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_fingerprint_changes_with_every_record_their_order_and_their_bounds(
    model: AdaptedModel, data: st.DataObject
) -> None:
    record = st.lists(st.integers(0, 15), max_size=5).map(lambda row: np.array(row, dtype=np.int32))
    records = st.lists(record, max_size=5).map(tuple)
    one, two = data.draw(records), data.draw(records)
    prefix = FrozenPrefix(model, model.task)
    same = [row.tolist() for row in one] == [row.tolist() for row in two]
    assert (prefix.fingerprint(one) == prefix.fingerprint(two)) == same
    if len(one) > 1:
        joined = (np.concatenate(one[:2]), np.zeros(0, dtype=np.int32), *one[2:])
        same = [row.tolist() for row in one] == [row.tolist() for row in joined]
        assert (prefix.fingerprint(one) == prefix.fingerprint(joined)) == same


def test_the_fingerprint_changes_with_all_that_decides_what_is_kept(
    backbone: Backbone, task: Task, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = encode(5).inputs
    two, one, head = (
        attach(backbone, spec, task, "5a" * 32)
        for spec in (
            AdapterSpec(rank=2, last_layers=2),
            AdapterSpec(rank=2, last_layers=1),
            AdapterSpec(method="head-only"),
        )
    )
    manifest = backbone.manifest.model_copy(update={"files": {**backbone.manifest.files, "config.json": "0" * 64}})
    other = attach(
        dataclasses.replace(backbone, manifest=manifest), AdapterSpec(rank=2, last_layers=2), task, "5a" * 32
    )
    prefixes = [
        FrozenPrefix(two, two.task),
        FrozenPrefix(one, one.task),
        FrozenPrefix(head, head.task),
        FrozenPrefix(other, other.task),
        FrozenPrefix(two, two.task, alone=True),
        FrozenPrefix(two, two.task, exact=True),
    ]
    found = {prefix.fingerprint(tokens) for prefix in prefixes}
    monkeypatch.setattr("client.training.prefix.version", lambda name: f"{name} of another day")
    found.add(FrozenPrefix(two, two.task).fingerprint(tokens))
    assert len(found) == len(prefixes) + 1


def test_an_adapter_with_the_same_prefix_shares_the_file(
    model: AdaptedModel, backbone: Backbone, task: Task, encode: Encode, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = encode(6)
    Features(model, encoded, store=on_disk(path))
    other = attach(backbone, AdapterSpec(method="lora", rank=4, last_layers=2), task, "6b" * 32)
    spy = Spy(other, monkeypatch)
    Features(other, encoded, store=on_disk(path))
    assert spy.of(encoded) == 0


def test_joined_and_chosen_records_are_those_of_their_sites_wherever_these_keep_them(
    adapted: AdaptedModel, encode: Encode, path: Path
) -> None:
    parts = [encode(5), encode(0), encode(4, seed=1), encode(6, seed=2)]
    stores = [None, None, on_disk(path), nowhere()]
    mixed = Features.joined(
        tuple(Features(adapted, part, alone=True, store=store) for part, store in zip(parts, stores, strict=True))
    )
    memory = Features.joined(tuple(Features(adapted, part, alone=True) for part in parts))
    assert memory.is_cached
    assert not mixed.is_cached
    assert mixed.cache_bytes < memory.cache_bytes
    assert np.array_equal(noised(adapted, mixed), noised(adapted, memory))
    rows = np.array([14, 3, 6, 3, 0, 8])
    some, same = mixed.subset(rows, np.arange(6)), memory.subset(rows, np.arange(6))
    assert np.array_equal(noised(adapted, some), noised(adapted, same))
    again = some.subset(np.array([2, 0]), np.arange(2))
    assert torch.equal(again.batch(np.arange(2)).inputs, memory.batch(np.array([6, 14])).inputs)
