"""The privacy statement of a study: what is promised to whom, by which numbers, and what is not.

Written from the Study alone, after NIST SP 800-226: unit, neighbour relation, parameters, accountant, sampling,
composition, trust, randomness, data-dependent outputs and residual leaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.identity import SiteId
from common.privacy.accounting import EVALUATION_SCALE, EVALUATION_SENSITIVITY, accountant_version, epsilon_of
from common.privacy.groups import SHOWN_GROUPS, epsilon_for_group
from common.privacy.plan import PrivacyPlan
from common.study import Kind, Study, Unit

NEIGHBOUR: Mapping[Unit, str] = {
    Unit.RECORD: "add or remove one record",
    Unit.PATIENT: "add or remove one patient with all of their records",
}

_USELESS = 20.0
"""Above this epsilon the odds may change by more than 4e8: a guarantee in name."""

_STATEMENT = """\
# Privacy statement

Study {digest}
{warning}
**In one sentence.** Whatever anyone outside a site computes from what that site sends in this study, the odds
of it change by at most a factor of e^{epsilon:.3g}, apart from a probability of {delta:g}, when one {unit} is
added to or removed from the site's data.

## What is guaranteed
| | |
|---|---|
| unit of privacy | {unit} |
| neighbouring data sets | {neighbour} |
| epsilon stated by the study | {stated:g} |
| epsilon recomputed here | {epsilon:.4f} |
| delta | {delta:g} |
| scope | one site's whole participation: {charges} training charges of {steps_per_charge} steps and {releases} \
evaluation release(s) |
| training alone | epsilon {training:.4f} |
| mechanism | DP-SGD: Poisson sampling at rate {rate:g}, each unit's gradient clipped to L2 norm {clip:g}, \
Gaussian noise of standard deviation {sigma:g} times the clip norm |
| steps charged | {steps}, whether they are executed or not |
| divisor of a step | sampling rate times the site's public band, never a count |
| evaluation | two cells a release, each unit of weight one, discrete Gaussian noise of {evaluation:g} times \
the L2 sensitivity, not subsampled |
| accountant | {accountant} |

{records}

## Who learns what
- **The operator and the other sites** see one sum over sites for each round, under secure aggregation. The
  guarantee above does not lean on it: it holds for each site's own update, even if the operator had seen that
  update alone.
- **Everyone with the released adapter** sees a function of those sums.
- **The site itself** sees its own data, as before. Figures that it computes on them for itself are not
  released.

## Outputs that depend on data
| output | protection |
|---|---|
| updates of the adapter | DP-SGD as above, then clamped, rotated, rounded (post-processing) |
| evaluation cells (weight, correct weight) | discrete Gaussian noise as above; the published figure carries a \
95 % interval, {width} |
| number of units, examples, batch sizes, losses | never sent |
| weight of a site in the mean | a public band, signed in the study before any data were read |
| learning rate, clip norm, rounds and other settings | signed in the study; how they were chosen is outside \
this guarantee |

## Randomness
{randomness} Gaussians by Box-Muller in float64, with tails to 9.49 standard deviations; the evaluation's
noise is exact in integers [Canonne, Kamath and Steinke 2020]. Training noise is added in floating point,
whose rounding is not covered by the proof [Mironov 2012]: sums are formed in float64 and then rounded to
float32 and to the grid of the secure sum.

## What is not promised
- A patient known to k sites of the study is in k guarantees, which compose: epsilon and delta are at most k
  times the above.
- Other studies on the same patients add to this one: across studies epsilons and deltas add.
- What {unit}s have in common can be learned; that is what the study is for.
- Whether a site takes part, when it answers, and how long it takes can be seen, and time can depend on data.
- A restored snapshot of a site's storage can make it spend twice what it knows of.
"""


def statement(study: Study, site: SiteId | None = None) -> str:
    """Return the privacy statement of a study, as Markdown; every number is recomputed from the Study.

    site  whose statement it is; by default the first in the roster, since the guarantee is the same at each

    Raises CSL-122 for a site outside the roster, CSL-203 if the study spends more than it states.
    """
    plan = PrivacyPlan.for_site(study, site or study.roster[0].site_id)
    training = epsilon_of(
        noise_multiplier=plan.noise_multiplier,
        sampling_rate=plan.sampling_rate,
        steps=plan.steps,
        delta=plan.delta,
        evaluation_noise_multiplier=plan.evaluation_noise_multiplier,
        evaluation_releases=0,
        noise=plan.noise,
    )
    simulated = study.kind is Kind.SIMULATION
    return _STATEMENT.format(
        digest=study.digest,
        warning="\n**This is a simulation study: no hospital's promise stands behind it.**\n" if simulated else "",
        unit=plan.unit.value,
        neighbour=NEIGHBOUR[plan.unit],
        stated=study.privacy.epsilon,
        epsilon=plan.epsilon(),
        delta=plan.delta,
        charges=plan.max_charges,
        steps_per_charge=plan.steps_per_charge,
        releases=plan.evaluation_releases,
        training=training,
        rate=plan.sampling_rate,
        clip=plan.clip_norm,
        sigma=plan.noise_multiplier,
        steps=plan.steps,
        evaluation=plan.evaluation_noise_multiplier,
        accountant=accountant_version(),
        records=_records(plan),
        width=f"about ±{100 * expected_half_width(study):.1f} points from the noise alone if every site tests a "
        "tenth of its band",
        randomness="A simulation may seed its randomness, and is then not private at all; its metrics say so."
        if simulated
        else "Sampling and noise come from an AES-256-CTR keystream keyed by the operating system.",
    )


def expected_half_width(study: Study, tested_share: float = 0.1) -> float:
    """Return half the 95 % interval that noise alone puts around a released accuracy, at most 1.

    tested_share  part of each site's public band that is tested, in (0, 1]

    The noise of both cells counts in full, as at an accuracy of 1. Computed from public values before anyone signs: a
    figure that would drown says so here (RULES 9).
    """
    deviation = study.evaluation.noise_multiplier * EVALUATION_SENSITIVITY / EVALUATION_SCALE
    tested = tested_share * sum(member.band for member in study.roster)
    return min(1.0, 1.96 * math.sqrt(2.0 * len(study.roster)) * deviation / tested)


def _records(plan: PrivacyPlan) -> str:
    if plan.unit is Unit.PATIENT:
        return (
            f"A patient's records in a step (at most {plan.max_records_per_unit}, chosen at random) are summed before "
            "the clip, so the guarantee is for the whole patient."
        )
    rows = "\n".join(f"| {count} | {_epsilon_shown(epsilon_for_group(plan, count))} |" for count in SHOWN_GROUPS)
    return (
        "**A person is not a record.** The guarantee above is for one record. Whoever has k records at a site is "
        f"protected by this much, at the same delta of {plan.delta:g}, if all k are added or removed together:\n\n"
        f"| records of one person | epsilon |\n|---|---|\n{rows}\n\n"
        "Where people have several records, sign a study with unit 'patient': its guarantee does not grow with k."
    )


def _epsilon_shown(epsilon: float) -> str:
    if math.isinf(epsilon):
        return "no finite bound: not protected"
    return f"{math.ceil(epsilon * 1e4) / 1e4:.4f}" + (" (no protection to speak of)" if epsilon > _USELESS else "")
