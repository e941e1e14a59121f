"""For whoever decides: what a study asks for, what it costs, who is in it, and where it breaks the site's policy.

A :class:`Verdict` is data, computed from the signed study, the site's file and the ledger; :mod:`client.review_page`
prints it. Nothing is changed, and no record is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import rfc8785

from client.config import SiteConfig
from client.ledger.book import Book
from client.ledger.recovery import inspect
from client.policy import Rule, Violation, violations
from client.preparing import locate
from client.purposes import named
from client.shelf import Known, State
from common import wording
from common.errors import ConsiliumError
from common.identity import SiteId, fingerprint, parse_public_key
from common.parts import Hex32, Name, Part
from common.payloads import vector_encoding
from common.privacy.concerns import concerns
from common.privacy.plan import PrivacyPlan
from common.secagg import Terms
from common.study import BackboneManifest, Study, Unit
from common.task_specs import AnyTask, TabularClassification

_MEGABYTE = 1e6


class BackboneLine(Part):
    """Where the pretrained model comes from; ``megabytes`` where its files are on this machine."""

    name: str
    revision: str
    source: str
    licence: str
    training_data: str
    files: int
    megabytes: float | None


class TaskLine(Part):
    """What is learned of which records.

    kind, content   as the study names them: ``image-classification`` of an ``image``
    does, reads     what the task does, and what it reads of a record, in words
    score           what its score is called
    labels, fields  among which it chooses, and of which a row consists; empty where there are none
    """

    kind: str
    content: str
    does: str
    reads: str
    score: str
    labels: tuple[str, ...]
    fields: tuple[str, ...]


class TravelLine(Part):
    """What trains and what travels.

    ranks                   where sites train different ranks: which this one trains, and who trains less
    training                how sites and server train, in words
    pretraining             what the first rounds learn without labels; empty where there are none such
    coordinates             of an update, where the model was loaded to count them
    megabytes_up, _down     of a round's update and vector, before the protocol's own few kilobytes a peer
    """

    adapter: str
    ranks: str
    training: str
    pretraining: str
    rounds: int
    steps_per_round: int
    charges: int
    evaluations: int
    bits: int
    coordinates: int | None
    megabytes_up: float | None
    megabytes_down: float | None


class PrivacyLine(Part):
    """What is promised and what it costs; None where it cannot be computed, or there is no such account.

    epsilon      recomputed here; ``stated`` is the study's own
    left, after  what the account has left now, and once this study is joined
    """

    unit: Unit
    epsilon: float | None
    stated: float
    delta: float
    noise_multiplier: float
    evaluation_noise_multiplier: float
    account: Name
    left: float | None
    after: float | None


class Peer(Part):
    """A site of the roster; ``fingerprint`` is what it reads out by telephone."""

    site: Name
    band: int
    fingerprint: str
    standing: Literal["this site", "verified", "not verified"]


class CohortLine(Part):
    """Who is in it.

    survivors  fewest sites whose sum may be opened
    tolerated  sites that may collude
    obstacle   why this site would not take part with the peers that are verified; empty where it would
    """

    survivors: int
    tolerated: int
    peers: tuple[Peer, ...]
    obstacle: str


class Difference(Part):
    """A field that is not as in the study before; None on the side where it is absent."""

    field: str
    before: str | None
    after: str | None


class Verdict(Part):
    """Everything on the page.

    personal      what this site may fit for itself after the last round; empty where that is nothing
    reference     to which public data it can compare its own; empty where there are none
    differs_from  digest of the newest other study that may run here; None where there is none
    """

    title: str
    digest: Hex32
    operator: str
    state: State
    purpose: tuple[str, ...]
    statement: str
    task: TaskLine
    backbone: BackboneLine
    travels: TravelLine
    personal: str
    reference: str
    privacy: PrivacyLine
    cohort: CohortLine
    expires: str
    software: str
    installed: str
    concerns: tuple[str, ...]
    differs_from: Hex32 | None
    differences: tuple[Difference, ...]
    violations: tuple[Violation, ...]


def judge(study: Study, config: SiteConfig, now: datetime) -> tuple[Book | None, tuple[Violation, ...]]:
    """Read the ledger and return it with every violation; one that cannot be read is a violation of the budget."""
    try:
        found = inspect(config.ledger_file, config.ledger.anchor)
        if found.reason:
            raise ConsiliumError(found.fault, found.reason)
    except ConsiliumError as error:
        unread = Violation(rule=Rule.BUDGET, found=f"{error.code} {error.fault.cause}", allowed="a sound ledger pays")
        return None, (*violations(study, config, book=None, now=now), unread)
    book = Book(found.entries)
    return book, violations(study, config, book=book, now=now)


def review(
    one: Known, config: SiteConfig, others: tuple[Known, ...], now: datetime, *, coordinates: int | None = None
) -> Verdict:
    """Return the verdict on a study.

    others       the studies that are known here, newest first
    coordinates  length of an update, where it is known
    """
    study = one.study
    book, found = judge(study, config, now)
    before = next((other for other in others if other.running and other.digest != one.digest), None)
    return Verdict(
        title=" ".join(study.title.split()),
        digest=one.digest,
        operator=fingerprint(parse_public_key(study.operator)),
        state=one.state_at(now),
        purpose=tuple(map(named, study.purpose.duo)),
        statement=" ".join(study.purpose.statement.split()),
        task=_task(study.task),
        backbone=_backbone(study.backbone, config),
        travels=_travels(study, config.site, coordinates),
        personal=wording.keeps(study.personal),
        reference=wording.compares(study.reference),
        privacy=_privacy(study, config, book),
        cohort=_cohort(study, config),
        expires=study.expires,
        software=study.software,
        installed=version("consilium"),
        concerns=_concerns(study),
        differs_from=None if before is None else before.digest,
        differences=() if before is None else tuple(differences(before.study, study)),
        violations=found,
    )


def differences(before: Study, after: Study) -> Iterator[Difference]:
    """Yield every field that two studies do not share, in the order of the study; sites are compared by name."""
    old, new = _flat(before), _flat(after)
    for field in dict.fromkeys((*new, *old)):
        if old.get(field) != new.get(field):
            yield Difference(field=field, before=old.get(field), after=new.get(field))


def _flat(study: Study) -> Mapping[str, str]:
    fields: dict[str, object] = study.model_dump(mode="json")
    fields["roster"] = {member.site: {"key": member.key, "band": member.band} for member in study.roster}
    return dict(_leaves("", fields))


def _leaves(path: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}" if path else str(name), part)
    else:
        yield path, value if isinstance(value, str) else rfc8785.dumps(value).decode()  # type: ignore[arg-type]


def _backbone(manifest: BackboneManifest, config: SiteConfig) -> BackboneLine:
    return BackboneLine(
        name=manifest.name,
        revision=manifest.revision,
        source=manifest.source,
        licence=manifest.licence,
        training_data=manifest.training_data,
        files=len(manifest.files),
        megabytes=_megabytes(manifest, config),
    )


def _megabytes(manifest: BackboneManifest, config: SiteConfig) -> float | None:
    try:
        folder: Path = locate(config, manifest)
        return sum((folder / name).stat().st_size for name in manifest.files) / _MEGABYTE
    except (ConsiliumError, OSError):
        return None


def _task(task: AnyTask) -> TaskLine:
    fields = task.fields if isinstance(task, TabularClassification) else ()
    return TaskLine(
        kind=task.kind,
        content=task.content,
        does=wording.does(task),
        reads=wording.reads(task),
        score=task.score,
        labels=task.known_labels,
        fields=tuple(map(wording.field_words, fields)),
    )


def _travels(study: Study, site: str, coordinates: int | None) -> TravelLine:
    up = None
    if coordinates is not None:
        try:
            up = vector_encoding(study, coordinates).packed_bytes / _MEGABYTE
        except ConsiliumError:
            # The site would not start; `check` says so.
            up = None
    adapter = study.adapter
    differing = wording.differing_ranks(adapter)
    return TravelLine(
        adapter=wording.adapts(adapter, study.task),
        ranks=f"this site trains rank {adapter.rank_at(site)}; {differing}" if differing else "",
        training=wording.trains(study.training),
        pretraining=wording.pretrains(study.pretraining, study.training, study.task),
        rounds=study.training.rounds,
        steps_per_round=study.training.steps_per_round,
        charges=study.privacy.max_charges,
        evaluations=study.evaluation.releases,
        bits=study.aggregation.bits,
        coordinates=coordinates,
        megabytes_up=up,
        megabytes_down=None if coordinates is None else 4 * coordinates / _MEGABYTE,
    )


def _privacy(study: Study, config: SiteConfig, book: Book | None) -> PrivacyLine:
    try:
        plan = PrivacyPlan.of(study.privacy, study.training, study.evaluation, population=1)
        epsilon: float | None = plan.epsilon()
    except ConsiliumError:
        epsilon = None
    left = after = None
    if book is not None and config.account in {opened.account for opened in book.accounts()}:
        balance = book.balance(config.account)
        left = balance.epsilon_remaining
        is_joined = any(paid.study == study.digest and paid.counts for paid in balance.studies)
        if epsilon is not None:
            after = left if is_joined else left - epsilon
    return PrivacyLine(
        unit=study.privacy.unit,
        epsilon=epsilon,
        stated=study.privacy.epsilon,
        delta=study.privacy.delta,
        noise_multiplier=study.privacy.noise_multiplier,
        evaluation_noise_multiplier=study.evaluation.noise_multiplier,
        account=config.account,
        left=left,
        after=after,
    )


def _cohort(study: Study, config: SiteConfig) -> CohortLine:
    terms, verified = Terms.from_study(study), config.verified_in(study)

    def standing(site: SiteId) -> Literal["this site", "verified", "not verified"]:
        if site == config.site:
            return "this site"
        return "verified" if site in verified else "not verified"

    obstacle = ""
    try:
        terms.check_reachable(config.site_id, verified)
    except ConsiliumError as error:
        obstacle = f"{error.code} {error.detail}"
    return CohortLine(
        survivors=terms.survivors_needed(terms.smallest_cohort),
        tolerated=terms.tolerated,
        peers=tuple(
            Peer(
                site=member.site,
                band=member.band,
                fingerprint=fingerprint(member.public_key),
                standing=standing(member.site_id),
            )
            for member in study.roster
        ),
        obstacle=obstacle,
    )


def _concerns(study: Study) -> tuple[str, ...]:
    try:
        return tuple(map(str, concerns(study)))
    except ConsiliumError:
        # What it promises does not hold: a violation says so.
        return ()
