"""A guarantee as people ask for it, before a study states it: the noise is worked out where it is left open."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from common.parts import Part
from common.privacy.accounting import calibrate_noise
from common.study import Evaluation, Privacy, TrainingNoise, Unit
from common.transfer import Training


class WantedPrivacy(Part):
    """The guarantee to be reached. The noise is calibrated to epsilon unless ``noise_multiplier`` is given.

    noise         of training, as in the Study
    max_charges   training charges the budget must cover
    """

    unit: Unit = Unit.RECORD
    max_records_per_unit: int = Field(default=1, ge=1, le=10_000)
    epsilon: float = Field(gt=0)
    delta: float = Field(gt=0, lt=0.1)
    sampling_rate: float = Field(gt=0, le=1)
    clip_norm: float = Field(default=1.0, gt=0)
    noise_multiplier: float | None = Field(default=None, gt=0)
    noise: TrainingNoise = TrainingNoise.GAUSSIAN
    max_charges: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_record_is_one_record(self) -> Self:
        if self.unit is Unit.RECORD and self.max_records_per_unit != 1:
            raise ValueError("max_records_per_unit belongs to unit = 'patient'")
        return self

    def stated(self, training: Training, evaluation: Evaluation, *, charges: int) -> Privacy:
        """Return the Study's privacy part for so many charges, unless ``max_charges`` says; raises CSL-201, CSL-202."""
        charges = self.max_charges or charges
        sigma = self.noise_multiplier or calibrate_noise(
            epsilon=self.epsilon,
            delta=self.delta,
            sampling_rate=self.sampling_rate,
            steps=charges * training.steps_per_round,
            evaluation_noise_multiplier=evaluation.noise_multiplier,
            evaluation_releases=evaluation.releases,
            noise=self.noise,
        )
        return Privacy.model_validate(self.model_dump() | {"noise_multiplier": sigma, "max_charges": charges})
