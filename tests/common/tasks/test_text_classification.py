"""A text becomes tokens, a loss of its own, and nothing about it reaches an error."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from common import backbone as backbones
from common.task_specs import TextClassification
from common.tasks import Task, task_for
from tests.encoders import write_encoder


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    folder = tmp_path_factory.mktemp("bert")
    backbone = backbones.load(folder, write_encoder(folder))
    return task_for(TextClassification(labels=("no", "yes"), max_tokens=5), backbone)


def test_texts_are_cut_at_the_studys_length_and_padded_under_a_mask(task: Task) -> None:
    encoded = task.encode(["pain", "pain and fever and cough"], ["no", "yes"], np.array([0, 0]))
    assert [len(row) for row in encoded.inputs] == [3, 5]
    assert encoded.targets.tolist() == [0, 1]
    assert encoded.units.tolist() == [0, 0]
    ids, mask = task.pad(encoded.inputs)
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert ids.shape == mask.shape


@pytest.mark.parametrize(
    ("text", "label"),
    [("pain", "HIV positive"), ("pain", None), (None, "yes"), (float("nan"), "yes"), ("pain \ud800", "yes")],
)
def test_a_record_that_cannot_be_read_is_left_out_and_fails_no_other(task: Task, text: object, label: object) -> None:
    texts, labels = ["fever", text, "cough"], ["no", label, "yes"]
    encoded = task.encode(texts, labels, np.array([0, 1, 2]))  # type: ignore[arg-type]
    alone = task.encode(["fever", "cough"], ["no", "yes"], np.array([0, 2]))
    assert encoded.dropped == 1
    assert "dropped" not in repr(encoded)
    assert encoded.units.tolist() == [0, 2]
    assert encoded.targets.tolist() == alone.targets.tolist()
    assert all(map(np.array_equal, encoded.inputs, alone.inputs))


def test_a_text_of_any_length_and_an_empty_one_are_encoded(task: Task) -> None:
    encoded = task.encode(["pain " * 100_000, ""], ["no", "yes"], np.array([0, 1]))
    assert encoded.dropped == 0
    assert len(encoded.inputs[0]) == 5


def test_examples_without_tokens_are_padded_to_one_masked_place(task: Task) -> None:
    ids, mask = task.pad([np.zeros(0, dtype=np.int32)])
    assert ids.shape == mask.shape == (1, 1)
    assert mask.sum() == 0


def test_no_example_at_all_is_encoded_and_padded(task: Task) -> None:
    encoded = task.encode([], [], np.array([], dtype=np.int64))
    assert len(encoded) == 0
    assert task.pad(encoded.inputs)[0].shape == (0, 0)


def test_the_loss_of_an_example_is_its_own(task: Task) -> None:
    logits = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    both = task.loss(logits, torch.tensor([0, 1]))
    assert both.shape == (2,)
    assert torch.equal(both[:1], task.loss(logits[:1], torch.tensor([0])))
    assert torch.equal(both[:1], task.loss(logits, torch.tensor([0, 0]))[:1])


def test_every_feature_has_the_same_norm_whatever_the_padding_holds(task: Task) -> None:
    hidden = torch.randn(2, 4, 8)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    features = task.features(hidden, mask)
    assert torch.allclose(features.norm(dim=1), torch.full((2,), float(features[0].norm())))
    hidden[0, 2:] = 100.0
    assert torch.equal(task.features(hidden, mask), features)
