"""The card of a release says what was learned of which records, and which file holds what."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.adapters import of_study
from common.backbone import load
from server.release import card, write_release
from tests.modalities import checkpoint, deployed

METHODS = ("ffa-lora", "lora", "rolora", "ia3", "bitfit", "layer-norm", "bottleneck", "full", "head-only")


@pytest.mark.parametrize("method", METHODS)
def test_the_card_names_the_files_that_are_there(tmp_path: Path, method: str) -> None:
    backbone = checkpoint(tmp_path / "backbone", "bert")
    made = deployed("text-classification", backbone, adapter={"method": method, "last_layers": 1})
    model = of_study(made.study, load(backbone.folder, backbone.manifest))
    write_release(tmp_path / "release", model, made.signed, made.approvals, private=True)
    text = (tmp_path / "release" / "README.md").read_text(encoding="utf-8")
    there = {path.name for path in (tmp_path / "release").iterdir()}
    assert ("PeftModel" in text) == ("library_name: peft" in text) == ("adapter_model.safetensors" in there)
    assert ("`encoder.safetensors`" in text) == ("encoder.safetensors" in there)
    assert {"head.safetensors", "task.json"} <= there


def test_a_card_of_images_says_size_labels_and_what_else_the_study_did(tmp_path: Path) -> None:
    backbone = checkpoint(tmp_path / "backbone", "vit")
    made = deployed("image-classification", backbone, 6, adapter={"rank": 4, "site_ranks": {"site-001": 1}})
    text = card(made.study, private=True)
    assert "It assigns one of 3 labels to an image." in text
    assert "- **Reads.** images, each brought to 16 by 16 pixels" in text
    assert "- **Labels.** `home`, `ward`, `theatre`" in text
    assert "- **Ranks.** some sites train less than rank 4: site-001 rank 1" in text


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("masked-language-modelling", ""),
        ("token-classification", "each token's normalised features"),
        ("regression", "pooled, normalised features"),
    ],
)
def test_the_head_is_described_as_the_task_has_it(tmp_path: Path, task: str, said: str) -> None:
    made = deployed(task, checkpoint(tmp_path, "bert"), adapter={"last_layers": 1})
    text = card(made.study, private=True)
    assert ("head.safetensors" in text) == bool(said)
    assert said in text
