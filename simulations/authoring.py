"""From a scenario to a signed and approved simulation Study.

Sizes become public bands, noise is calibrated to the promised epsilon, and the clamp of the encoding is derived from
the training, so that the Study says everything before anything runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import ValidationError

from common import errors
from common.agreement import Agreement, Approval, SignedStudy, countersign, sign, verify_agreement, verify_study
from common.errors import ConsiliumError
from common.identity import Identity, SiteId
from common.parts import describe
from common.privacy.bounds import band, clamp
from common.privacy.concerns import concerns
from common.secagg import Terms
from common.study import (
    MAX_SITES,
    Aggregation,
    BackboneManifest,
    Block,
    Kind,
    Member,
    Neighbourhoods,
    Privacy,
    Study,
    time_text,
)
from simulations.engines import EntropySource
from simulations.scenario import Scenario

_VALID_DAYS = 365


@dataclass(frozen=True, slots=True)
class Consortium:
    """The keys of one simulated study's parties."""

    operator: Identity
    sites: Mapping[SiteId, Identity]

    @classmethod
    def draw(cls, sites: tuple[SiteId, ...], entropy: EntropySource) -> Consortium:
        """Draw a key pair for the operator and for each site."""
        return cls(
            Identity.from_private_bytes(entropy.of("operator/identity")(32)),
            {site: Identity.from_private_bytes(entropy.of(f"{site}/identity")(32)) for site in sites},
        )


@dataclass(frozen=True, slots=True)
class Authored:
    """A study with everything that was signed."""

    signed: SignedStudy
    approvals: tuple[Approval, ...]
    agreement: Agreement

    @property
    def study(self) -> Study:
        """The study itself."""
        return self.agreement.study


def privacy_of(scenario: Scenario) -> Privacy:
    """Return the Study's privacy part, its noise calibrated unless the scenario fixes it; raises CSL-201 or CSL-202."""
    training = scenario.training
    return scenario.privacy.stated(training, scenario.evaluation, charges=training.rounds)


def author(
    scenario: Scenario,
    *,
    manifest: BackboneManifest,
    units: Mapping[SiteId, int],
    dimension: int,
    blocks: tuple[Block, ...] = (),
    privacy: Privacy,
    consortium: Consortium,
    stream: str,
    now: datetime | None = None,
) -> Authored:
    """Write the Study as :func:`draft` does, sign it as its operator and approve it as each site."""
    study = draft(
        scenario,
        manifest=manifest,
        units=units,
        dimension=dimension,
        blocks=blocks,
        privacy=privacy,
        consortium=consortium,
        stream=stream,
        now=now,
    )
    return sign_and_approve(study, consortium)


def sign_and_approve(study: Study, consortium: Consortium) -> Authored:
    """Sign a Study as its operator and approve it as each site."""
    signed = sign(study, consortium.operator)
    key = consortium.operator.public_key
    # One process verifies for all its sites.
    verified = verify_study(signed, key)
    digest = verified.digest
    approvals = tuple(
        countersign(verified, digest, site, identity) for site, identity in sorted(consortium.sites.items())
    )
    agreement = verify_agreement(signed, approvals, key, now=datetime.now(UTC), kind=Kind.SIMULATION)
    return Authored(signed, approvals, agreement)


def draft(
    scenario: Scenario,
    *,
    manifest: BackboneManifest,
    units: Mapping[SiteId, int],
    dimension: int,
    blocks: tuple[Block, ...] = (),
    privacy: Privacy,
    consortium: Consortium,
    stream: str,
    now: datetime | None = None,
    kind: Kind = Kind.SIMULATION,
) -> Study:
    """Write the Study, so that it can be judged before anyone signs it.

    Raises CSL-404 where no sum could be opened, CSL-511 where the scenario does not fit the sites.

    units      each site's number of units, which leaves this function only as a band
    dimension  length of the vector
    blocks     of it to which only some sites contribute
    stream     64 hex digits of public randomness
    """
    moment = (now or datetime.now(UTC)).replace(microsecond=0)
    roster = tuple(
        Member(site=site, key=consortium.sites[site].public_key.hex(), band=band(units[site])) for site in sorted(units)
    )
    wanted = scenario.aggregation
    try:
        study = Study(
            kind=kind,
            title=scenario.title,
            operator=consortium.operator.public_key.hex(),
            created=time_text(moment),
            expires=time_text(moment + timedelta(days=_VALID_DAYS)),
            stream=stream,
            purpose=scenario.purpose,
            backbone=manifest,
            task=scenario.task,
            adapter=scenario.adapter,
            training=scenario.training,
            pretraining=scenario.pretraining,
            personal=scenario.personal,
            privacy=privacy,
            evaluation=scenario.evaluation,
            aggregation=Aggregation(
                bits=wanted.bits,
                clamp=wanted.clamp
                or clamp(
                    scenario.training,
                    privacy,
                    smallest_band=min(member.band for member in roster),
                    dimension=dimension,
                ),
                minimum_cohort=wanted.minimum_cohort,
                max_share=wanted.max_share,
                blocks=blocks,
            ),
            roster=roster,
            neighbourhoods=Neighbourhoods() if len(roster) > MAX_SITES else None,
        )
    except ValidationError as error:
        # What the scenario could not know, such as a site that the data do not have.
        raise ConsiliumError(errors.SCENARIO_INVALID, describe(error)) from error
    # Through TOML-shaped fields once more, so that every check of an authored file holds for it too.
    study = Study.from_canonical(study.canonical())
    # Before signing: not even all sites together may be too few.
    Terms.from_study(study).check_feasible()
    return study


def foreseen(study: Study, tested: Mapping[SiteId, int]) -> tuple[str, ...]:
    """Return what people should hear before the study is signed, one sentence or more each.

    tested  each site's number of test units: a simulator knows them, an operator of a real study guesses
    """
    share = sum(tested.values()) / sum(member.band for member in study.roster)
    return tuple(str(concern) for concern in concerns(study, tested_share=share))
