"""The Study: the signed agreement from which everything else derives.

Data, never code. Written in TOML, frozen, made canonical by RFC 8785, named by the SHA-256 of those bytes, signed by
the operator and countersigned by each site. A field that is not here is refused; nothing outside it steers a run.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

import rfc8785
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from pydantic import Field, StringConstraints, ValidationError, model_validator

from common import errors
from common.errors import ConsiliumError
from common.identity import PublicKey, SiteId, parse_public_key
from common.parts import Digest, Hex32, Line, Name, Part, describe, validate
from common.task_specs import AnyTask, CausalLanguageModelling, MaskedLanguageModelling
from common.transfer import AdapterSpec, FeatureReference, Personal, Pretraining, Training

MAX_SITES = 255
"""Shamir shares live in GF(256): one non-zero coordinate a site."""
MAX_SIMULATED_SITES = 10_000
"""A simulation may hold more sites than share with each other, in neighbourhoods."""


class Kind(StrEnum):
    """A simulation study is signed in another domain, and a hospital's daemon refuses it (RULES 15)."""

    DEPLOYMENT = "deployment"
    SIMULATION = "simulation"


class Unit(StrEnum):
    """Whose presence the guarantee hides: add or remove one of these."""

    RECORD = "record"
    PATIENT = "patient"


class TrainingNoise(StrEnum):
    """How the noise of a training step is drawn: in float64, or exactly in integers, on a grid of the plan's."""

    GAUSSIAN = "gaussian"
    DISCRETE = "discrete-gaussian"


class Purpose(Part):
    """Why the data may be used: GA4GH DUO codes and a sentence for people."""

    duo: tuple[Annotated[str, StringConstraints(pattern=r"^DUO:\d{7}$")], ...] = Field(min_length=1)
    statement: Line


class BackboneManifest(Part):
    """The pretrained model, pinned by the SHA-256 of every file, with its provenance."""

    name: Line
    source: Line
    revision: Line
    licence: Line = Field(description="SPDX identifier")
    training_data: Line
    files: dict[str, Hex32] = Field(min_length=1, description="relative path to SHA-256")

    @model_validator(mode="after")
    def _paths_stay_inside(self) -> Self:
        for path in self.files:
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*(/[A-Za-z0-9_][A-Za-z0-9_.\-]*)*", path):
                raise ValueError(f"file {path!r} is not a plain relative path")
        return self


class Privacy(Part):
    """What each site guarantees to each unit for its whole participation, evaluation included."""

    unit: Unit = Unit.RECORD
    max_records_per_unit: int = Field(default=1, ge=1, le=10_000)
    epsilon: float = Field(gt=0, description="for max_charges training charges and all evaluation releases together")
    delta: float = Field(gt=0, lt=0.1)
    sampling_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(gt=0, description="noise standard deviation over clip norm, each step")
    clip_norm: float = Field(gt=0)
    noise: TrainingNoise = Field(
        default=TrainingNoise.GAUSSIAN, description="of training; the evaluation's is discrete"
    )
    max_charges: int = Field(
        ge=1, le=1_000_000, description="training charges a site may make; at least the rounds (RULES 7)"
    )

    @model_validator(mode="after")
    def _one_record_is_one_record(self) -> Self:
        if self.unit is Unit.RECORD and self.max_records_per_unit != 1:
            raise ValueError("max_records_per_unit belongs to unit = 'patient'")
        return self


class Evaluation(Part):
    """What is released about quality: noised counts, each unit of total weight one (RULES 9)."""

    releases: int = Field(default=1, ge=0, le=1000)
    noise_multiplier: float = Field(default=5.0, gt=0, description="noise over L2 sensitivity, each site, each release")


class Block(Part):
    """A range of an update's coordinates to which only some sites contribute: a rank, a part of the adapter, a label.

    Where too few of them take part in a sum, the range is left out of it (RULES 4).
    """

    name: Name
    start: int = Field(ge=0, lt=1 << 53, description="first coordinate")
    stop: int = Field(ge=1, lt=1 << 53, description="one after the last coordinate")
    sites: tuple[Name, ...] = Field(min_length=1, max_length=MAX_SIMULATED_SITES, description="the only contributors")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.start >= self.stop:
            raise ValueError(f"block {self.name}: start must be below stop")
        if list(self.sites) != sorted(set(self.sites)):
            raise ValueError(f"block {self.name}: sites must be in order of their names, each once")
        return self


class Aggregation(Part):
    """How vectors are encoded and who must take part for a sum to exist (RULES 2, 4, 6)."""

    bits: Literal[8, 12, 16, 20, 32] = 16
    clamp: float = Field(ge=1e-20, le=1e20, description="bound of each coordinate of an update after rotation")
    minimum_cohort: int = Field(default=3, ge=2, le=MAX_SITES)
    max_share: float = Field(default=0.9, gt=0, le=1, description="largest share of one site in a sum")
    blocks: tuple[Block, ...] = Field(
        default=(), max_length=1000, description="every site contributes to every coordinate outside them"
    )

    @model_validator(mode="after")
    def _blocks_apart(self) -> Self:
        if any(later.start < earlier.stop for earlier, later in zip(self.blocks, self.blocks[1:], strict=False)):
            raise ValueError("blocks must be in order of their coordinates and may not overlap")
        if len({block.name for block in self.blocks}) != len(self.blocks):
            raise ValueError("blocks: a name repeats")
        return self


class Neighbourhoods(Part):
    """For simulations of many sites only: each site shares with neighbours, as many as these probabilities need."""

    corrupt: float = Field(default=0.05, ge=0, lt=0.33, description="share of the sites that collude")
    lost: float = Field(default=0.1, ge=0, lt=0.5, description="share of the sites that may be lost in a sum")
    privacy_bits: float = Field(default=40.0, ge=1, le=128, description="privacy fails with 2 to the minus this")
    liveness_bits: float = Field(default=20.0, ge=1, le=128, description="a sum is lost with 2 to the minus this")
    cheating: bool = Field(default=False, description="whether the server may tell its sites different things")


class Member(Part):
    """A site in the roster: who it is, and the public size it declared when it joined, never a live count."""

    site: Name
    key: Hex32
    band: int = Field(ge=1, le=100_000_000, description="nominal number of units: weight and divisor")

    @property
    def site_id(self) -> SiteId:
        """The site's name, typed."""
        return SiteId(self.site)

    @property
    def public_key(self) -> PublicKey:
        """The site's Ed25519 key; raises CSL-120."""
        return parse_public_key(self.key)


class Study(Part):
    """The agreement. See the module docstring."""

    schema_version: Literal[1] = 1
    kind: Kind
    title: Line
    operator: Hex32
    created: str
    expires: str
    software: Line = ">=0.1,<0.2"
    stream: Hex32 = Field(description="public randomness: the frozen A of FFA-LoRA, rotation signs")
    purpose: Purpose
    backbone: BackboneManifest
    task: AnyTask
    adapter: AdapterSpec
    training: Training
    pretraining: Pretraining | None = None
    personal: Personal = Personal()
    reference: FeatureReference | None = None
    privacy: Privacy
    evaluation: Evaluation
    aggregation: Aggregation
    roster: tuple[Member, ...] = Field(min_length=3, max_length=MAX_SIMULATED_SITES)
    neighbourhoods: Neighbourhoods | None = Field(
        default=None, description="absent: every site shares with every other"
    )

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        for name, value in (("created", self.created), ("expires", self.expires)):
            _parse_time(name, value)
        try:
            SpecifierSet(self.software)
        except InvalidSpecifier as error:
            raise ValueError("software: write a range of versions as >=0.1,<0.2") from error
        sites = [member.site for member in self.roster]
        keys = [member.key for member in self.roster]
        if len(set(sites)) != len(sites) or len(set(keys)) != len(keys):
            raise ValueError("roster: a site or a key repeats")
        if {"operator", "anyone"} & set(sites):
            raise ValueError("roster: 'operator' and 'anyone' are not names for a site")
        if sites != sorted(sites):
            raise ValueError("roster: sites must be in order of their names")
        if self.privacy.max_charges < self.training.rounds:
            raise ValueError("privacy.max_charges must be at least training.rounds")
        if self.neighbourhoods is not None and self.kind is not Kind.SIMULATION:
            raise ValueError("neighbourhoods are for simulations: in a deployment every site shares with every other")
        if self.neighbourhoods is None and len(sites) > MAX_SITES:
            raise ValueError(f"roster: more than {MAX_SITES} sites need neighbourhoods")
        if self.aggregation.minimum_cohort > len(self.roster):
            raise ValueError("aggregation.minimum_cohort is larger than the roster")
        if not set(self.adapter.site_ranks) <= set(sites):
            raise ValueError("adapter.site_ranks: a site is not in the roster")
        if self.pretraining is not None and self.pretraining.rounds >= self.training.rounds:
            raise ValueError("pretraining.rounds must leave rounds for the task")
        if self.pretraining is not None and self.task.content != "text":
            raise ValueError("pretraining is of texts")
        if self.pretraining is not None and isinstance(self.task, CausalLanguageModelling | MaskedLanguageModelling):
            raise ValueError("pretraining: the task is what it would be")
        for block in self.aggregation.blocks:
            if not set(block.sites) <= set(sites):
                raise ValueError(f"block {block.name}: a site is not in the roster")
        return self

    @classmethod
    def from_toml(cls, text: str) -> Study:
        """Read a study as written by an operator; raises CSL-101 or CSL-102."""
        try:
            fields = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            # Beside what is no TOML: a number of thousands of digits, and arrays or keys nested as deep.
            raise ConsiliumError(errors.STUDY_UNREADABLE, str(error)) from error
        return cls.from_fields(fields)

    @classmethod
    def from_fields(cls, fields: dict[str, object]) -> Study:
        """Build a study from parsed TOML or JSON; raises CSL-102."""
        return validate(cls, fields, errors.STUDY_INVALID)

    @classmethod
    def from_canonical(cls, canonical: bytes) -> Study:
        """Read the canonical bytes; raises CSL-101, CSL-102, or CSL-103 if they are not canonical."""
        try:
            study = cls.model_validate_json(canonical)
        except ValidationError as error:
            raise ConsiliumError(_fault_of(error), describe(error)) from error
        if study.canonical() != canonical:
            raise ConsiliumError(errors.STUDY_DIGEST_MISMATCH, "not in canonical form")
        return study

    def canonical(self) -> bytes:
        """Return the RFC 8785 bytes: one study, one byte string."""
        return rfc8785.dumps(self.model_dump(mode="json"))

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes: the study's name everywhere."""
        return Digest(hashlib.sha256(self.canonical()).hexdigest())

    def member(self, site: str) -> Member:
        """Return the roster's entry for a site; raises CSL-122."""
        for member in self.roster:
            if member.site == site:
                return member
        raise ConsiliumError(errors.IDENTITY_UNKNOWN, site)

    def check_software(self, version: str) -> None:
        """Raise CSL-109 for a version of this software outside the study's range."""
        if not SpecifierSet(self.software).contains(version, prereleases=True):
            raise ConsiliumError(errors.STUDY_SOFTWARE, f"{version} is not within {self.software}")

    def check_valid_at(self, now: datetime) -> None:
        """Raise CSL-106 once the study has expired. ``now`` must be aware."""
        if now >= _parse_time("expires", self.expires):
            raise ConsiliumError(errors.STUDY_EXPIRED, f"expired {self.expires}")


def _fault_of(error: ValidationError) -> errors.Fault:
    kinds = {item["type"] for item in error.errors(include_url=False)}
    return errors.STUDY_UNREADABLE if "json_invalid" in kinds else errors.STUDY_INVALID


def time_text(moment: datetime) -> str:
    """Return a moment in UTC as a study writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _parse_time(name: str, text: str) -> datetime:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text):
        raise ValueError(f"{name}: write times as 2027-01-31T00:00:00Z")
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
