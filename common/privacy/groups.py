"""What a plan promises to a person who owns several units: a patient with k records in a record-level study.

The k records are added or removed together. In a step each enters by its own coin, so that the number of those that
enter is binomial and moves the clipped sum by at most that many clip norms. One output from the mixture of Gaussians
with these distances dominates a step, also for vectors that lie in different directions and under adaptive composition
[Ganesh 2024, "Tight group-level DP guarantees for DP-SGD with sampling via mixture of Gaussians mechanisms",
arXiv 2401.10294]. In an evaluation release all k are present and move the cells by k times the sensitivity.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING

from common import errors
from common.errors import ConsiliumError
from common.privacy.accounting import MOST_POINTS, evaluation_event, pld_accountant
from common.privacy.grid import discrete_epsilon
from common.privacy.plan import PrivacyPlan
from common.privacy.support import gaussian_points, mixture_points, step_points
from common.study import Unit

if TYPE_CHECKING:
    import dp_accounting

SHOWN_GROUPS = (1, 2, 10)
"""Numbers of records for which a record-level statement prints the guarantee."""
NAMELESS_EPSILON = 20.0
"""Above this epsilon the odds may change by more than 4e8: a guarantee in name."""
MOST_RECORDS = 1000
_GRID_PER_RECORD = 5e-3
"""Grid of the losses over the number of records; losses are rounded up, which costs about one part in a hundred."""
_MOST_SEARCHED = 2**19
"""Points of one step, times the distances summed at each: the accountant searches each point's place by itself."""


def epsilon_for_person(plan: PrivacyPlan, records: int) -> float:
    """Return an upper bound of epsilon, at the plan's delta, for a person with so many records at one site.

    Under a patient-level plan it is the plan's own, however many records there are: all of them are one unit. Under a
    record-level plan it is that of the records as a group. Raises CSL-201 for a number of records out of range.
    """
    _check_records(records)
    return plan.epsilon() if plan.unit is Unit.PATIENT else epsilon_for_group(plan, records)


@lru_cache(maxsize=256)
def epsilon_for_group(plan: PrivacyPlan, records: int) -> float:
    """Return an upper bound of epsilon, at the plan's delta, for adding or removing ``records`` units together.

    records  1 to 1000; 1 gives the plan's own epsilon

    The result is infinite where the accountant finds no finite bound, or would need too many points to find one: that
    many records are not protected. Raises CSL-201 for a number out of range.
    """
    _check_records(records)
    own = plan.epsilon()
    if records == 1:
        return own
    grid = _GRID_PER_RECORD * records
    if not _fits(plan, records, grid):
        return math.inf
    accountant = pld_accountant(grid)
    accountant.compose(group_step(plan, records), plan.steps)
    if plan.evaluation_releases:
        accountant.compose(evaluation_event(plan.evaluation_noise_multiplier / records, plan.evaluation_releases))
    # More records are never safer; the grid's rounding must not make it look so.
    return max(own, discrete_epsilon(accountant, plan.delta, plan.discrete_noises))


def group_step(plan: PrivacyPlan, records: int) -> dp_accounting.DpEvent:
    """Return one step as ``records`` units together see it: distances 0 to ``records`` clip norms, binomial."""
    import dp_accounting

    rate = plan.sampling_rate
    if rate == 1.0:
        return dp_accounting.GaussianDpEvent(plan.noise_multiplier / records)
    return dp_accounting.dp_event.MixtureOfGaussiansDpEvent(
        plan.noise_multiplier, _distances(records), _chances(records, rate)
    )


def _distances(records: int) -> list[float]:
    return [float(count) for count in range(records + 1)]


def _chances(records: int, rate: float) -> list[float]:
    chances = [math.exp(_log_binomial(records, count, rate)) for count in range(records + 1)]
    # What rounding leaves over goes to the largest distance, never to a smaller one.
    chances[-1] = max(chances[-1], 1.0 - math.fsum(chances[:-1]))
    return chances


def _fits(plan: PrivacyPlan, records: int, grid: float) -> bool:
    """Return whether a whole participation can be composed in seconds; found before anything is."""
    noise, rate, points = plan.noise_multiplier, plan.sampling_rate, 0.0
    if plan.evaluation_releases:
        points = gaussian_points(plan.evaluation_noise_multiplier / records, plan.evaluation_releases, grid)
    if rate == 1.0:
        return points + gaussian_points(noise / records, plan.steps, grid) <= MOST_POINTS
    mixture = _distances(records), _chances(records, rate)
    if step_points(noise, *mixture, grid) * (records + 10) > _MOST_SEARCHED:
        return False
    return points + mixture_points(noise, *mixture, plan.steps, grid) <= MOST_POINTS


def _check_records(records: int) -> None:
    if not 1 <= records <= MOST_RECORDS:
        raise ConsiliumError(errors.PRIVACY_PARAMETER, f"records is {records}, not within [1, {MOST_RECORDS}]")


def _log_binomial(trials: int, count: int, rate: float) -> float:
    ways = math.lgamma(trials + 1) - math.lgamma(count + 1) - math.lgamma(trials - count + 1)
    return ways + count * math.log(rate) + (trials - count) * math.log1p(-rate)
