"""Every task that can be stacked gets the updates of the loop; what cannot be is refused beforehand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from client.training.features import Features
from client.training.loop import train_privately
from common.adapters import AdaptedModel, of_study
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.study import Study, TrainingNoise, Unit
from common.ways import WAYS, refusal
from simulations.noise import SeededNoise
from simulations.options import Engine, check_engine, unstacked
from simulations.scenario import from_fields
from simulations.stacked import Charged, StackedTraining
from tests.simulations.scenarios import fields
from tests.simulations.test_stacked import PLAN, TRAINING, away, updates
from tests.ways.records import TRIED, records_of, study_of

Tiny = Callable[[str], Backbone]
SIZES = (9, 1, 0, 14)
"""Records of each site."""
PATIENTS = dataclasses.replace(PLAN, unit=Unit.PATIENT, max_records_per_unit=2)
_FAMILIES = {
    "text-classification": ("bert", "gpt2", "llama"),
    "multi-label-classification": ("bert",),
    "token-classification": ("bert",),
    "causal-language-modelling": ("llama",),
    "masked-language-modelling": ("bert",),
    "retrieval": ("bert",),
    "regression": ("bert",),
    "tabular-classification": ("bert",),
    "image-classification": ("vit", "mobilenet_v1"),
    "audio-classification": ("wav2vec2", "ast", "vit"),
}
_WAYS = ("feature-extraction", "ffa-lora", "bottleneck")


def _taken(way: str, task: str, family: str) -> bool:
    # Low-rank updates of a MobileNet are of its convolutions.
    convolves = family == "mobilenet_v1" and way == "ffa-lora"
    return refusal(way, task, TRIED[family]) is None and not convolves


TAKEN = [
    (way, task, family)
    for task, families in _FAMILIES.items()
    for family in families
    for way in _WAYS
    if _taken(way, task, family)
]


def charged(model: AdaptedModel, task: str, *, cache: bool) -> list[Charged]:
    """Return sites of different sizes, the same ones each time."""
    made = []
    for place, size in enumerate(SIZES):
        contents, labels = records_of(task, size, seed=place)
        units = np.arange(size, dtype=np.int64) // 3
        features = Features(model, model.task.encode(contents, labels, units), cache=cache)
        plan = dataclasses.replace(PATIENTS, population=10 * (place + 1))
        made.append(Charged(features, plan, SeededNoise(3, f"site-{place}"), away(model), round_index=1))
    return made


@pytest.mark.parametrize(("way", "task", "family"), TAKEN)
@pytest.mark.parametrize("cache", [True, False], ids=["cached", "computed"])
def test_a_stacked_site_gets_the_update_of_the_loop(tiny: Tiny, way: str, task: str, family: str, cache: bool) -> None:
    model = of_study(study_of(way, task, family), tiny(family))
    together = updates(StackedTraining(model, TRAINING, PLAN.noise)(charged(model, task, cache=cache)))
    for mine, site in zip(together, charged(model, task, cache=cache), strict=True):
        theirs = train_privately(
            model, site.features, site.plan, TRAINING, site.noise, start=site.start, round_index=site.round_index
        )
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)


EVERY = [
    (way, task, family)
    for way in WAYS
    for task, family in (
        ("text-classification", "bert"),
        ("text-classification", "gpt2"),
        ("text-classification", "llama"),
        ("image-classification", "vit"),
        ("image-classification", "mobilenet_v1"),
        ("audio-classification", "wav2vec2"),
        ("audio-classification", "ast"),
    )
    if refusal(way, task, TRIED[family]) is None
]


@pytest.mark.parametrize(("way", "task", "family"), EVERY)
def test_what_is_refused_beforehand_is_what_the_engine_refuses(tiny: Tiny, way: str, task: str, family: str) -> None:
    study = study_of(way, task, family)
    model = of_study(study, tiny(family))
    if check_refuses(study):
        with pytest.raises(ConsiliumError, match="CSL-520"):
            StackedTraining(model, study.training, TrainingNoise.GAUSSIAN)
    elif family == "mobilenet_v1" and way not in ("feature-extraction", "bottleneck"):
        # Which layers low-rank updates are of, the backbone alone says.
        with pytest.raises(ConsiliumError, match=r"CSL-520.*is not in a linear layer"):
            StackedTraining(model, study.training, TrainingNoise.GAUSSIAN)
    else:
        StackedTraining(model, study.training, TrainingNoise.GAUSSIAN)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": {"method": "rolora"}}, "rounds that train different weights"),
        ({"adapter": {"method": "ia3"}}, "vectors that scale"),
        ({"adapter": {"method": "bitfit"}}, "biases of layer norms"),
        ({"adapter": {"method": "layer-norm"}}, "layer norms"),
        ({"adapter": {"method": "full"}}, "layer norms or convolutions"),
        ({"adapter": {"site_ranks": {"West": 1}}}, "ranks of their own"),
        ({"pretraining": {"rounds": 1}}, "rounds that train different weights"),
        ({"privacy": {"noise": "discrete-gaussian"}}, "one by one"),
    ],
)
def test_a_reason_is_given_before_anything_is_read(changes: dict[str, object], reason: str) -> None:
    chosen = from_fields(fields(**changes))
    with pytest.raises(ConsiliumError, match=f"CSL-520.*{reason}"):
        check_engine(Engine.STACKED, chosen)
    check_engine(Engine.INLINE, chosen)


def check_refuses(study: Study) -> bool:
    """Whether a scenario with a study's adapter and pretraining is refused before anything is read."""
    pretraining = study.pretraining and study.pretraining.model_dump(mode="json")
    chosen = fields(adapter=study.adapter.model_dump(mode="json"), pretraining=pretraining)
    return unstacked(from_fields(chosen)) is not None


def test_every_task_is_among_them() -> None:
    assert {task for _, task, _ in TAKEN} == set(_FAMILIES)
