"""A distance is none where there is none, grows with the shift, and every look says what it saw."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from client.mismatch import calibration, feature_distance, label_shift, vocabulary
from client.training.features import Features
from client.training.pooled import head_inputs, logits_of
from common.adapters import attach
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.reference import measure_reference
from common.tasks import Task
from common.transfer import AdapterSpec, FeatureReference
from tests.client.verdict.conftest import Learned
from tests.client.verdict.sites import notes

WIDTH = 24
REFERENCE = FeatureReference(data="invented", mean=(0.5,) * WIDTH, deviation=(2.0,) * WIDTH)


def test_records_drawn_from_the_reference_are_as_far_as_chance_puts_them() -> None:
    """Mean of the squared distance over 300 sites against what is said; its standard error is 2 %, five are 10 %."""
    dice = np.random.default_rng(1)
    found = [feature_distance(dice.normal(0.5, 2.0, (50, WIDTH)), np.arange(50), REFERENCE) for _ in range(300)]
    ratio = np.mean([one.distance**2 / one.by_chance**2 for one in found])
    assert ratio == pytest.approx(1.0, rel=0.1)
    assert sum("no further than chance" in one.said for one in found) == 300


@pytest.mark.parametrize(("shift", "word"), [(1.0, "some way off"), (4.0, "far")])
def test_a_shift_of_the_means_is_measured_in_deviations(shift: float, word: str) -> None:
    inputs = np.random.default_rng(2).normal(0.5 + shift, 2.0, (400, WIDTH))
    found = feature_distance(inputs, np.arange(400), REFERENCE)
    assert found.distance == pytest.approx(shift * math.sqrt(WIDTH), rel=0.1)
    assert found.typical_shift == pytest.approx(shift / 2.0, rel=0.1)
    assert found.largest_shift >= found.typical_shift
    assert word in found.said


def test_a_patient_with_many_alike_records_is_no_better_known_for_them() -> None:
    inputs = np.random.default_rng(3).normal(0.5, 2.0, (40, WIDTH))
    alone = feature_distance(inputs, np.arange(40), REFERENCE)
    copied = feature_distance(np.tile(inputs, (5, 1)), np.tile(np.arange(40), 5), REFERENCE)
    assert (copied.distance, copied.by_chance) == pytest.approx((alone.distance, alone.by_chance))


def test_a_reference_of_another_width_and_no_records_are_refused() -> None:
    with pytest.raises(ConsiliumError, match="CSL-102"):
        feature_distance(np.zeros((3, WIDTH + 1)), np.arange(3), REFERENCE)
    with pytest.raises(ConsiliumError, match="CSL-504"):
        feature_distance(np.zeros((0, WIDTH)), np.arange(0), REFERENCE)


def test_label_shares_are_compared_with_even_ones_and_with_the_held_out() -> None:
    found = label_shift(np.array([0, 0, 0, 1]), np.array([0, 1]), ("a", "b", "c", "d"))
    assert found is not None
    assert (found.from_even, found.from_held_out, found.absent) == (0.5, 0.25, ("c", "d"))
    assert label_shift(np.array([0]), None, ()) is None


def test_words_that_the_tokeniser_does_not_know_are_counted() -> None:
    known = {"chest": 1, "pain": 2}

    def tokenise(texts: object) -> list[list[int]]:
        return [[known.get(word, 0) for word in text.split()] for text in list(texts)]  # type: ignore[call-overload]

    texts = ["chest pain", "chest xyz pain abc", "pain"]
    found = vocabulary(texts, tokenise, unknown=0, longest=3)
    assert found is not None
    assert (found.unknown, found.tokens_per_word, found.cut) == pytest.approx((2 / 7, 1.0, 1 / 3))
    assert vocabulary(["", " "], tokenise, unknown=0, longest=3) is None


def test_calibration_is_the_gap_between_confidence_and_being_right() -> None:
    """Four sure answers of which one is right: confidence near 1, three quarters too much."""
    logits = np.array([[50.0, 0.0]] * 4)
    found = calibration(logits, np.array([0, 1, 1, 1]))
    assert found is not None
    assert (found.error, found.confidence, found.accuracy) == pytest.approx((0.75, 1.0, 0.25))
    dice = np.random.default_rng(4)
    chances = dice.random(20_000)
    honest = calibration(np.log(np.stack([1 - chances, chances], axis=1)), (dice.random(20_000) < chances).astype(int))
    assert honest is not None
    assert honest.error < 0.02


@pytest.mark.parametrize("spec", [AdapterSpec(rank=2, last_layers=1), AdapterSpec(method="head-only")])
def test_what_enters_the_head_is_what_the_model_says_of_each_record(
    backbone: Backbone, task: Task, spec: AdapterSpec
) -> None:
    model = attach(backbone, spec, task, "5a" * 32)
    features = notes(task, model, 70, seed=1)
    inputs, logits = head_inputs(model, features), logits_of(model, features)
    assert len(inputs) == 70
    with torch.no_grad():
        for row in (0, 33, 69):
            known = features.outputs(model, features.batch(np.array([row])))[0].numpy()
            assert logits[row] == pytest.approx(known, abs=1e-4)
            assert model.head(torch.tensor(inputs[row], dtype=torch.float32)).numpy() == pytest.approx(known, abs=1e-4)


def test_a_reference_is_the_mean_and_deviation_of_what_enters_the_head(study_model: Learned) -> None:
    model, texts = study_model.model, ["chest pain", "mild cough with no fever", "fall", "severe pain since yesterday"]
    model.write_vector(study_model.start)
    reference = measure_reference(model, texts, data="invented")
    encoded = study_model.task.encode(texts, ["home"] * 4, np.arange(4))
    inputs = head_inputs(model, Features(model, encoded, cache=False))
    assert reference.mean == pytest.approx(inputs.mean(axis=0), abs=1e-5)
    assert reference.deviation == pytest.approx(inputs.std(axis=0), abs=1e-5)
    own_distance = feature_distance(inputs, np.arange(4), reference)
    assert own_distance.distance < 1e-3
    with pytest.raises(ConsiliumError, match="CSL-504"):
        measure_reference(model, texts[:1], data="invented")
