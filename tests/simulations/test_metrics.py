from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from common.errors import ConsiliumError
from simulations.metrics import (
    NOT_PRIVATE,
    SITE_FIGURES,
    SYNTHETIC,
    TUNED,
    Metrics,
    Score,
    SiteMetrics,
    read,
    standing_warnings,
    write,
)
from tests.simulations.runs import run, study

PROMISED = (
    "study_digest",
    "rounds",
    "pooled.accuracy",
    "pooled.macro_f1",
    "released.accuracy",
    "sites.0.id",
    "sites.0.accuracy",
    "sites.0.accuracy_local_only",
    "sites.0.epsilon",
    "sites.0.delta",
    "baselines.majority.accuracy",
    "baselines.local_only.accuracy",
    "baselines.federated_nonprivate.accuracy",
    "baselines.centralised_nonprivate.accuracy",
    "privacy.unit",
    "privacy.epsilon",
    "privacy.delta",
    "privacy.noise_multiplier",
    "privacy.sampling_rate",
    "privacy.steps",
    "traffic.bytes_up_per_site_round",
    "traffic.bytes_down_per_site_round",
    "traffic.vector_parameters",
    "seconds.total",
    "seconds.training",
    "seconds.secagg",
    "seconds.transport",
)
"""Keys that others read from metrics.json: none may go or be renamed."""


@pytest.fixture
def metrics() -> Metrics:
    return run(study())


def test_metrics_survive_writing_and_reading(metrics: Metrics, tmp_path: Path) -> None:
    write(metrics, tmp_path / "metrics.json")
    assert read(tmp_path / "metrics.json") == metrics


@given(
    accuracy=st.floats(0, 1),
    epsilon=st.floats(0, 1e6),
    delta=st.floats(0, 1),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_every_float_and_name_survives_json(accuracy: float, epsilon: float, delta: float, name: str) -> None:
    site = SiteMetrics(
        id=name,
        accuracy=accuracy,
        macro_f1=accuracy,
        epsilon=epsilon,
        delta=delta,
        train_examples=1,
        test_examples=1,
        units=1,
    )
    assert SiteMetrics.model_validate_json(json.dumps(site.model_dump(mode="json"))) == site


def test_equal_metrics_give_equal_sorted_bytes(metrics: Metrics, tmp_path: Path) -> None:
    write(metrics, tmp_path / "one.json")
    write(run(study()), tmp_path / "two.json")
    text = (tmp_path / "one.json").read_text(encoding="utf-8")
    assert text.encode() == (tmp_path / "two.json").read_bytes()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("key", PROMISED)
def test_the_file_holds_the_key_that_others_read(metrics: Metrics, key: str, tmp_path: Path) -> None:
    write(metrics, tmp_path / "metrics.json")
    value = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    for part in key.split("."):
        value = value[int(part)] if part.isdigit() else value[part]
    assert value is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.01, 1.01, "0.5", None, True])
def test_an_accuracy_is_a_finite_fraction(value: object) -> None:
    with pytest.raises(ValidationError):
        Score.model_validate({"accuracy": value, "macro_f1": 0.5, "examples": 10})


@pytest.mark.parametrize("part", ["privacy", "released", "seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_part_holds_a_number_that_is_not_finite(metrics: Metrics, part: str, value: float) -> None:
    held = getattr(metrics, part)
    name = {"privacy": "epsilon", "released": "high", "seconds": "total"}[part]
    with pytest.raises(ValidationError, match="finite"):
        type(held).model_validate(held.model_dump() | {name: value})


def test_nan_that_slipped_past_the_models_is_not_written(metrics: Metrics, tmp_path: Path) -> None:
    spoilt = metrics.model_copy(update={"pooled": metrics.pooled.model_copy(update={"accuracy": math.nan})})
    with pytest.raises(ConsiliumError, match="CSL-514"):
        write(spoilt, tmp_path / "metrics.json")
    assert not (tmp_path / "metrics.json").exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"surprise": 1}, "surprise"),
        ({"pooled": None}, "pooled"),
        ({"study_digest": "abc"}, "study_digest"),
        ({"sites": []}, "sites"),
        ({"rounds": 2.5}, "rounds"),
    ],
)
def test_reading_refuses_what_is_not_the_format_and_names_it(
    metrics: Metrics, change: dict[str, object], named: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps(metrics.model_dump(mode="json") | change), encoding="utf-8")
    with pytest.raises(ConsiliumError, match=rf"CSL-514.*{named}"):
        read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pooled": NaN}'])
def test_reading_refuses_a_broken_file(text: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConsiliumError, match="CSL-514"):
        read(path)


def test_reading_a_missing_file_and_writing_nowhere_are_coded_errors(metrics: Metrics, tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="CSL-514"):
        read(tmp_path / "absent.json")
    with pytest.raises(ConsiliumError, match="CSL-513"):
        write(metrics, tmp_path / "absent" / "metrics.json")


@pytest.mark.parametrize(
    ("private", "synthetic", "tuned", "missing"),
    [(False, False, False, NOT_PRIVATE), (True, True, False, SYNTHETIC), (True, False, True, TUNED)],
)
def test_a_run_cannot_hide_what_it_must_warn_of(private: bool, synthetic: bool, tuned: bool, missing: str) -> None:
    fields = run(study(), private=private, synthetic=synthetic, tuned=tuned).model_dump(mode="json")
    fields["warnings"] = [text for text in fields["warnings"] if text != missing]
    with pytest.raises(ValidationError, match="warnings"):
        Metrics.model_validate_json(json.dumps(fields))


def test_the_gravest_warning_stands_first() -> None:
    assert standing_warnings(private=False, synthetic=True, tuned=True) == (NOT_PRIVATE, SYNTHETIC, TUNED, SITE_FIGURES)
    assert standing_warnings(private=True, synthetic=False, tuned=False) == (SITE_FIGURES,)


def test_a_site_figure_cannot_be_marked_as_released(metrics: Metrics) -> None:
    fields = metrics.sites[0].model_dump() | {"released": True}
    with pytest.raises(ValidationError, match="released"):
        SiteMetrics.model_validate(fields)


@pytest.mark.parametrize("change", [{"low": 0.9}, {"high": 0.8}])
def test_a_released_figure_lies_in_its_interval(metrics: Metrics, change: dict[str, float]) -> None:
    assert metrics.released is not None
    with pytest.raises(ValidationError, match="low <= accuracy <= high"):
        type(metrics.released).model_validate(metrics.released.model_dump() | change)


def test_sites_are_named_once_and_rounds_rise(metrics: Metrics) -> None:
    fields = metrics.model_dump(mode="json")
    with pytest.raises(ValidationError, match="an id repeats"):
        Metrics.model_validate_json(json.dumps(fields | {"sites": fields["sites"] + fields["sites"][:1]}))
    with pytest.raises(ValidationError, match="rounds must rise"):
        Metrics.model_validate_json(json.dumps(fields | {"curve": fields["curve"][::-1]}))
