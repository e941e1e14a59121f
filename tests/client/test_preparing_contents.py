"""Every task on every kind of record: from a hospital's files through each phase of training to an evaluation."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client import preflight
from client.check import examine
from client.examination import PreflightReport
from client.preparing import prepare
from client.workload import ModelWorkload
from common.adapters import AdaptedModel, Vector
from common.errors import ConsiliumError
from common.identity import SiteId
from tests.modalities import Cell, Checkpoint, checkpoint, deployed, write_site
from tests.studies import Signed, signed_as

pytest.importorskip("PIL.Image")

SITE, OTHER = SiteId("site-000"), SiteId("site-001")
RECORDS = 24
Tiny = Callable[[str], Checkpoint]

CASES = [
    ("text-classification", "bert", "ffa-lora"),
    ("multi-label-classification", "roberta", "ffa-lora"),
    ("token-classification", "distilbert", "bitfit"),
    ("retrieval", "bert", "bottleneck"),
    ("regression", "llama", "lora"),
    ("causal-language-modelling", "gpt2", "rolora"),
    ("masked-language-modelling", "bert", "ffa-lora"),
    ("tabular-classification", "bert", "ffa-lora"),
    ("image-classification", "vit", "ffa-lora"),
    ("image-classification", "mobilenet_v1", "full"),
    ("audio-classification", "wav2vec2", "ffa-lora"),
    ("audio-classification", "ast", "layer-norm"),
    ("audio-classification", "mobilenet_v1", "head-only"),
]
BAD: dict[str, list[tuple[Cell, ...]]] = {
    "text": [("q", "home", "NULL"), ("q", "home", " "), ("", "home", "no unit")],
    "fields": [("q", "home", "old", "", "x"), ("NULL", "home", "1", "1", "f"), ("q", "NULL", "1", "1", "f")],
    "image": [("q", "home", "absent.png"), ("q", "home", "records.csv"), ("q", "NULL", "000.png")],
    "audio": [("q", "home", "absent.wav"), ("q", "home", "records.csv"), ("q", "NULL", "000.wav")],
}
"""Three rows of each content that cannot be read."""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a function from a family to its tiny checkpoint, made once."""
    made: dict[str, Checkpoint] = {}

    def of(family: str) -> Checkpoint:
        if family not in made:
            made[family] = checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return of


def workload_of(
    folder: Path, made: Signed, tiny: Checkpoint, site: SiteId = SITE, *, unlabelled: int = 0
) -> ModelWorkload:
    broken = BAD[made.study.task.content]
    config = write_site(folder, made.study, tiny.folder, site, RECORDS, unlabelled=unlabelled, broken=broken)
    return prepare(config, made.agreement, made.sites[site])


def through_all_phases(workload: ModelWorkload) -> list[Vector]:
    """Train a round of each phase, one after the other, and return what each moved."""
    vector = workload._model.read_vector()
    updates = []
    for round_index in workload._model.phases():
        updates.append(workload.train(vector, round_index))
        vector = vector + updates[-1]
    cells = workload.evaluate(vector)
    assert cells.shape == (2,)
    return updates


@pytest.mark.parametrize(("task", "family", "method"), CASES)
def test_a_hospitals_files_train_every_phase_and_are_evaluated(
    tmp_path: Path, tiny: Tiny, caplog: pytest.LogCaptureFixture, task: str, family: str, method: str
) -> None:
    made = deployed(task, tiny(family), adapter={"method": method, "last_layers": 1})
    with caplog.at_level(logging.WARNING, "consilium.records"):
        workload = workload_of(tmp_path, made, tiny(family))
    assert f"3 of {RECORDS + 3} records cannot be read and are left out" in caplog.messages
    assert len(workload._training) + len(workload._testing) == RECORDS
    units = [features.unit_count.on_site() for features in (workload._training, workload._testing)]
    assert sum(units) == RECORDS // 2
    for update in through_all_phases(workload):
        assert np.isfinite(update).all()
        assert np.any(update)


@pytest.mark.parametrize(
    ("family", "objective"), [("bert", "masked-language-modelling"), ("gpt2", "causal-language-modelling")]
)
def test_records_without_a_label_are_in_the_pretraining_and_nowhere_else(
    tmp_path: Path, tiny: Tiny, family: str, objective: str
) -> None:
    """The head rests while there are no labels, and what follows looks at the labelled records alone."""
    pretraining = {"rounds": 1, "objective": {"kind": objective, "max_tokens": 24}}
    made = deployed(
        "text-classification", tiny(family), adapter={"method": "ffa-lora", "last_layers": 1}, pretraining=pretraining
    )
    workload = workload_of(tmp_path, made, tiny(family), unlabelled=30)
    assert workload._pretraining is not None
    assert len(workload._training) + len(workload._testing) == RECORDS
    assert len(workload._pretraining) > len(workload._training)
    before, after = through_all_phases(workload)
    names = workload._model.names
    sizes = [workload._model.get_parameter(name).numel() for name in names]
    in_head = np.repeat([name.startswith("head.") for name in names], sizes)
    assert not before[in_head].any()
    assert before[~in_head].any()
    assert after[in_head].any()


@pytest.mark.parametrize("pretrains", [False, True])
def test_a_site_of_a_smaller_rank_sends_zeros_beyond_it(tmp_path: Path, tiny: Tiny, pretrains: bool) -> None:
    objective = {"kind": "masked-language-modelling", "max_tokens": 24}
    pretraining = {"rounds": 1, "objective": objective} if pretrains else None
    adapter = {"method": "ffa-lora", "rank": 4, "last_layers": 1, "site_ranks": {SITE: 2}}
    made = deployed("text-classification", tiny("bert"), 6, adapter=adapter, pretraining=pretraining)
    (block,) = made.study.aggregation.blocks
    assert (block.name, SITE in block.sites, len(block.sites)) == ("rank-3-to-4", False, 5)
    small, large = (workload_of(tmp_path / site, made, tiny("bert"), site) for site in (SITE, OTHER))
    assert small.dimension == large.dimension == block.stop
    for own, whole in zip(through_all_phases(small), through_all_phases(large), strict=True):
        assert not own[block.start :].any()
        assert own[: block.start].any()
        assert whole[block.start :].any()


def test_the_preflight_looks_at_the_rank_that_this_site_trains(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    check = preflight.check

    def noting(model: AdaptedModel) -> PreflightReport:
        seen.append(model.spec.rank)
        return check(model)

    monkeypatch.setattr(preflight, "check", noting)
    adapter = {"method": "ffa-lora", "rank": 4, "last_layers": 1, "site_ranks": {SITE: 2}}
    made = deployed("text-classification", tiny("bert"), 6, adapter=adapter)
    for site in (SITE, OTHER):
        workload_of(tmp_path / site, made, tiny("bert"), site)
        list(examine(made.study, site, backbone=tiny("bert").folder, ledger=None))
    assert seen == [2, 2, 4, 4]


def test_blocks_that_are_not_those_of_the_ranks_are_found_before_anybody_approves(tmp_path: Path, tiny: Tiny) -> None:
    adapter = {"method": "ffa-lora", "rank": 4, "last_layers": 1, "site_ranks": {SITE: 2}}
    sound = deployed("text-classification", tiny("bert"), 6, adapter=adapter)
    bare = sound.study.aggregation.model_copy(update={"blocks": ()})
    raw = sound.study.model_copy(update={"aggregation": bare}).model_dump(mode="json")
    made = signed_as(raw, sound.operator, sound.sites)
    found = {one.name: one for one in examine(made.study, OTHER, backbone=tiny("bert").folder, ledger=None)}
    assert found["model"].verdict == "wrong"
    assert "CSL-310" in found["model"].said
    assert "blocks" in found["model"].said
    with pytest.raises(ConsiliumError, match=r"CSL-310.*blocks"):
        workload_of(tmp_path, made, tiny("bert"))


@pytest.mark.parametrize(
    ("task", "family", "other"), [("text-classification", "bert", "vit"), ("image-classification", "vit", "bert")]
)
def test_check_says_that_a_backbone_cannot_do_the_task(tiny: Tiny, task: str, family: str, other: str) -> None:
    made = deployed(task, tiny(family), adapter={"method": "bitfit", "last_layers": 1})
    study = made.study.model_copy(update={"backbone": tiny(other).manifest})
    found = {one.name: one for one in examine(study, SITE, backbone=tiny(other).folder, ledger=None)}
    assert (found["backbone"].verdict, found["model"].verdict) == ("right", "wrong")
    assert "CSL-322" in found["model"].said


def test_a_task_that_reads_other_records_than_the_site_has_is_refused_by_name(tmp_path: Path, tiny: Tiny) -> None:
    texts = deployed("text-classification", tiny("bert"), adapter={"last_layers": 1})
    images = deployed("image-classification", tiny("vit"), adapter={"last_layers": 1})
    config = write_site(tmp_path, texts.study, tiny("bert").folder, SITE, RECORDS)
    with pytest.raises(ConsiliumError, match=r"CSL-503.*data.columns.path"):
        prepare(config, images.agreement, images.sites[SITE], backbone=tiny("vit").folder)
