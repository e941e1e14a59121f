"""The PrivacyPlan: the one object from which sampler, clipping, noise, accountant and printed statement are made.

Everything in it is public and signed in the Study. Sensitive values (how many units a site really has, which were
drawn, what a gradient was) never enter a plan; they are arguments of calls.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.privacy.accounting import (
    EVALUATION_SCALE,
    EVALUATION_SENSITIVITY,
    discrete_noises,
    epsilon_of,
    whole_event,
)
from common.privacy.grid import DiscreteNoise, NoiseGrid
from common.study import Evaluation, Privacy, Study, TrainingNoise, Unit
from common.transfer import Training

if TYPE_CHECKING:
    import dp_accounting


@dataclass(frozen=True, slots=True)
class PrivacyPlan:
    """What one site guarantees to each unit for its whole participation in one Study, and by which numbers.

    unit                         whose presence is hidden: add or remove one record, or one patient with all records
    max_records_per_unit         records of one unit that may enter a step
    sampling_rate                probability with which each unit enters a step, independently
    noise_multiplier             noise standard deviation over clip norm, each step
    clip_norm                    L2 bound of one unit's gradient
    steps_per_charge             steps between two sums
    max_charges                  sums the site may take part in, repeated attempts included (RULES 7)
    evaluation_noise_multiplier  noise over L2 sensitivity, each evaluation release
    evaluation_releases          evaluation releases
    delta                        at which epsilon is stated
    population                   the site's public weight band, never a live count
    noise                        how the noise of a step is drawn: in float64, or exactly, on a grid of integers
    """

    unit: Unit
    max_records_per_unit: int
    sampling_rate: float
    noise_multiplier: float
    clip_norm: float
    steps_per_charge: int
    max_charges: int
    evaluation_noise_multiplier: float
    evaluation_releases: int
    delta: float
    population: int
    noise: TrainingNoise = TrainingNoise.GAUSSIAN

    def __post_init__(self) -> None:
        for name in ("clip_norm", "noise_multiplier", "evaluation_noise_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0.0):
                raise ConsiliumError(errors.PRIVACY_PARAMETER, f"{name} must be finite and above 0")
        for name in ("max_records_per_unit", "steps_per_charge", "max_charges", "population"):
            if getattr(self, name) < 1:
                raise ConsiliumError(errors.PRIVACY_PARAMETER, f"{name} must be at least 1")
        if self.noise is TrainingNoise.DISCRETE:
            # Twice the band: a site may have grown since it declared its size.
            self.grid.check_sum(2 * self.population)

    @classmethod
    def of(cls, privacy: Privacy, training: Training, evaluation: Evaluation, *, population: int) -> PrivacyPlan:
        """Make the plan of parts that belong to one Study; raises CSL-201 for a value out of range."""
        return cls(
            unit=privacy.unit,
            max_records_per_unit=privacy.max_records_per_unit,
            sampling_rate=privacy.sampling_rate,
            noise_multiplier=privacy.noise_multiplier,
            clip_norm=privacy.clip_norm,
            steps_per_charge=training.steps_per_round,
            max_charges=privacy.max_charges,
            evaluation_noise_multiplier=evaluation.noise_multiplier,
            evaluation_releases=evaluation.releases,
            delta=privacy.delta,
            population=population,
            noise=privacy.noise,
        )

    @classmethod
    def for_site(cls, study: Study, site: SiteId) -> PrivacyPlan:
        """Make a site's plan and recompute its epsilon.

        Raises CSL-122 for a site outside the roster, CSL-201 for a value out of range, and CSL-203 when the epsilon
        recomputed here is above the one that the study states.
        """
        plan = cls.of(study.privacy, study.training, study.evaluation, population=study.member(site).band)
        if plan.epsilon() > study.privacy.epsilon:
            raise ConsiliumError(
                errors.PRIVACY_EXCEEDED, f"states epsilon {study.privacy.epsilon:g}, spends {plan.epsilon():.4f}"
            )
        return plan

    @property
    def steps(self) -> int:
        """Steps in all charges together."""
        return self.steps_per_charge * self.max_charges

    @property
    def divisor(self) -> float:
        """What a step's clipped sum is divided by: the batch that the public band leads one to expect."""
        return self.sampling_rate * self.population

    @property
    def noise_deviation(self) -> float:
        """Standard deviation of the noise added to each coordinate of a step's clipped sum."""
        return self.noise_multiplier * self.clip_norm

    @property
    def grid(self) -> NoiseGrid:
        """Where the numbers of a step with discrete noise lie; raises CSL-201 where there is no such grid."""
        return NoiseGrid.of(self.clip_norm, self.noise_deviation)

    def check_dimension(self, dimension: int) -> None:
        """Raise CSL-201 where a step of so many coordinates leaves no room for the rounding of discrete noise."""
        if self.noise is TrainingNoise.DISCRETE:
            self.grid.rounded_clip(dimension)

    @property
    def discrete_noises(self) -> tuple[DiscreteNoise, ...]:
        """Where discrete Gaussians are added while :meth:`event` composes continuous ones."""
        return discrete_noises(self.noise, self.steps, self.evaluation_noise_multiplier, self.evaluation_releases)

    @property
    def evaluation_deviation(self) -> float:
        """Parameter of the discrete Gaussian added to each cell of an evaluation, in fixed point."""
        return self.evaluation_noise_multiplier * EVALUATION_SENSITIVITY

    def event(self) -> dp_accounting.DpEvent:
        """Return training and evaluation as one event that the accountant composes."""
        return whole_event(
            self.noise_multiplier,
            self.sampling_rate,
            self.steps,
            self.evaluation_noise_multiplier,
            self.evaluation_releases,
        )

    def epsilon(self) -> float:
        """Return epsilon at ``delta`` for all charges and all releases together, rounded up by the accountant."""
        return self.epsilon_of_part(steps=self.steps, releases=self.evaluation_releases)

    def epsilon_of_part(self, *, steps: int, releases: int) -> float:
        """Return what so many steps and evaluation releases would have cost by themselves, at ``delta``."""
        return epsilon_of(
            noise_multiplier=self.noise_multiplier,
            sampling_rate=self.sampling_rate,
            steps=steps,
            delta=self.delta,
            evaluation_noise_multiplier=self.evaluation_noise_multiplier,
            evaluation_releases=releases,
            noise=self.noise,
        )


def cell_bound(study: Study) -> int:
    """Return the public bound, either side of zero, to which every site clamps its noised evaluation cells.

    Twice the largest band and twelve standard deviations of the noise, at the fixed-point scale. Clamping is
    post-processing of a private output; it is there for the overflow proof of the secure sum (RULES 6).
    """
    largest = max(member.band for member in study.roster)
    deviation = study.evaluation.noise_multiplier * EVALUATION_SENSITIVITY
    return math.ceil(2 * largest * EVALUATION_SCALE + 12.0 * deviation)


TESTED_SHARE = 0.1
"""Part of each site's public band that is supposed to be tested where nobody knows better."""
_TWO_SIDED_95 = 1.96


def expected_half_width(study: Study, tested_share: float = TESTED_SHARE) -> float:
    """Return half the 95 % interval that noise alone puts around a released accuracy, at most 1.

    tested_share  units tested over the sum of the public bands, in (0, 1]

    The noise of both cells counts in full, as at an accuracy of 1. Computed from public values before anyone signs: a
    figure that would drown says so then (RULES 9).
    """
    tested = tested_share * sum(member.band for member in study.roster)
    return min(1.0, _half_width_times_tested(study) / tested)


def units_to_test(study: Study, half_width: float) -> int:
    """Return how many units all sites together must test for the noise to widen an interval by ``half_width`` only."""
    return math.ceil(round(_half_width_times_tested(study) / half_width, 6))


def _half_width_times_tested(study: Study) -> float:
    deviation = study.evaluation.noise_multiplier * EVALUATION_SENSITIVITY / EVALUATION_SCALE
    return _TWO_SIDED_95 * math.sqrt(2.0 * len(study.roster)) * deviation
