"""From a scenario to what every arm shares: sites, backbone, model, start and features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from client.data import Examples, SiteData
from client.training.features import Features
from client.training.precision import Precision
from client.training.store import FeatureStore
from common import backbone as backbones
from common import errors
from common.adapters import AdaptedModel, Vector, attach, ranks, shapes_of
from common.backbone import Backbone
from common.errors import ConsiliumError
from common.identity import SiteId
from common.stopwatch import Stopwatch
from common.study import BackboneManifest, Block, TrainingNoise, Unit
from common.tasks import Task, task_for
from simulations.cohort import load_sites
from simulations.progress import Progress
from simulations.scenario import KNOWN_PACKAGE, BackboneChoice, Scenario


@dataclass(frozen=True, slots=True)
class Prepared:
    """A scenario's data and model, ready for any arm.

    unit     whose presence the study hides
    model    one model for all sites: each call writes the vector it works on
    start    the vector before training: fresh adapter, head from the label texts where there are any
    stream   64 hex digits of public randomness, from the scenario's seed
    """

    sites: tuple[SiteData, ...]
    unit: Unit
    backbone: Backbone
    model: AdaptedModel
    start: Vector
    stream: str
    training: Mapping[SiteId, Features]
    validation: Mapping[SiteId, Features]
    testing: Mapping[SiteId, Features]
    pretraining: Mapping[SiteId, Features] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """What the sites learn."""
        return self.model.task

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks of the vector to which only some sites contribute."""
        return ranks.blocks(self.model.spec, shapes_of(self.model), [site.site for site in self.sites])

    @property
    def units(self) -> dict[SiteId, int]:
        """Each site's number of training units, patients or records as the study says, at least 1."""
        return {site.site: max(1, self._count(site.train)) for site in self.sites}

    @property
    def tested_units(self) -> dict[SiteId, int]:
        """Each site's number of test units."""
        return {site.site: self._count(site.test) for site in self.sites}

    def _count(self, examples: Examples) -> int:
        return len(np.unique(examples.units)) if self.unit is Unit.PATIENT else len(examples)


def prepare(
    scenario: Scenario,
    data_dir: Path | None,
    device: str,
    progress: Progress,
    watch: Stopwatch,
    *,
    precision: Precision = Precision.FULL,
    store: FeatureStore | None = None,
    narrow: Callable[[SiteData], SiteData] = lambda site: site,
    accept: Callable[[AdaptedModel], None] = lambda _: None,
) -> Prepared:
    """Load data and backbone, attach the adapter, compute the frozen prefix once.

    device     as :func:`resolve_device` returns it
    precision  of the training passes; evaluation is always in full precision
    store      where all sites' frozen prefixes are kept; None keeps them in memory
    narrow     what is left of each site's records, before anything is computed on them
    accept     raises for a model that will not do, before anything is computed on a record; leaves the model as it is

    Raises what is wrong with the data (CSL-5xx), the backbone or the adapter (CSL-3xx), and what ``accept`` does.
    """
    sites = tuple(narrow(site) for site in load_sites(scenario, data_dir))
    folder, manifest = locate_backbone(scenario.backbone, data_dir)
    backbone = backbones.load(folder, manifest, device=device)
    stream = hashlib.sha256(f"consilium/simulation/{scenario.name}/{scenario.seed}".encode()).hexdigest()
    task = task_for(scenario.task, backbone, stream)
    model = attach(backbone, scenario.adapter, task, stream, pretraining=scenario.pretraining)
    start = model.read_vector()
    accept(model)
    progress.phase("frozen prefix", (3 if model.objective is None else 4) * len(sites))

    def features(
        of: Callable[[SiteData], Examples],
        kept: Precision = Precision.FULL,
        *,
        alone: bool = False,
        objective: Task | None = None,
    ) -> dict[SiteId, Features]:
        made = {}
        for site in sites:
            examples = of(site)
            with watch.timed("features"):
                encoded = (objective or task).encode(examples.contents, examples.labels, examples.units)
                made[site.site] = Features(
                    model, encoded, objective=objective, precision=kept, alone=alone, store=store
                )
            progress.advance()
        return made

    discrete = scenario.privacy.noise is TrainingNoise.DISCRETE

    return Prepared(
        sites=sites,
        unit=scenario.privacy.unit,
        backbone=backbone,
        model=model,
        start=start,
        stream=stream,
        training=features(lambda site: site.train, precision, alone=discrete),
        validation=features(lambda site: site.validation),
        testing=features(lambda site: site.test, alone=True),
        pretraining=features(lambda site: site.train, precision, alone=discrete, objective=model.objective)
        if model.objective is not None
        else {},
    )


def locate_backbone(choice: BackboneChoice, data_dir: Path | None = None) -> tuple[Path, BackboneManifest]:
    """Return a backbone's folder and its manifest: the pinned one of a known package, else one made from its files.

    data_dir  where a folder is looked for that is not found as it is given
    """
    if choice.package == KNOWN_PACKAGE:
        return backbones.locate_package(choice.package), backbones.MINILM
    if choice.package is not None:
        folder, source, revision = backbones.locate_package(choice.package), choice.package, "installed"
    elif choice.hub is not None and choice.revision is not None:
        folder, source, revision = backbones.locate_hub(choice.hub, choice.revision), choice.hub, choice.revision
    else:
        given = Path(choice.folder or "")
        below = data_dir is not None and not given.is_dir() and (data_dir / given).is_dir()
        folder = backbones.locate_folder(data_dir / given if data_dir is not None and below else given)
        source, revision = f"folder {folder.name}", "local"
    manifest = backbones.describe(
        folder,
        name=source,
        source=source,
        revision=revision,
        licence=choice.licence or "",
        training_data=choice.training_data or "",
    )
    return folder, manifest


def resolve_device(name: str) -> str:
    """Return a device that exists: ``auto`` takes a GPU where there is one; raises CSL-511 for one that is not here."""
    if name == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    known = name == "cpu" or (name.startswith("cuda:") and name[5:].isdigit())
    if not known or (name != "cpu" and int(name[5:]) >= torch.cuda.device_count()):
        raise ConsiliumError(errors.SCENARIO_INVALID, f"device {name!r}: choose auto, cpu or a cuda:N that is here")
    return name
