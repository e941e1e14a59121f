"""Whole tiny studies of every kind of record: metrics, report and release are written and say what was learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from client.verdict import Candidate
from common import backbone as backbones
from common.adapters.release import load_release
from common.wording import does
from simulations import metrics as m
from simulations.cli import show
from simulations.options import Engine
from simulations.preparation import locate_backbone
from simulations.progress import SilentProgress
from simulations.run import run_scenario
from simulations.scenario import Baseline, Scenario
from tests.simulations.kinds import KINDS, SITES, scenario_of, write
from tests.simulations.pages import Page

LABELLED = ("image", "audio", "tabular", "pretraining")
SAID = {
    "image": "It assigns one of 2 labels to an image: dark, bright. It reads images, each brought to 16 by 16 pixels",
    "audio": "It assigns one of 2 labels to a recording: low, high. It reads recordings, the first 0.24 s of each",
    "tabular": "It reads rows, written down as a text of up to 16 tokens, and as numbers",
    "tokens": "It assigns one of 2 labels to each word of a text: O, SIGN. It reads texts, up to 16 tokens of each",
    "regression": "It predicts a number from 0 to 10 for a text. It reads texts, up to 16 tokens of each",
    "pretraining": "The first 2 rounds learn without labels: it predicts masked tokens of a text, 15% of them",
}
SCORES = {"tokens": "share of words that are right", "regression": "closeness"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    for kind, folder in made.items():
        write(kind, folder)
    return made


def run(chosen: Scenario, folder: Path, out: Path, *baselines: str, engine: Engine = Engine.INLINE) -> m.Metrics:
    return run_scenario(
        chosen,
        folder,
        out,
        baselines=frozenset(baselines),
        device="cpu",
        threads=1,
        progress=SilentProgress(),
        engine=engine,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_study_is_run_reported_and_released(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    chosen = scenario_of(kind, folders[kind])
    metrics = run(chosen, folders[kind], tmp_path, *Baseline)
    assert m.read(tmp_path / "metrics.json") == metrics
    assert [site.id for site in metrics.sites] == sorted(SITES)
    assert metrics.config.task == chosen.task.kind
    assert metrics.verdicts == ()
    page = Page((tmp_path / "report.html").read_text())
    assert SAID[kind] in page.text
    chooses = kind in LABELLED
    heads = [cell.text for cell in page.table("site-table").rows[0]]
    assert chooses == ("Macro F1" in heads) == (metrics.pooled.macro_f1 is not None)
    assert chooses == (metrics.baselines.majority is not None)
    printed = Console(width=400)
    with printed.capture() as captured:
        show(metrics, tmp_path / "report.html", printed)
    if kind in SCORES:
        assert metrics.config.score == SCORES[kind]
        assert f"The score is {SCORES[kind]}" in page.text
        assert "Accuracy" not in page.text
        assert f"the score is {SCORES[kind]}" in captured.get()
        assert "macro F1" not in captured.get()
    else:
        assert "Accuracy on the pooled test" in page.text
        assert "The score is" not in page.text
    folder, manifest = locate_backbone(chosen.backbone)
    released = load_release(tmp_path / "release", backbones.load(folder, manifest))
    assert released.task.spec == chosen.task
    assert does(chosen.task) in (tmp_path / "release" / "README.md").read_text()


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_what_can_be_told_apart_is_learned(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Bright from dark and high from low, in four rounds at an epsilon so high that noise decides nothing."""
    privacy = {"epsilon": 500.0, "delta": 1e-5, "sampling_rate": 1.0}
    metrics = run(scenario_of(kind, folders[kind], privacy=privacy), folders[kind], tmp_path)
    assert metrics.pooled.accuracy > 0.8


def test_records_without_a_label_train_in_the_first_rounds_and_are_in_no_test(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    metrics = run(scenario_of("pretraining", folders["pretraining"]), folders["pretraining"], tmp_path)
    assert sum(site.train_examples for site in metrics.sites) > 2 * metrics.pooled.examples
    # A third of the records has no label.
    assert metrics.pooled.examples < 0.2 * 96


@pytest.mark.parametrize("kind", ["image", "tokens"])
def test_each_site_judges_for_itself_where_the_study_personalises(
    folders: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    chosen = scenario_of(kind, folders[kind], personal={"method": "head", "steps": 3})
    metrics = run(chosen, folders[kind], tmp_path)
    assert [verdict.id for verdict in metrics.verdicts] == sorted(SITES)
    for verdict in metrics.verdicts:
        assert {standing.candidate for standing in verdict.decision.standings} == set(Candidate)
        assert verdict.side == "validation"
        assert not verdict.released
    assert m.read(tmp_path / "metrics.json") == metrics
    page = Page((tmp_path / "report.html").read_text())
    table = page.table("verdict-table")
    assert [cell.text for cell in table.rows[0]][2:6] == ["Shared", "Backbone only", "Local only", "Personalised"]
    for verdict in metrics.verdicts:
        row = table.row(verdict.id)
        assert row[1].values == [verdict.units]
        assert [cell.values for cell in row[2:6]] == [[verdict.mean(candidate)] for candidate in Candidate]
        assert row[6].text == verdict.decision.outcome
    assert "SIMULATOR ONLY. Did the transfer help here?" in page.text


def test_verdicts_are_asked_for_by_themselves_and_fall_back_on_test_records(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = folders["regression"]
    personal = {"method": "none", "steps": 3}
    chosen = scenario_of("regression", folder, verdicts=True, personal=personal, split={"validation": 0.0})
    metrics = run(chosen, folder, tmp_path)
    assert {verdict.side for verdict in metrics.verdicts} == {"test"}
    assert sum(verdict.units for verdict in metrics.verdicts) == metrics.pooled.examples
    unasked = scenario_of("regression", folder, verdicts=False, personal={"method": "head"})
    assert not unasked.judges


def test_a_study_ends_the_same_whether_or_not_its_sites_judge(folders: dict[str, Path], tmp_path: Path) -> None:
    released = []
    for name, asked in (("judged", True), ("unjudged", False)):
        chosen = scenario_of("tokens", folders["tokens"], verdicts=asked, personal={"method": "head", "steps": 3})
        metrics = run_scenario(
            chosen, folders["tokens"], tmp_path / name, baselines=frozenset({"local_only"}), device="cpu", threads=1,
            progress=SilentProgress(), noise_seed=3,
        )  # fmt: skip
        weights = [file.read_bytes() for file in sorted((tmp_path / name / "release").glob("*.safetensors"))]
        assert len(weights) == 2
        released.append((weights, metrics.pooled, metrics.sites, metrics.baselines))
    assert released[0] == released[1]


@pytest.mark.parametrize("kind", ["image", "tabular"])
def test_stacked_studies_are_reported_too(folders: dict[str, Path], tmp_path: Path, kind: str) -> None:
    metrics = run(scenario_of(kind, folders[kind]), folders[kind], tmp_path, engine=Engine.STACKED)
    assert metrics.config.engine == "stacked"
    assert json.loads((tmp_path / "metrics.json").read_text())["config"]["task"] == metrics.config.task
