from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConsiliumError
from simulations import scenario as scenarios
from simulations.scenario import KNOWN_PACKAGE, Baseline, from_fields, load, locate, shipped
from tests.simulations.scenarios import fields

REVISION = "1" * 40


def refusal(**changes: object) -> str:
    with pytest.raises(ConsiliumError) as caught:
        from_fields(fields(**changes))
    assert caught.value.code == "CSL-511"
    return caught.value.detail


def test_what_is_not_said_has_a_sensible_value() -> None:
    scenario = from_fields(fields())
    assert scenario.backbone.package == KNOWN_PACKAGE
    assert scenario.baselines == tuple(Baseline)
    assert scenario.privacy.noise_multiplier is None
    assert scenario.aggregation.clamp is None
    assert not scenario.synthetic


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"colour": "blue"}, "colour"),
        ({"training": {"epochs": 3}}, "training.epochs"),
        ({"title": None}, "title"),
        ({"privacy": {"epsilon": 0.0}}, "privacy.epsilon"),
        ({"privacy": {"epsilon": -1.0}}, "privacy.epsilon"),
        ({"privacy": {"delta": 0.0}}, "privacy.delta"),
        ({"privacy": {"sampling_rate": 1.5}}, "privacy.sampling_rate"),
        ({"privacy": {"max_records_per_unit": 3}}, "max_records_per_unit"),
        ({"privacy": {"unit": "patient"}}, "columns.unit"),
        ({"privacy": {"max_charges": 1}}, "privacy.max_charges"),
        ({"training": {"rounds": "2"}}, "training.rounds"),
        ({"task": {"labels": ["calm", "calm"]}}, "labels repeat"),
        ({"data": {"query": None}}, "either query or corpus"),
        ({"columns": None}, "columns"),
        ({"columns": {"site": None}}, "partition"),
        ({"partition": {"rule": "iid", "sites": 4}}, "partition"),
        ({"partition": {"rule": "iid", "sites": 2}, "columns": {"site": None}}, "partition.sites"),
        ({"partition": {"rule": "random", "sites": 4}, "columns": {"site": None}}, "partition.rule"),
        ({"split": {"test": 0.6, "validation": 0.4}}, "split"),
        ({"backbone": {"package": "other"}}, "licence"),
        ({"backbone": {"hub": "some/model", "licence": "MIT", "training_data": "none"}}, "revision"),
        ({"backbone": {"hub": "some/model", "revision": "main"}}, "backbone.revision"),
        ({"backbone": {"package": "a", "folder": "b"}}, "one of package, folder, hub"),
        ({"baselines": ["best"]}, "baselines"),
        ({"tuning": {"learning_rates": []}}, "tuning.learning_rates"),
        ({"tuning": {"learning_rates": [0.1], "rounds": 3}}, "tuning.rounds"),
        ({"seed": -1}, "seed"),
        ({"pretraining": {"rounds": 2}}, "pretraining.rounds"),
        ({"pretraining": {"rounds": 1}, "task": {"kind": "masked-language-modelling", "labels": None}}, "pretraining:"),
        (
            {
                "pretraining": {"rounds": 1},
                "task": {"kind": "image-classification", "max_tokens": None},
                "columns": {"text": None, "path": "path"},
            },
            "pretraining: is of texts",
        ),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], field: str) -> None:
    assert field in refusal(**changes)


def test_a_corpus_brings_its_own_columns_and_sites() -> None:
    hospitals = [{"name": name, "patients": 3} for name in "abc"]
    corpus = {"query": None, "corpus": {"kind": "triage", "hospitals": hospitals}}
    assert from_fields(fields(data=corpus, columns=None)).synthetic
    assert "columns" in refusal(data=corpus)
    assert "partition" in refusal(data=corpus, columns=None, partition={"rule": "iid", "sites": 4})
    assert "split.column" in refusal(data=corpus, columns=None, split={"column": "part"})
    assert "a name repeats" in refusal(data={"query": None, "corpus": {"hospitals": [hospitals[0]] * 3}}, columns=None)


def test_a_hub_backbone_needs_its_full_revision_and_provenance() -> None:
    hub = {"hub": "some/model", "revision": REVISION, "licence": "MIT", "training_data": "none"}
    assert from_fields(fields(backbone=hub)).backbone.revision == REVISION
    assert "training_data" in refusal(backbone={**hub, "training_data": None})


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_is_valid_in_both_forms(name: str) -> None:
    plain = load(locate(name))
    assert plain.name == name
    assert (getattr(plain.task, "label_texts", None) is not None) == (plain.task.content in ("text", "fields"))
    if "[full" in locate(name).read_text():
        assert load(locate(name), full=True) != plain


def test_full_overrides_only_what_it_names() -> None:
    plain, full = load(locate("medquad")), load(locate("medquad"), full=True)
    assert (plain.adapter.last_layers, full.adapter.last_layers) == (2, 0)
    assert full.adapter.rank == plain.adapter.rank
    assert full.privacy.epsilon == plain.privacy.epsilon == 8.0


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_the_full_form_is_checked_even_when_it_is_not_asked_for(tmp_path: Path) -> None:
    text = locate("medquad").read_text().replace("[full.adapter]", "[full.privacy]\nepsilon = 0.0\n[full.adapter]")
    with pytest.raises(ConsiliumError, match=r"CSL-511.*privacy\.epsilon"):
        load(write(tmp_path / "s.toml", text))


def test_full_is_refused_where_a_scenario_has_none() -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-511.*full"):
        load(locate("demo"), full=True)


@pytest.mark.parametrize("content", [b"name = ", b"name = 'a'\nname = 'b'", b"\xff\xfe"])
def test_a_broken_file_is_unreadable(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_bytes(content)
    with pytest.raises(ConsiliumError, match="CSL-510"):
        load(path)


def test_an_unknown_name_lists_what_there_is() -> None:
    with pytest.raises(ConsiliumError, match=r"CSL-510.*demo, digits, heart, medquad, pneumonia, sst2"):
        locate("nothing")


def test_scenarios_and_the_command_load_without_the_machine_learning_stack() -> None:
    heavy = ["torch", "transformers", "peft", "opacus", "flwr", "sklearn"]
    code = f"import sys, simulations.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_pinned_package_is_the_one_that_the_scenarios_name() -> None:
    for name in shipped():
        assert scenarios.load(locate(name)).backbone.package in (KNOWN_PACKAGE, None)
