"""Planted negative transfer is found, harmless transfer is not accused, and a verdict survives its file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from client import evaluation
from client.judgement import SiteVerdict, keep_verdict, kept_verdict
from client.judging import fitted, judge
from client.verdict import Candidate, Outcome
from common.adapters import AdaptedModel, attach
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.parts import Digest
from common.reference import measure_reference
from common.study import Study
from common.tasks import Task
from common.transfer import AdapterSpec
from tests.client.verdict.conftest import Learned
from tests.client.verdict.sites import LABELS, ROTATED, notes, own
from tests.studies import fields

QUICK = {"method": "head", "steps": 30, "learning_rate": 1.0}


def study(**changes: object) -> Study:
    raw, _, _ = fields(4, task={"labels": list(LABELS)}, personal=QUICK, **changes)
    return Study.from_fields(raw)


def judged(made: Learned, names: tuple[str, ...], *, records: int = 1, training: int = 40) -> SiteVerdict:
    site = own(made.model, notes(made.task, made.model, training, seed=20, names=names), made.start)
    held_out = notes(made.task, made.model, 60, seed=21, names=names, records=records)
    return judge(study(privacy={"unit": "patient", "max_records_per_unit": 4}), site, made.shared, held_out)


def test_planted_negative_transfer_is_found_and_the_shared_model_is_not_kept(study_model: Learned) -> None:
    found = judged(study_model, ROTATED, training=80)
    assert found.decision.outcome is Outcome.HARMED
    assert found.decision.keep in (Candidate.LOCAL, Candidate.BACKBONE, Candidate.PERSONAL)


def test_a_small_site_that_is_like_the_others_is_helped_or_undecided(study_model: Learned) -> None:
    found = judged(study_model, LABELS, training=8)
    assert found.decision.outcome is not Outcome.HARMED
    means = {one.candidate: one.mean for one in found.decision.standings}
    assert means[Candidate.SHARED] > means[Candidate.LOCAL]


def test_a_patients_records_count_once(study_model: Learned) -> None:
    found = judged(study_model, LABELS, records=3, training=8)
    assert (found.held_out.units, found.held_out.records, found.unit) == (60, 180, "patient")
    assert any("60 patients (180 validation records)" in said for said in found.explained)


def test_where_the_head_alone_trains_the_two_baselines_are_one(backbone: Backbone, task: Task) -> None:
    model = attach(backbone, AdapterSpec(method="head-only"), task, "5a" * 32)
    site = own(model, notes(task, model, 20, seed=1), model.read_vector())
    shared = model.read_vector()
    assert set(fitted(study(), site, shared)) == {Candidate.SHARED, Candidate.LOCAL, Candidate.PERSONAL}
    found = judge(study(), site, shared, notes(task, model, 20, seed=2), side="test")
    assert any("same as local only" in said for said in found.explained)
    assert any("for want of validation records" in said for said in found.explained)


def test_candidates_are_scored_in_shares_where_a_task_scores_so(
    study_model: Learned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a task's score is: the verdict reads it from one function."""
    monkeypatch.setattr("client.judging.scores", lambda model, features: np.full(len(features), 0.25))
    assert {one.mean for one in judged(study_model, LABELS, training=8).decision.standings} == {0.25}
    assert (
        evaluation.scores(study_model.model, notes(study_model.task, study_model.model, 9, seed=1)).dtype == np.float64
    )


def test_a_verdict_says_how_far_the_site_is_from_public_texts(study_model: Learned) -> None:
    model: AdaptedModel = study_model.model
    model.write_vector(study_model.start)
    reference = measure_reference(model, ["chest pain and fever", "no cough", "mild fall"], data="invented")
    site = own(model, notes(study_model.task, model, 20, seed=20), study_model.start)
    held_out = notes(study_model.task, model, 20, seed=21)
    found = judge(study(reference=reference.model_dump(mode="json")), site, study_model.shared, held_out)
    assert found.domain is not None
    assert found.domain.distance > 0
    assert any("from invented" in said for said in found.explained)


def test_the_file_of_a_verdict_reads_back_and_a_broken_one_is_said_so(study_model: Learned, tmp_path: Path) -> None:
    found = judged(study_model, LABELS, training=8)
    digest = Digest(found.study)
    assert kept_verdict(tmp_path, digest) is None
    path = keep_verdict(tmp_path, found)
    assert kept_verdict(tmp_path, digest) == found
    shape = json.loads(path.read_text())
    assert set(shape) == {
        "schema_version", "study", "made", "unit", "side", "training", "held_out", "personal", "decision", "domain",
        "labels",
    }  # fmt: skip
    assert set(shape["decision"]) == {"outcome", "keep", "said", "standings", "comparisons"}
    path.write_text("{")
    with pytest.raises(ConsiliumError, match="CSL-505"):
        kept_verdict(tmp_path, digest)
