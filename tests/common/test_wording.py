"""A study in words: every task, way and part of it has a sentence, and what is not there has none."""

from __future__ import annotations

from typing import get_args

import pytest

from common.adapters import METHODS
from common.study import Study
from common.task_specs import NumericField, TaskKind
from common.transfer import PEFT_METHODS, AdapterSpec, Method, Personal, Training
from common.ways import TASKS
from common.wording import adapts, does, facts, field_words, has_head, keeps, listed, reads, trains
from tests.studies import fields
from tests.ways.records import spec_of


def study_of(task: str = "text-classification", **changes: object) -> Study:
    raw = fields(4, **changes)[0]
    raw["task"] = spec_of(task, "bert").model_dump(mode="json")
    return Study.from_fields(raw)


def test_every_task_does_and_reads_something_of_its_own() -> None:
    specs = [spec_of(task, "bert") for task in TASKS]
    assert len({does(spec) for spec in specs}) == len(TASKS)
    kinds = {"text": "texts", "image": "images", "audio": "recordings", "fields": "rows"}
    assert all(reads(spec).startswith(kinds[spec.content]) for spec in specs)


@pytest.mark.parametrize(("task", "labels"), [("image-classification", 3), ("regression", 0), ("retrieval", 0)])
def test_labels_are_counted_where_there_are_any(task: str, labels: int) -> None:
    found = dict(facts(study_of(task)))
    assert ("Labels" in found) == bool(labels)
    assert (f"{labels} labels" in found["Task"]) == bool(labels)


def test_a_plain_study_says_nothing_of_what_it_does_not_do() -> None:
    assert [heading for heading, _ in facts(study_of())] == ["Task", "Reads", "Labels", "Adapter", "Training"]


@pytest.mark.parametrize(("task", "alone"), [("text-classification", True), ("multi-label-classification", False)])
def test_records_without_a_label_are_named_where_the_task_can_tell_them(task: str, alone: bool) -> None:
    pretraining = {"rounds": 1, "objective": {"kind": "causal-language-modelling"}}
    said = dict(facts(study_of(task, pretraining=pretraining)))["Pretraining"]
    assert "in the first 1 of 3 rounds it predicts each token of a text" in said
    assert ("takes part in these alone" in said) == alone


@pytest.mark.parametrize(
    ("task", "method", "said"),
    [
        ("masked-language-modelling", "bitfit", "bitfit of all layers"),
        ("retrieval", "head-only", "the task's head alone, on the backbone as it is"),
        ("retrieval", "full", "full of all layers"),
        ("image-classification", "full", "full of all layers, and the task's head"),
    ],
)
def test_a_head_is_named_where_there_is_one(task: str, method: str, said: str) -> None:
    spec = AdapterSpec.model_validate({"method": method})
    assert adapts(spec, spec_of(task, "bert")) == said
    assert has_head(spec_of(task, "bert"), spec) == ("head" in said)


@pytest.mark.parametrize("method", ["head", "adapter", "interpolation"])
def test_what_a_site_keeps_never_leaves(method: str) -> None:
    assert keeps(Personal.model_validate({"method": method})).endswith("nothing of it leaves")
    assert keeps(Personal()) == ""


def test_the_schedule_stands_with_whoever_follows_it() -> None:
    training = Training(rounds=2, steps_per_round=1, learning_rate=0.5)
    assert trains(training) == "SGD at the sites, rate 0.5, cosine; FedAvg at the server, rate 1"
    adaptive = training.model_copy(update={"server_optimizer": "fedadam"})
    assert trains(adaptive) == "SGD at the sites, rate 0.5; FedAdam at the server, rate 1, cosine"


def test_of_many_names_the_first_are_listed_and_the_rest_counted() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(number) for number in range(1000)]).endswith("10, 11 and 988 more")
    assert field_words(NumericField(name="age", low=0, high=99.5)) == "age (0 to 99.5)"


def test_kinds_of_task_and_methods_have_one_list_each() -> None:
    assert set(get_args(TaskKind)) == set(TASKS)
    assert set(get_args(Method)) == set(METHODS)


def test_methods_that_peft_reads_are_methods() -> None:
    assert set(PEFT_METHODS) < set(METHODS)
