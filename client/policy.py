"""The site's policy: what a study must be for this hospital to take part, whatever the operator offers.

It stands in `site.toml` as ``[policy]``. Without that table nothing is allowed, and no field of it has a default: a
hospital never takes part under a rule that nobody wrote down. Deciding is pure. Loads without torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from enum import StrEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints, field_validator

from client.purposes import beyond_consent, check_consent
from common.errors import ConsiliumError
from common.parts import Part
from common.privacy.plan import PrivacyPlan
from common.privacy.statement import rounded_up
from common.secagg import Terms
from common.study import Kind, Study, Unit
from common.task_specs import TaskKind
from common.transfer import Method

if TYPE_CHECKING:
    from client.config import SiteConfig
    from client.ledger.book import Book

_CLOCK = r"([01]\d|2[0-3]):[0-5]\d"
Hours = Annotated[str, StringConstraints(pattern=rf"^{_CLOCK}-({_CLOCK}|24:00)$")]
"""``22:00-06:00``: from the first minute named to just before the last, over midnight where that is earlier."""
DuoCode = Annotated[str, StringConstraints(pattern=r"^DUO:\d{7}$")]
SpdxId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]{0,99}\+?$")]


class Policy(Part):
    """What this hospital allows. Every field has to be written.

    purposes              DUO codes of the consent under which the data were given; see :mod:`client.purposes`
    licences              SPDX identifiers that a backbone may have
    max_epsilon           of one study, recomputed here; what all studies together may spend, the ledger's account says
    max_delta             of one study
    min_noise_multiplier  noise over sensitivity, in each step and in each evaluation release
    unit                  whom a study must hide: patient, or record, which a study of patients satisfies too
    min_cohort            fewest sites whose sum may be opened
    min_band              smallest public size that another site of the roster may have
    min_patients          smallest public size of this site with which it takes part
    max_rounds            planned sums of one study
    tasks                 what records may be used for: kinds of task, each by its name
    methods               how an adapter may be trained, each by its name
    pretraining           whether a study may first learn from records without looking at labels, unlabelled ones too
    blocks                whether a study may name coordinates to which only some sites contribute
    hours                 when the site computes, local time of this machine; 00:00-24:00 is always
    manual_rounds         whether each round waits for ``consilium-client study allow``
    """

    purposes: tuple[DuoCode, ...] = Field(min_length=1)
    licences: tuple[SpdxId, ...] = Field(min_length=1)
    max_epsilon: float = Field(gt=0)
    max_delta: float = Field(gt=0, lt=1)
    min_noise_multiplier: float = Field(gt=0)
    unit: Unit
    min_cohort: int = Field(ge=3)
    min_band: int = Field(ge=1)
    min_patients: int = Field(ge=1)
    max_rounds: int = Field(ge=1)
    tasks: tuple[TaskKind, ...] = Field(min_length=1)
    methods: tuple[Method, ...] = Field(min_length=1)
    pretraining: bool
    blocks: bool
    hours: tuple[Hours, ...] = Field(min_length=1)
    manual_rounds: bool

    @field_validator("purposes")
    @classmethod
    def _a_consent_that_can_be_judged(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_consent(value)
        return value

    @field_validator("hours")
    @classmethod
    def _of_some_length(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(start == end for start, end in map(_minutes, value)):
            raise ValueError("write 00:00-24:00 for the whole day")
        return value

    def trains_at(self, local: datetime) -> bool:
        """Return whether a moment, in this machine's local time, is within the hours."""
        minute = 60 * local.hour + local.minute
        return any(
            start <= minute < end if start < end else minute >= start or minute < end
            for start, end in map(_minutes, self.hours)
        )


class Rule(StrEnum):
    """Every way in which a study can be forbidden here, by its stable name."""

    POLICY = "policy"
    KIND = "kind"
    OPERATOR = "operator"
    ROSTER = "roster"
    EXPIRY = "expiry"
    SOFTWARE = "software"
    PURPOSE = "purpose"
    LICENCE = "licence"
    GUARANTEE = "guarantee"
    EPSILON = "epsilon"
    DELTA = "delta"
    NOISE = "noise"
    UNIT = "unit"
    COHORT = "cohort"
    BAND = "band"
    PATIENTS = "patients"
    ROUNDS = "rounds"
    TASK = "task"
    METHOD = "method"
    PRETRAINING = "pretraining"
    BLOCKS = "blocks"
    BUDGET = "budget"


class Violation(Part):
    """One point in which a study is not what this hospital allows.

    found    what the study says
    allowed  what is allowed here, and where that stands
    """

    rule: Rule
    found: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.rule.value}: {self.found}; {self.allowed}"


def violations(
    study: Study, config: SiteConfig, *, book: Book | None, now: datetime, kind: Kind = Kind.DEPLOYMENT
) -> tuple[Violation, ...]:
    """Return every point in which a study may not run here; nothing where it may.

    book  what was spent so far; None leaves the budget to the ledger itself, which decides when the study is joined
    now   aware; for the study's expiry
    kind  of the studies that are run here
    """
    return tuple(_found(study, config, book, now, kind))


def _found(study: Study, config: SiteConfig, book: Book | None, now: datetime, kind: Kind) -> Iterator[Violation]:
    yield from _not_ours(study, config, now, kind)
    plan = None
    if config.site in {member.site for member in study.roster}:
        try:
            plan = PrivacyPlan.for_site(study, config.site_id)
        except ConsiliumError as error:
            yield _point(Rule.GUARANTEE, error.detail, "what is promised must hold when it is recomputed")
    else:
        yield _point(Rule.ROSTER, f"{config.site} is not in its roster", "a site runs its own studies only")
    if config.policy is None:
        yield _point(Rule.POLICY, "site.toml has no [policy]", "without one nothing is allowed")
    else:
        yield from _beyond(config.policy, study, config.site, plan)
    if book is not None and plan is not None:
        try:
            book.join(config.account, study.digest, plan)
        except ConsiliumError as error:
            yield _point(Rule.BUDGET, error.detail, f"account {config.account} of the ledger pays")


def _not_ours(study: Study, config: SiteConfig, now: datetime, kind: Kind) -> Iterator[Violation]:
    """Yield what is wrong before any policy is looked at."""
    if study.kind is not kind:
        yield _point(Rule.KIND, f"it is a {study.kind.value} study", f"only {kind.value} studies run here")
    if study.operator != config.operator:
        yield _point(Rule.OPERATOR, "it names another operator", "the operator of site.toml, and no other")
    try:
        study.check_valid_at(now)
    except ConsiliumError as error:
        yield _point(Rule.EXPIRY, error.detail, "an expired study is over")
    try:
        study.check_software(version("consilium"))
    except ConsiliumError as error:
        yield _point(Rule.SOFTWARE, error.detail, "the software must be in the study's range")


def _beyond(policy: Policy, study: Study, site: str, plan: PrivacyPlan | None) -> Iterator[Violation]:
    """Yield every field of the policy that the study goes beyond."""
    for sentence in beyond_consent(study.purpose.duo, policy.purposes):
        yield _point(Rule.PURPOSE, sentence, f"purposes = {', '.join(policy.purposes)}")
    # SPDX identifiers are compared without regard to case [SPDX 2.3, annex D.2].
    if study.backbone.licence.casefold() not in {licence.casefold() for licence in policy.licences}:
        yield _point(Rule.LICENCE, study.backbone.licence, f"licences = {', '.join(policy.licences)}")
    if plan is not None and not plan.epsilon() <= policy.max_epsilon:
        yield _point(Rule.EPSILON, rounded_up(plan.epsilon()), f"max_epsilon = {policy.max_epsilon:g}")
    if study.privacy.delta > policy.max_delta:
        yield _point(Rule.DELTA, f"{study.privacy.delta:g}", f"max_delta = {policy.max_delta:g}")
    least = f"min_noise_multiplier = {policy.min_noise_multiplier:g}"
    if study.privacy.noise_multiplier < policy.min_noise_multiplier:
        yield _point(Rule.NOISE, f"{study.privacy.noise_multiplier:g} in training", least)
    if study.evaluation.releases and study.evaluation.noise_multiplier < policy.min_noise_multiplier:
        yield _point(Rule.NOISE, f"{study.evaluation.noise_multiplier:g} in evaluation", least)
    if policy.unit is Unit.PATIENT and study.privacy.unit is not Unit.PATIENT:
        yield _point(Rule.UNIT, f"it hides a {study.privacy.unit.value}", f"unit = {policy.unit.value}")
    yield from _beyond_the_cohort(policy, study, site)
    if study.training.rounds > policy.max_rounds:
        yield _point(Rule.ROUNDS, f"{study.training.rounds:,}", f"max_rounds = {policy.max_rounds:,}")
    if study.task.kind not in policy.tasks:
        yield _point(Rule.TASK, study.task.kind, f"tasks = {', '.join(policy.tasks)}")
    if study.adapter.method not in policy.methods:
        yield _point(Rule.METHOD, study.adapter.method, f"methods = {', '.join(policy.methods)}")
    if study.pretraining is not None and not policy.pretraining:
        yield _point(Rule.PRETRAINING, study.pretraining.objective.kind, "pretraining = false")
    if study.aggregation.blocks and not policy.blocks:
        names = ", ".join(block.name for block in study.aggregation.blocks)
        yield _point(Rule.BLOCKS, f"only some sites contribute to {names}", "blocks = false")


def _beyond_the_cohort(policy: Policy, study: Study, site: str) -> Iterator[Violation]:
    terms = Terms.from_study(study)
    fewest = terms.survivors_needed(terms.smallest_cohort)
    if fewest < policy.min_cohort:
        yield _point(Rule.COHORT, f"a sum of {fewest} sites may be opened", f"min_cohort = {policy.min_cohort}")
    for member in study.roster:
        if member.site != site and member.band < policy.min_band:
            yield _point(Rule.BAND, f"{member.site} has {member.band:,}", f"min_band = {policy.min_band:,}")
        if member.site == site and member.band < policy.min_patients:
            yield _point(Rule.PATIENTS, f"{site} has {member.band:,}", f"min_patients = {policy.min_patients:,}")


def _point(rule: Rule, found: str, allowed: str) -> Violation:
    return Violation(rule=rule, found=found, allowed=allowed)


def _minutes(hours: str) -> tuple[int, int]:
    start, end = (int(text[:2]) * 60 + int(text[3:]) for text in hours.split("-"))
    return start, end
