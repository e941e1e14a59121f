"""From a site's file and an approved study to what this site computes: backbone, model, records and their features.

No record is read before the model has passed its preflight, which looks at invented inputs only (RULES 14). The
machine-learning stack is loaded by the calls, not by this module, so that the command stays light.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from client.config import SiteConfig
from client.fetching import cache_folder
from common import backbone as backbones
from common import errors
from common.agreement import Agreement
from common.errors import ConsiliumError
from common.identity import Identity
from common.study import BackboneManifest, Study, TrainingNoise

if TYPE_CHECKING:
    from client.data import Examples
    from client.records import HeldOut
    from client.training.features import Features
    from client.training.store import FeatureStore
    from client.workload import ModelWorkload
    from common.adapters import AdaptedModel

FEATURES_PURPOSE = "consilium/v1/features"
"""What the key of the computed features is derived for."""
_MEMORY_BYTES = 1 << 30
_DISK_BYTES = 16 << 30
_log = logging.getLogger("consilium.preparing")


def prepare(
    config: SiteConfig, agreement: Agreement, identity: Identity, *, backbone: Path | None = None, device: str = "cpu"
) -> ModelWorkload:
    """Return the site's workload under a study.

    identity  the site's own: the side of each unit and the key of the computed features come from it
    backbone  a folder that is used whatever the site's file names
    device    that torch computes on

    Noise comes from the system. Test records are computed each alone, and so are training records where the noise is
    discrete: what is exact rests on no bit of a record's features depending on which others there are.

    Raises CSL-122 for a site that is not in the roster, CSL-301 to CSL-304 for the backbone, CSL-310 for the adapter,
    CSL-330 where the preflight refuses the model, and what :func:`client.records.load` raises for the records.
    """
    from client import records
    from client.training.features import Features
    from client.training.noise import SystemNoise
    from client.workload import ModelWorkload

    study = agreement.study
    model, store = _model_and_store(config, study, identity, backbone, device)
    alone = study.privacy.noise is TrainingNoise.DISCRETE
    sides = records.load(config, study, identity)
    train, test = (model.task.encode(side.contents, side.labels, side.units) for side in sides)
    pretraining = None
    if model.objective is not None:
        encoded = model.objective.encode(sides[0].contents, sides[0].labels, sides[0].units)
        pretraining = Features(model, encoded, objective=model.objective, alone=alone, store=store)
    return ModelWorkload(
        study,
        config.site_id,
        model,
        training=Features(model, train, alone=alone, store=store),
        testing=Features(model, test, alone=True, store=store),
        noise=SystemNoise(),
        pretraining=pretraining,
    )


@dataclass(frozen=True, slots=True)
class OwnRecords:
    """A site's records under a study, for what it computes for itself: verdict and mismatch. Sensitive.

    train, held_out      records to fit to and to judge by, which lie on ``side``
    training, judging    their features
    """

    model: AdaptedModel
    train: Examples
    held_out: Examples
    side: HeldOut
    training: Features
    judging: Features


def prepare_own(config: SiteConfig, study: Study, identity: Identity, *, backbone: Path | None = None) -> OwnRecords:
    """Return what a site looks at for itself; nothing that is computed from it may leave.

    Features are those of :func:`prepare`, and found again where they were kept. Raises as it does.
    """
    from client import records
    from client.training.features import Features

    model, store = _model_and_store(config, study, identity, backbone, "cpu")
    train, held_out, side = records.load_for_verdict(config, study, identity)
    encoded = (model.task.encode(part.contents, part.labels, part.units) for part in (train, held_out))
    training, judging = encoded
    return OwnRecords(
        model,
        train,
        held_out,
        side,
        training=Features(model, training, alone=study.privacy.noise is TrainingNoise.DISCRETE, store=store),
        judging=Features(model, judging, alone=True, store=store),
    )


def _model_and_store(
    config: SiteConfig, study: Study, identity: Identity, backbone: Path | None, device: str
) -> tuple[AdaptedModel, FeatureStore]:
    """Return the study's model and where features are kept; what this site trains of it has passed its preflight."""
    import torch

    from client.preflight import check
    from client.training.folder import SealedFolder
    from client.training.store import FeatureStore
    from common.adapters import attach_at

    study.member(config.site)
    torch.set_num_threads(config.threads)
    model = adapted(study, locate(config, study.backbone, backbone), device=device)
    _log.info("%s", check(attach_at(model, config.site, study.stream)).summary())
    folder = SealedFolder(config.features_folder, identity.derive_key(FEATURES_PURPOSE), _DISK_BYTES)
    return model, FeatureStore(memory_bytes=_MEMORY_BYTES, folder=folder)


def locate(config: SiteConfig, manifest: BackboneManifest, given: Path | None = None) -> Path:
    """Return a backbone's folder: the one given, else what the site's file names; raises CSL-301."""
    if given is not None:
        return backbones.locate_folder(given)
    source = config.backbone
    if source is not None and source.folder is not None:
        return backbones.locate_folder(source.folder)
    if source is not None and source.package is not None:
        return backbones.locate_package(source.package)
    if source is not None and source.from_operator:
        return backbones.locate_folder(cache_folder(config.backbones_folder, manifest))
    raise ConsiliumError(errors.BACKBONE_MISSING, "the site's file has no [backbone]")


def adapted(study: Study, folder: Path, *, device: str = "cpu") -> AdaptedModel:
    """Return a study's model on the verified backbone of a folder; raises CSL-301 to CSL-304, CSL-310, CSL-322."""
    from common.adapters import of_study

    return of_study(study, backbones.load(folder, study.backbone, device=device))
