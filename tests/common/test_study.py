"""What a study refuses, and that its name is its content."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ConsiliumError
from common.study import Study
from tests.studies import NOW, fields

TOML = """
schema_version = 1
kind = "simulation"
title = "From TOML"
operator = "{operator}"
created = "2026-11-24T00:00:00Z"
expires = "2027-11-24T00:00:00Z"
stream = "{stream}"
[purpose]
duo = ["DUO:0000007"]
statement = "tests"
[backbone]
name = "tiny"
source = "tests"
revision = "1"
licence = "Apache-2.0"
training_data = "none"
files = {{ "model.safetensors" = "{stream}" }}
[task]
labels = ["no", "yes"]
[adapter]
[training]
rounds = 2
steps_per_round = 1
learning_rate = 1
[privacy]
epsilon = 8
delta = 1e-5
sampling_rate = 0.25
noise_multiplier = 1.5
clip_norm = 1
max_charges = 2
[evaluation]
[aggregation]
clamp = 1
"""


def toml(roster: int = 3) -> str:
    raw, operator, keys = fields(roster)
    text = TOML.format(operator=operator.public_key.hex(), stream=raw["stream"])
    for site, identity in keys.items():
        text += f'[[roster]]\nsite = "{site}"\nkey = "{identity.public_key.hex()}"\nband = 100\n'
    return text


def refusal(**changes: object) -> ConsiliumError:
    raw, _, _ = fields(4, **changes)
    with pytest.raises(ConsiliumError) as caught:
        Study.from_fields(raw)
    return caught.value


def test_a_study_is_authored_in_toml_and_integers_serve_as_numbers() -> None:
    study = Study.from_toml(toml())
    assert study.privacy.epsilon == 8.0
    assert [member.site for member in study.roster] == ["site-000", "site-001", "site-002"]


def test_broken_toml_is_a_coded_error_naming_the_place() -> None:
    with pytest.raises(ConsiliumError, match=r"line 1") as caught:
        Study.from_toml("title = =")
    assert caught.value.code == "CSL-101"


def test_the_digest_is_the_sha256_of_the_rfc8785_bytes_and_survives_a_round_trip() -> None:
    raw, _, _ = fields()
    study = Study.from_fields(raw)
    again = Study.from_canonical(study.canonical())
    assert again == study
    assert again.digest == study.digest
    assert rfc8785.dumps(json.loads(study.canonical())) == study.canonical()


def test_bytes_that_are_not_canonical_are_refused() -> None:
    study = Study.from_fields(fields()[0])
    spaced = json.dumps(json.loads(study.canonical())).encode()
    with pytest.raises(ConsiliumError) as caught:
        Study.from_canonical(spaced)
    assert caught.value.code == "CSL-103"


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(raw: bytes) -> None:
    with pytest.raises(ConsiliumError) as caught:
        Study.from_canonical(raw)
    assert caught.value.code in {"CSL-101", "CSL-102"}


@given(st.data())
def test_a_changed_byte_is_refused_or_is_another_study(data: st.DataObject) -> None:
    study = Study.from_fields(fields()[0])
    raw = bytearray(study.canonical())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    try:
        changed = Study.from_canonical(bytes(raw))
    except ConsiliumError:
        return
    assert changed.digest != study.digest


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"surprise": 1}, "surprise"),
        ({"privacy": {"surprise": 1}}, "privacy.surprise"),
        ({"privacy": {"epsilon": 0}}, "privacy.epsilon"),
        ({"privacy": {"epsilon": -1.0}}, "privacy.epsilon"),
        ({"privacy": {"epsilon": "8"}}, "privacy.epsilon"),
        ({"privacy": {"delta": 0.5}}, "privacy.delta"),
        ({"privacy": {"sampling_rate": 1.5}}, "privacy.sampling_rate"),
        ({"privacy": {"noise_multiplier": 0.0}}, "privacy.noise_multiplier"),
        ({"privacy": {"clip_norm": float("inf")}}, "privacy.clip_norm"),
        ({"privacy": {"max_charges": 1}}, "max_charges"),
        ({"privacy": {"max_records_per_unit": 2}}, "privacy"),
        ({"task": {"labels": ["a", "a"]}}, "task"),
        ({"task": {"label_texts": ["one"]}}, "task"),
        ({"adapter": {"method": "magic"}}, "adapter.method"),
        ({"aggregation": {"minimum_cohort": 5}}, "minimum_cohort"),
        ({"aggregation": {"bits": 7}}, "aggregation.bits"),
        ({"expires": "tomorrow"}, "expires"),
        ({"backbone": {"files": {"../model.safetensors": "0" * 64}}}, "backbone"),
        ({"purpose": {"duo": ["research"]}}, "purpose.duo"),
        ({"schema_version": 2}, "schema_version"),
        ({"software": "the newest"}, "software"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(changes: dict[str, object], names: str) -> None:
    error = refusal(**changes)
    assert error.code == "CSL-102"
    assert names in error.detail


@pytest.mark.parametrize("part", ["privacy", "roster", "backbone", "aggregation", "operator", "kind", "stream"])
def test_a_missing_part_is_refused_by_name(part: str) -> None:
    raw, _, _ = fields()
    del raw[part]
    with pytest.raises(ConsiliumError) as caught:
        Study.from_fields(raw)
    assert caught.value.code == "CSL-102"
    assert part in caught.value.detail


def test_the_roster_must_be_ordered_distinct_and_free_of_reserved_names() -> None:
    raw, _, _ = fields()
    roster = raw["roster"]
    assert isinstance(roster, list)
    assert "order" in refusal(roster=roster[::-1]).detail
    assert "repeats" in refusal(roster=[roster[0], *roster]).detail
    reserved = [{**roster[0], "site": "operator"}, *roster[1:]]
    assert "not names for a site" in refusal(roster=reserved).detail


def test_an_error_never_repeats_the_refused_value() -> None:
    assert "hunter2" not in str(refusal(operator="hunter2"))


def test_a_study_expires() -> None:
    study = Study.from_fields(fields(4, expires="2026-11-30T00:00:00Z")[0])
    with pytest.raises(ConsiliumError) as caught:
        study.check_valid_at(NOW)
    assert caught.value.code == "CSL-106"


def test_a_stranger_is_not_a_member() -> None:
    with pytest.raises(ConsiliumError) as caught:
        Study.from_fields(fields()[0]).member("nobody")
    assert caught.value.code == "CSL-122"


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_schedules_start_at_one_and_fall(schedule: str, half: float) -> None:
    training = Study.from_fields(fields(4, training={"schedule": schedule})[0]).training
    assert training.schedule_factor(0.0) == 1.0
    assert training.schedule_factor(0.5) == pytest.approx(half)
