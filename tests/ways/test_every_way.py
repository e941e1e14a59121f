"""Every way with every task: it runs privately, or is refused with the code and for the reason that the list says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.evaluation import cells, judged
from client.preflight import check
from client.training.features import Features
from client.training.loop import train_privately
from client.workload import ModelWorkload
from common import errors
from common.adapters import AdaptedModel, attach, of_study, ranks, shapes_of
from common.adapters.release import load_release, save_release
from common.anatomy import audio, image, text
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.accounting import EVALUATION_SCALE, EVALUATION_SENSITIVITY
from common.study import Study, Unit
from common.tasks import _TASKS, Encoded, Task, task_for
from common.transfer import AdapterSpec, Pretraining
from common.ways import FAMILIES, TASKS, WAYS, fits, refusal
from simulations.noise import SeededNoise
from tests.client.conftest import shaken
from tests.client.training.test_step import PLAN, Chosen, gradient_of
from tests.ways.records import TRIED, records_of, spec_of, study_of

Tiny = Callable[[str], Backbone]
EVERY = [(way, task, family) for way in WAYS for task in TASKS for family in TRIED]
SUPPORTED = [each for each in EVERY if refusal(each[0], each[1], TRIED[each[2]]) is None]
REFUSED = [
    (way, task, family)
    for way, task, family in EVERY
    if (way, task, family) not in SUPPORTED and (way == "lora" or refusal("lora", task, TRIED[family]) is None)
]
"""Where the task does not fit the family, one way stands for all."""
ONE_FAMILY = list({(way, task): (way, task, family) for way, task, family in reversed(SUPPORTED)}.values())
"""Each way with each task once, on the first family that does it."""
SLOWLY = [pytest.param(*each, marks=() if each in ONE_FAMILY else pytest.mark.slow) for each in SUPPORTED]
UNITS = [0, 0, 1, 1, 1, 2, 3, 3, 4]


def encoded(task: Task, name: str, units: list[int] = UNITS) -> Encoded:
    contents, labels = records_of(name, len(units))
    made = task.encode(contents, labels, np.array(units, dtype=np.int64))
    assert not made.dropped
    return made


def among(made: Encoded, kept: NDArray[np.int64]) -> Encoded:
    units = np.unique(made.units[kept], return_inverse=True)[1].astype(np.int64)
    numbers = None if made.numbers is None else made.numbers[kept]
    return Encoded(tuple(made.inputs[row] for row in kept), made.targets[kept], units, 0, numbers)


def objective_in(model: AdaptedModel, round_index: int) -> Task | None:
    return model.objective if model.is_pretraining(round_index) else None


@pytest.mark.parametrize(("way", "task", "family"), SLOWLY)
def test_preflight_accepts_what_is_called_supported(tiny: Tiny, way: str, task: str, family: str) -> None:
    model = of_study(study_of(way, task, family), tiny(family))
    assert check(model).dimension == model.dimension


@pytest.mark.parametrize(("way", "task", "family"), REFUSED)
def test_what_is_called_unsupported_is_refused_with_a_code(tiny: Tiny, way: str, task: str, family: str) -> None:
    with pytest.raises(ConsiliumError) as caught:
        of_study(study_of(way, task, family), tiny(family))
    assert caught.value.fault in (errors.ADAPTER_INVALID, errors.TASK_UNSUPPORTED, errors.STUDY_INVALID)


def test_the_list_knows_the_families_that_the_anatomies_know_and_every_task() -> None:
    assert set(FAMILIES) == {*text.FAMILIES, *image.FAMILIES, *audio.FAMILIES}
    assert set(TASKS) == set(_TASKS)


def test_the_list_has_a_reason_for_every_refusal_and_for_no_other() -> None:
    listed = list(fits())
    assert len(listed) == len(WAYS) * len(TASKS) * len(FAMILIES)
    assert all((fit.reason is None) == fit.supported for fit in listed)
    # Every way does something, and every task is done by some way on some family.
    assert {fit.way for fit in listed if fit.supported} == set(WAYS)
    assert {fit.task for fit in listed if fit.supported} == set(TASKS)


@pytest.mark.parametrize(("way", "task", "family"), ONE_FAMILY)
def test_one_unit_moves_a_step_by_at_most_the_clip_norm(tiny: Tiny, way: str, task: str, family: str) -> None:
    """End to end, from records to the sum, without noise, on neighbouring data sets, in every phase (RULES 11, 12)."""
    model = shaken(of_study(study_of(way, task, family), tiny(family)))
    plan = dataclasses.replace(PLAN, unit=Unit.PATIENT, max_records_per_unit=3, clip_norm=0.05)
    for round_index in model.phases():
        objective = objective_in(model, round_index)
        whole = encoded(objective or model.task, task)

        def step(records: Encoded, size: int, objective: Task | None = objective) -> NDArray[np.float64]:
            features = Features(model, records, objective=objective)
            return gradient_of(model, features, plan, Chosen(), micro_batch=size)

        with model.in_round(round_index):
            everyone = step(whole, 4)
            moves = [
                float(np.linalg.norm(everyone - step(among(whole, np.flatnonzero(whole.units != unit)), 3)))
                for unit in range(5)
            ]
        # Padding and batch shapes differ between the two: float32 rounding, far below the noise.
        assert max(moves) * plan.divisor / plan.clip_norm <= 1 + 1e-4
        assert max(moves) * plan.divisor / plan.clip_norm > 1e-3


@pytest.mark.parametrize(("way", "task", "family"), ONE_FAMILY)
def test_one_unit_moves_an_evaluation_by_at_most_its_sensitivity(tiny: Tiny, way: str, task: str, family: str) -> None:
    model = shaken(of_study(study_of(way, task, family), tiny(family)))
    whole = encoded(model.task, task)
    scores = judged(model, Features(model, whole, alone=True), alone=True).scores
    assert ((scores >= 0) & (scores <= 1)).all()
    everyone = cells(scores, whole.units)
    for unit in range(5):
        rest = among(whole, np.flatnonzero(whole.units != unit))
        others = cells(judged(model, Features(model, rest, alone=True), alone=True).scores, rest.units)
        moved = everyone - others
        assert moved[0] == EVALUATION_SCALE
        assert np.linalg.norm(moved) <= EVALUATION_SENSITIVITY


@pytest.mark.parametrize(("task", "family"), {task: family for _, task, family in ONE_FAMILY}.items())
def test_a_record_is_encoded_alike_whoever_is_beside_it(tiny: Tiny, task: str, family: str) -> None:
    model = of_study(study_of("ffa-lora", task, family), tiny(family))
    whole = encoded(model.task, task)
    contents, labels = records_of(task, len(UNITS))
    for row in range(len(UNITS)):
        alone = model.task.encode(contents[row : row + 1], labels[row : row + 1], np.zeros(1, dtype=np.int64))
        assert np.array_equal(alone.inputs[0], whole.inputs[row])
        assert np.array_equal(alone.targets[0], whole.targets[row])
        if whole.numbers is not None:
            assert alone.numbers is not None
            assert np.array_equal(alone.numbers[0], whole.numbers[row])


@pytest.mark.parametrize(("way", "task", "family"), ONE_FAMILY)
def test_a_site_trains_in_every_phase_and_only_what_the_phase_moves(
    tiny: Tiny, way: str, task: str, family: str
) -> None:
    study = with_blocks(study_of(way, task, family), tiny(family))
    model = of_study(study, tiny(family))
    before = (
        None if model.objective is None else Features(model, encoded(model.objective, task), objective=model.objective)
    )
    workloads = [
        ModelWorkload(
            study,
            SiteId(site),
            model,
            training=Features(model, encoded(model.task, task)),
            testing=Features(model, encoded(model.task, task), alone=True),
            noise=SeededNoise(1, site),
            pretraining=before,
        )
        for site in ("site-000", "site-001")
    ]
    vector = model.read_vector()
    for round_index in model.phases():
        updates = [workload.train(vector, round_index) for workload in workloads]
        with model.in_round(round_index):
            active = {name for name, _ in model.trainable()}
        expected = sum(model.get_parameter(name).numel() for name in active)
        assert np.count_nonzero(updates[1]) == expected
        moves = model.moves(round_index)
        assert moves is None or np.array_equal(updates[1] != 0, moves)
        if WAYS[way].mixed:
            assert 0 < np.count_nonzero(updates[0]) < expected
        vector = vector + updates[1]
    counts = workloads[1].evaluate(vector)
    assert counts.shape == (2,)


@pytest.mark.parametrize(("way", "task", "family"), ONE_FAMILY)
def test_a_release_gives_the_same_outputs(tiny: Tiny, tmp_path: Path, way: str, task: str, family: str) -> None:
    study = study_of(way, task, family)
    model = shaken(of_study(study, tiny(family)))
    save_release(model, tmp_path, study=study.digest)
    loaded = load_release(tmp_path, tiny(family))
    made = encoded(model.task, task)
    rows = np.arange(len(made))
    with torch.no_grad():
        found, wanted = (
            Features(each, made, cache=False).outputs(each, Features(each, made, cache=False).batch(rows))
            for each in (loaded, model)
        )
    assert torch.equal(found, wanted)


def with_blocks(study: Study, backbone: Backbone) -> Study:
    """Return a study with the blocks that its ranks ask for."""
    sites = [member.site for member in study.roster]
    found = ranks.blocks(study.adapter, shapes_of(of_study(study, backbone)), sites)
    changed = study.aggregation.model_copy(update={"blocks": found})
    return study.model_copy(update={"aggregation": changed})


def test_several_charges_of_a_phase_have_the_plans_guarantee(tiny: Tiny) -> None:
    """A plan that charges other steps than a round takes is refused in pretraining as in training."""
    study = study_of("continued-pretraining", "text-classification", "bert")
    model = of_study(study, tiny("bert"))
    assert model.objective is not None
    features = Features(model, encoded(model.objective, "text-classification"), objective=model.objective)
    with pytest.raises(ConsiliumError) as caught:
        train_privately(
            model, features, PLAN, study.training, SeededNoise(0, "x"), start=model.read_vector(), round_index=0
        )
    assert caught.value.fault is errors.PRIVACY_PARAMETER


def test_rows_of_fields_are_not_pretrained_on_without_a_study_either(tiny: Tiny) -> None:
    backbone, pretraining = tiny("bert"), Pretraining(rounds=1)
    task = task_for(spec_of("tabular-classification", "bert"), backbone)
    with pytest.raises(ConsiliumError, match=r"CSL-322.*pretraining is of texts"):
        attach(backbone, AdapterSpec(last_layers=1), task, "5a" * 32, pretraining=pretraining)
