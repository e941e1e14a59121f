"""What people should hear before a study is signed: where its numbers promise, do or will tell less than they seem to.

Written from the Study alone, like the statement. A concern refuses nothing; it names what is unusual, by how much, and
what would mend it. What must be refused is refused elsewhere, with a code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from common.privacy.groups import NAMELESS_EPSILON, epsilon_for_group
from common.privacy.plan import TESTED_SHARE, PrivacyPlan, expected_half_width, units_to_test
from common.study import Kind, Study, Unit
from common.transfer import Training

WIDE = 0.10
"""A released accuracy with a wider half interval from the noise alone hardly tells one model from another."""
MANY_RELEASES = 3
MANY_RECORDS = 10
"""Records of one person for whom a record-level study is judged."""
_SPARE_CHARGES = 2.0
_SPARE_EPSILON = 1.25
_HEAVY = 0.5


@dataclass(frozen=True, slots=True)
class Concern:
    """One thing to hear before signing.

    topic  one word: epsilon, delta, unit, sampling, charges, budget, evaluation, releases, weights,
           proximal
    text   what is the matter, by how much, and what would mend it
    """

    topic: str
    text: str

    def __str__(self) -> str:
        return f"{self.topic.upper()}: {self.text}"


def concerns(study: Study, *, tested_share: float = TESTED_SHARE) -> tuple[Concern, ...]:
    """Return what people should hear before they sign a study, gravest first; nothing where nothing is unusual.

    tested_share  units tested over the sum of the public bands, as far as it is known, in (0, 1]

    Raises CSL-203 if the study spends more than it states.
    """
    plan = PrivacyPlan.for_site(study, study.roster[0].site_id)
    found = (
        *_of_the_guarantee(study, plan),
        *_of_the_budget(study, plan),
        *_of_the_training(study.training),
        *_of_the_evaluation(study, plan, tested_share),
    )
    return tuple(Concern(topic, text) for topic, text in found)


def _of_the_guarantee(study: Study, plan: PrivacyPlan) -> Iterator[tuple[str, str]]:
    epsilon = plan.epsilon()
    if epsilon > NAMELESS_EPSILON:
        yield (
            "epsilon",
            f"at {epsilon:.3g} the odds of anything may change {math.exp(min(epsilon, 700.0)):.0e} times for one "
            f"{plan.unit.value}: a guarantee in name. Raise the noise, or lower the rate, the steps or the charges.",
        )
    largest = max(member.band for member in study.roster)
    if plan.delta * largest >= 1.0:
        yield (
            "delta",
            f"{plan.delta:g} is not below one in {largest:,}, the largest band: publishing one {plan.unit.value} at "
            f"random would keep such a promise. Choose a delta well below {1.0 / largest:.0e}.",
        )
    if plan.unit is Unit.RECORD:
        person = epsilon_for_group(plan, MANY_RECORDS)
        if person > NAMELESS_EPSILON:
            said = f"epsilon {person:.3g}" if math.isfinite(person) else "no finite epsilon"
            yield (
                "unit",
                f"the promise is to a record. A person with {MANY_RECORDS} records at a site has {said}. Where people "
                "have several records, sign for patients.",
            )
    if plan.sampling_rate == 1.0:
        yield (
            "sampling",
            "every unit is in every step, so that chance hides nobody. A lower rate buys the same epsilon with less "
            "noise.",
        )


def _of_the_budget(study: Study, plan: PrivacyPlan) -> Iterator[tuple[str, str]]:
    rounds, charges, stated = study.training.rounds, plan.max_charges, study.privacy.epsilon
    if charges > _SPARE_CHARGES * rounds:
        planned = plan.epsilon_of_part(steps=rounds * plan.steps_per_charge, releases=plan.evaluation_releases)
        yield (
            "charges",
            f"the budget covers {charges:,} sums where {rounds:,} are planned, which alone would spend epsilon "
            f"{planned:.3g}. A charge above the rounds pays for one repeated attempt, or for one crash of a site "
            "between charge and reply; agree to as many as needed.",
        )
    if charges == rounds and study.kind is Kind.DEPLOYMENT:
        yield (
            "charges",
            "the budget covers the planned sums and no repeated attempt: after one aborted sum no site can still pay "
            "for the last round, nor can a site that crashed between charge and reply. Agree to a few charges more "
            "than rounds.",
        )
    if stated > _SPARE_EPSILON * plan.epsilon():
        yield (
            "budget",
            f"the study states epsilon {stated:g} and spends {plan.epsilon():.3g} at most: sites would approve more "
            "than is needed. State what is spent.",
        )
    heaviest = max(study.roster, key=lambda member: member.band)
    share = heaviest.band / sum(member.band for member in study.roster)
    if share > _HEAVY:
        yield (
            "weights",
            f"{heaviest.site} weighs {100 * share:.0f} % in a sum of all: the sum is mostly its own update, which then "
            "rests on its noise alone.",
        )


def _of_the_training(training: Training) -> Iterator[tuple[str, str]]:
    if not training.proximal:
        return
    if training.steps_per_round == 1:
        yield (
            "proximal",
            f"a pull of {training.proximal:g} towards the round's start does nothing to the one step of a round, which "
            "is taken at that start. Agree to several steps a round, or leave it out.",
        )
        return
    share = training.learning_rate * training.proximal
    if training.optimizer == "sgd" and share > 1.0:
        yield (
            "proximal",
            f"a pull of {training.proximal:g} at learning rate {training.learning_rate:g} corrects {share:.3g} times "
            "the distance from the round's start in a step, which overshoots it. Keep their product below 1.",
        )


def _of_the_evaluation(study: Study, plan: PrivacyPlan, tested_share: float) -> Iterator[tuple[str, str]]:
    releases = plan.evaluation_releases
    if not releases:
        return
    alone = plan.epsilon_of_part(steps=0, releases=releases)
    if releases > MANY_RELEASES or alone > 0.5 * plan.epsilon():
        yield (
            "releases",
            f"{releases} evaluation release(s), every tested {plan.unit.value} in each, spend epsilon {alone:.3g} of "
            f"{plan.epsilon():.3g}. The final one is enough; more noise in it leaves more for the training.",
        )
    width = expected_half_width(study, tested_share)
    if width > WIDE:
        needed = units_to_test(study, WIDE)
        said = "the figure will say nothing" if width >= 0.5 else f"±{100 * width:.0f} points from the noise alone"
        yield (
            "evaluation",
            f"noise drowns the released figure: {said}, if {100 * tested_share:.0f} % as many units are tested as "
            f"the bands hold. {needed:,} tested in all would bring it to ±{100 * WIDE:.0f} points; so would less "
            "noise, at the price of epsilon.",
        )
