"""A site's file and an approved study become a workload: first the model, then the records, by the study's rules."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict

from client import preflight, preparing
from client.config import Data, SiteConfig
from client.fetching import cache_folder
from client.ledger import MemoryLedger
from client.preparing import prepare
from client.site import Site
from client.sources import Role
from client.table import TextColumn
from client.training.noise import SystemNoise
from client.workload import ModelWorkload
from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.link.inprocess import OPERATOR_NODE, RUN, InProcessGrid
from common.study import BackboneManifest
from server.coordinator import Coordinator
from server.witnesses import MemoryWitnesses
from tests.encoders import WORDS, write_encoder
from tests.sitefile import opening
from tests.studies import NOW, Signed, signed_study

SITE = SiteId("site-000")
RECORDS = 60


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BackboneManifest]:
    folder = tmp_path_factory.mktemp("encoder")
    return folder, write_encoder(folder)


@pytest.fixture
def signed(encoder: tuple[Path, BackboneManifest]) -> Callable[..., Signed]:
    """Return a function that makes a study on the tiny encoder."""

    def made(**privacy: object) -> Signed:
        return signed_study(
            kind="deployment",
            backbone=encoder[1].model_dump(mode="json"),
            training={"rounds": 1, "steps_per_round": 1},
            privacy=privacy,
        )

    return made


def site_file(folder: Path, backbone: Path | None, site: SiteId = SITE) -> SiteConfig:
    """Write a site's folder with records of its own and return its file."""
    (folder / "data").mkdir(parents=True)
    dice = np.random.default_rng(list(site.encode()))
    rows = [
        f"p{number // 2},{' '.join(dice.choice(WORDS, size=4))},{'no' if number % 2 else 'yes'}"
        for number in range(RECORDS)
    ]
    (folder / "data" / "notes.csv").write_text("\n".join(["patient,note,label", *rows]) + "\n")
    source = "" if backbone is None else f'[backbone]\nfolder = "{backbone}"\n'
    (folder / "site.toml").write_text(f"""{opening(site, "5a" * 32)}[data]
folder = "data"
query = "FROM read_csv('notes.csv', all_varchar = true)"
columns = {{ text = "note", label = "label", unit = "patient" }}
{source}
""")
    return SiteConfig.load(folder / "site.toml")


def prepared(config: SiteConfig, made: Signed, backbone: Path | None = None) -> ModelWorkload:
    return prepare(config, made.agreement, made.sites[config.site_id], backbone=backbone)


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(ConsiliumError) as raised:
        act()
    return raised.value.code


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail where a record would be read."""

    def read(data: Data) -> dict[Role, TextColumn]:
        raise AssertionError("a record was read")

    monkeypatch.setattr("client.records.read_with_fields", read)


def test_a_workload_trains_and_evaluates_on_the_records_of_the_query(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    workload = prepared(site_file(tmp_path, encoder[0]), signed())
    update = workload.train(np.zeros(workload.dimension, dtype=np.float32), 0)
    assert update.shape == (workload.dimension,)
    assert np.isfinite(update).all()
    assert np.any(update)
    assert workload.evaluate(update).shape == (2,)
    assert len(workload._training) + len(workload._testing) == RECORDS


def test_noise_is_the_systems(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    workload = prepared(site_file(tmp_path, encoder[0]), signed())
    assert type(workload._noise) is SystemNoise
    start = np.zeros(workload.dimension, dtype=np.float32)
    assert not np.array_equal(workload.train(start, 0), workload.train(start, 0))


@pytest.mark.parametrize(("noise", "alone"), [("gaussian", False), ("discrete-gaussian", True)])
def test_training_records_are_computed_each_alone_where_the_noise_is_discrete(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed], noise: str, alone: bool
) -> None:
    workload = prepared(site_file(tmp_path, encoder[0]), signed(noise=noise))
    assert workload._training.is_each_alone is alone
    assert workload._testing.is_each_alone


def test_patients_are_units_where_the_study_hides_them(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    made = signed(unit="patient", max_records_per_unit=2)
    workload = prepared(site_file(tmp_path, encoder[0]), made)
    units = [features.unit_count.on_site() for features in (workload._training, workload._testing)]
    assert sum(units) == RECORDS // 2


def test_features_that_memory_does_not_hold_are_on_disk_unreadable_and_found_again(
    tmp_path: Path,
    encoder: tuple[Path, BackboneManifest],
    signed: Callable[..., Signed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparing, "_MEMORY_BYTES", 0)
    config, made = site_file(tmp_path, encoder[0]), signed()
    workload = prepared(config, made)
    files = {path: path.read_bytes() for path in config.features_folder.glob("*.sealed")}
    assert len(files) == 2
    assert workload._training.is_cached
    rows = workload._training._hidden
    assert rows is not None
    plain = rows.read(np.arange(1))[0].to(torch.float16).numpy().tobytes()
    assert not any(plain[:16] in content for content in files.values())
    del workload, rows
    prepared(config, made)
    assert {path: path.read_bytes() for path in config.features_folder.glob("*.sealed")} == files


@pytest.mark.usefixtures("unread")
def test_no_record_is_read_for_a_model_that_the_preflight_refuses(
    tmp_path: Path,
    encoder: tuple[Path, BackboneManifest],
    signed: Callable[..., Signed],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object) -> None:
        raise ConsiliumError(errors.PREFLIGHT_REFUSED, "planted")

    monkeypatch.setattr(preflight, "check", refuses)
    assert refused(lambda: prepared(site_file(tmp_path, encoder[0]), signed())) == "CSL-330"


@pytest.mark.usefixtures("unread")
def test_no_record_is_read_for_a_backbone_that_is_missing_or_another(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    other = tmp_path / "other"
    write_encoder(other, family="distilbert")
    made, config = signed(), site_file(tmp_path / "a", None)
    assert refused(lambda: prepared(config, made)) == "CSL-301"
    assert refused(lambda: prepared(config, made, backbone=tmp_path / "absent")) == "CSL-301"
    assert refused(lambda: prepared(site_file(tmp_path / "b", other), made)) == "CSL-302"


@pytest.mark.usefixtures("unread")
def test_no_record_is_read_for_a_study_that_the_site_is_not_in(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    made = signed()
    stranger = site_file(tmp_path, encoder[0], SiteId("stranger"))
    assert refused(lambda: prepare(stranger, made.agreement, made.sites[SITE])) == "CSL-122"


def test_the_backbone_given_wins_over_the_files(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    config = site_file(tmp_path, tmp_path / "absent")
    assert prepared(config, signed(), backbone=encoder[0]).dimension > 0


def test_a_backbone_from_the_operator_is_loaded_from_where_it_was_kept(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    folder, manifest = encoder
    file = site_file(tmp_path, folder).state.parent / "site.toml"
    file.write_text(file.read_text().replace(f'folder = "{folder}"', "from_operator = true"))
    config = SiteConfig.load(file)
    assert refused(lambda: prepared(config, signed())) == "CSL-301"
    shutil.copytree(folder, cache_folder(config.backbones_folder, manifest))
    assert prepared(config, signed()).dimension > 0


def test_the_log_says_that_the_preflight_passed(
    tmp_path: Path,
    encoder: tuple[Path, BackboneManifest],
    signed: Callable[..., Signed],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "consilium.preparing"):
        prepared(site_file(tmp_path, encoder[0]), signed())
    assert any(message.startswith("preflight passed") for message in caplog.messages)


def test_prepared_sites_run_a_whole_study(
    tmp_path: Path, encoder: tuple[Path, BackboneManifest], signed: Callable[..., Signed]
) -> None:
    made = signed()
    apps = {}
    dimension = 0
    for number, name in enumerate(made.sites):
        workload = prepared(site_file(tmp_path / name, encoder[0], name), made)
        dimension = workload.dimension
        apps[OPERATOR_NODE + 1 + number] = Site(
            made.agreement,
            name,
            made.sites[name],
            workload,
            MemoryLedger(),
            verified=frozenset(made.sites),
            clock=lambda: NOW,
        ).app()
    start = np.zeros(dimension, dtype=np.float32)
    coordinator = Coordinator(made.agreement, made.operator, start, witnesses=MemoryWitnesses())
    context = Context(run_id=RUN, node_id=OPERATOR_NODE, node_config={}, state=RecordDict(), run_config={})
    coordinator.app()(InProcessGrid(apps), context)
    assert np.any(coordinator.outcome.vector)
    assert np.isfinite(coordinator.outcome.vector).all()
