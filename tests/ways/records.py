"""Tiny records and specifications of every task, and tiny checkpoints of every family that ways are tried on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.contents import Content, Recording
from common.study import Study
from common.task_specs import (
    AnyTask,
    AudioClassification,
    CategoryField,
    CausalLanguageModelling,
    ImageClassification,
    MaskedLanguageModelling,
    MultiLabelClassification,
    NumericField,
    Regression,
    Retrieval,
    TabularClassification,
    TextClassification,
    TokenClassification,
)
from common.ways import WAYS
from tests.encoders import WORDS
from tests.studies import fields

TRIED: Mapping[str, str] = {
    "bert": "bert",
    "gpt2": "gpt2",
    "llama": "llama",
    "vit": "vit",
    "mobilenet_v1": "mobilenet_v1",
    "wav2vec2": "wav2vec2",
    "ast": "audio-spectrogram-transformer",
}
"""The families of :mod:`tests.encoders` that stand for all, by what the model calls itself."""

_SIZES = {"vit": 16, "mobilenet_v1": 32}
_LABELS = ("home", "ward", "theatre")
_FIELDS = (
    NumericField(name="age", low=0, high=100),
    NumericField(name="pulse", low=30, high=200, text="heart rate"),
    CategoryField(name="sex", levels=("f", "m"), texts=("female", "male")),
)


def spec_of(task: str, family: str) -> AnyTask:
    """Return a small specification of a task, of the size that a family reads."""
    size = _SIZES.get(family, 32)
    specs: tuple[AnyTask, ...] = (
        TextClassification(labels=_LABELS, max_tokens=24),
        MultiLabelClassification(labels=_LABELS, max_tokens=24),
        TokenClassification(labels=("O", "SIGN"), max_tokens=24),
        CausalLanguageModelling(max_tokens=24),
        MaskedLanguageModelling(max_tokens=24),
        Retrieval(negatives=("fall yesterday", "mild cough", "no fever"), max_tokens=24),
        Regression(low=0, high=10, max_tokens=24),
        ImageClassification(labels=_LABELS, size=size),
        AudioClassification(labels=_LABELS, rate=1000, seconds=0.24, size=size),
        TabularClassification(labels=_LABELS, fields=_FIELDS, max_tokens=24, numbers=4),
    )
    return next(spec for spec in specs if spec.kind == task)


def study_of(way: str, task: str, family: str) -> Study:
    """Return a study that transfers in a way; raises CSL-102 where it cannot be written."""
    chosen, layers = WAYS[way], 2 if family == "mobilenet_v1" else 1
    adapter: dict[str, object] = {"method": chosen.method, "last_layers": layers}
    if chosen.mixed:
        adapter["site_ranks"] = {"site-000": 1}
    pretraining = {"rounds": 1, "objective": {"kind": _objective(family), "max_tokens": 24}}
    study = fields(
        task=None,
        adapter=adapter,
        pretraining=pretraining if chosen.pretrains else None,
    )[0]
    study["task"] = spec_of(task, family).model_dump(mode="json")
    return Study.from_fields(study)


def records_of(task: str, count: int, seed: int = 0) -> tuple[Sequence[Content], Sequence[str]]:
    """Return contents and labels of ``count`` records of a task, all different."""
    dice = np.random.default_rng(seed)
    texts = [" ".join(dice.choice(WORDS, size=int(dice.integers(3, 18)))) for _ in range(count)]
    labels = [str(dice.choice(_LABELS)) for _ in range(count)]
    if task == "multi-label-classification":
        labels = ["|".join(dice.choice(_LABELS, size=int(dice.integers(3)), replace=False)) for _ in range(count)]
    if task == "token-classification":
        labels = [" ".join(dice.choice(("O", "SIGN"), size=len(text.split()))) for text in texts]
    if task == "retrieval":
        labels = [" ".join(dice.choice(WORDS, size=6)) for _ in range(count)]
    if task == "regression":
        labels = [f"{dice.uniform(0, 10):.3f}" for _ in range(count)]
    if task == "image-classification":
        return [_image(dice) for _ in range(count)], labels
    if task == "audio-classification":
        return [_recording(dice) for _ in range(count)], labels
    if task == "tabular-classification":
        return [_row(dice) for _ in range(count)], labels
    return texts, labels


def _objective(family: str) -> str:
    return "causal-language-modelling" if family in ("gpt2", "llama") else "masked-language-modelling"


def _image(dice: np.random.Generator) -> NDArray[np.uint8]:
    height, width, channels = int(dice.integers(10, 40)), int(dice.integers(10, 40)), int(dice.choice([1, 3]))
    return dice.integers(256, size=(height, width, channels)).astype(np.uint8)


def _recording(dice: np.random.Generator) -> Recording:
    rate = int(dice.choice([1000, 1200, 1600]))
    moments = np.arange(int(rate * dice.uniform(0.1, 0.4))) / rate
    tone = np.sin(2 * np.pi * dice.uniform(50, 350) * moments) * dice.uniform(0.2, 0.9)
    return Recording(tone.astype(np.float32), rate)


def _row(dice: np.random.Generator) -> tuple[str | None, ...]:
    values = (f"{dice.integers(100)}", f"{dice.uniform(30, 200):.1f}", str(dice.choice(["f", "m"])))
    return tuple(None if dice.random() < 0.2 else value for value in values)
