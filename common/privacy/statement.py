"""The privacy statement of a study: what is promised to whom, by which numbers, and what is not.

Written from the Study alone, after NIST SP 800-226: unit, neighbour relation, parameters, accountant, sampling,
composition, trust, randomness, data-dependent outputs and residual leaks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from common.identity import SiteId, fingerprint
from common.privacy.accounting import EVALUATION_SCALE, EVALUATION_SENSITIVITY, accountant_version
from common.privacy.groups import NAMELESS_EPSILON, SHOWN_GROUPS, epsilon_for_person
from common.privacy.plan import PrivacyPlan, cell_bound, expected_half_width, units_to_test
from common.study import Kind, Study, TrainingNoise, Unit

NEIGHBOUR: Mapping[Unit, str] = {
    Unit.RECORD: "add or remove one record",
    Unit.PATIENT: "add or remove one patient with all of their records",
}

_NOISE: Mapping[TrainingNoise, str] = {
    TrainingNoise.GAUSSIAN: "Gaussian noise",
    TrainingNoise.DISCRETE: "discrete Gaussian noise",
}
_DRAWN: Mapping[TrainingNoise, str] = {
    TrainingNoise.GAUSSIAN: "Training's is made by Box-Muller in float64, with tails to 9.49 standard deviations, and\n"
    "added in floating point, whose rounding is not covered by the proof [Mironov 2012]: sums are formed in\n"
    "float64 and then rounded to float32 and to the grid of the secure sum.",
    TrainingNoise.DISCRETE: "Training's is exact in integers too: each unit's clipped gradient is rounded to a grid\n"
    "by itself, sums and discrete Gaussians are integers, and only the finished number is scaled back. No rounding\n"
    "is left outside the proof.",
}

_STATEMENT = """\
# Privacy statement

"{title}", study {digest}{addressee}
{warning}
**In one sentence.** Whatever anyone outside a site computes from what that site sends in this study, the odds
of it change by at most a factor of e^{rounded}, apart from a probability of {delta:.10g}, when one {unit} is
added to or removed from the site's data.

## What is guaranteed
| | |
|---|---|
| unit of privacy | {unit} |
| neighbouring data sets | {neighbour} |
| epsilon stated by the study | {stated:.10g} |
| epsilon recomputed here | {epsilon} |
| delta | {delta:.10g} |
| scope | one site's whole participation: {charges} training charges of {steps_per_charge} steps and {releases} \
evaluation release(s) |
| training alone | epsilon {training} |
| evaluation alone | epsilon {evaluating} |
| mechanism | DP-SGD: Poisson sampling at rate {rate:.10g}, each unit's gradient clipped to L2 norm {clip:.10g}, \
{noise} of standard deviation {sigma:.10g} times the clip norm |
| steps charged | {steps}, whether they are executed or not |
| weight of a site, divisor of a step | its public band, from {least:,} to {most:,} {unit}s, and the sampling rate \
times that band; never a count |
| accountant | {accountant} |

{records}

{evaluation}

## What is charged
- A site commits the epsilon and delta above to its account when it joins, and charges before it computes. A study \
closed before its first charge gives them back; after one charge all of them count as spent.
- A charge is one update of {steps_per_charge} step(s) for one model, one attempt and one cohort. {rounds} sums are \
planned and {charges} charges allowed, so {spare} may be repeated; then the site refuses.
- An attempt that is aborted after a site has charged for it stays charged there, and asking again is another charge; \
so is what replaces a request that a site's crash left unanswered. One that was answered gets the same reply, free.
- The account is a patient population that the hospital names, not a file. Inside this study every parameter was \
fixed at signing, and one accountant composes all of it. Across studies on one account epsilons and deltas add.

## Who learns what
- **The operator and the other sites** see one sum over sites for each round, under secure aggregation. The
  guarantee above does not lean on it: it holds for each site's own update, even if the operator had seen that
  update alone. Nobody outside the site is trusted with its data: the operator, all other sites together and the
  network may be hostile. Whoever controls the site's own machine is not defended against.
- **Everyone with the released adapter** sees a function of those sums.
- **The site itself** sees its own data, as before. Figures that it computes on them for itself are not
  released, and why it refused something is told to the operator as `unavailable` and no more.

## Outputs that depend on data
| output | protection |
|---|---|
| updates of the adapter | DP-SGD as above, then clamped, rotated, rounded (post-processing) |
| the released adapter | a function of sums of such updates (post-processing) |
| evaluation cells (weight, correct weight) | discrete Gaussian noise as above, in every release |
| number of units, examples, batch sizes, losses | never sent |
| a record that cannot be read, a gradient that is not finite | counts as zero; it stops nothing |
| weight of a site in the mean | a public band, signed in the study before any data were read |
| where the ledger ends, in each reply | encrypted anew for this site alone; always of one length |
| learning rate, clip norm, rounds and other settings | signed in the study; how they were chosen is outside \
this guarantee |

## Randomness
{randomness} The evaluation's noise is exact in integers [Canonne, Kamath and Steinke 2020]. {drawn}

## What is not promised
- **Several sites.** A patient known to k sites of the study is in k guarantees, which compose: epsilon and delta
  are at most k times the above, at two sites {two_epsilon} and {two_delta:.10g}, at all {sites} sites
  {all_epsilon} and {all_delta:.10g}.
- **Other studies** on the same patients add to this one.
- **What {unit}s have in common** can be learned; that is what the study is for.
- **Presence and time.** Whether a site takes part, when it answers, and how long it takes can be seen, and time
  can depend on data: on how many units were drawn, and on how long their texts are.
- **Restored storage.** A site whose ledger was put back to an older copy refuses to train: its anchor outside the
  database, and the head in its own signed replies, tell it so. If database and anchor are put back together and
  the operator keeps those replies to itself, the site can spend twice what it then knows of.

The headings answer NIST SP 800-226 (2025). {signing}
"""

_EVALUATION = """\
## Evaluation
| | |
|---|---|
| cells of a release | weight of the tested {unit}s, and weight of what was right; each {unit} weighs one in all |
| L2 sensitivity | {sensitivity:.1f}: both cells may move by {scale:,}, which stands for one {unit} |
| noise | discrete Gaussian of parameter {deviation:.1f}, {evaluation:.10g} times the sensitivity, on each cell at \
each site; every tested {unit} is in every release |
| releases | {releases}, then each cell is clamped to ±{bound:,} (post-processing) |
| published figure | with a 95 % interval, about ±{width:.1f} points from the noise alone if every \
site tests a tenth of its band, and ±10 if {needed:,} {unit}s are tested in all |"""
_NO_EVALUATION = """\
## Evaluation
Nothing about quality is released."""

_GENERAL = "The guarantee is the same at every site. A site that approves signs the digest above with its own key."
_OWN = """\
Whoever approves this for {site} signs the digest above with that site's key, of fingerprint {fingerprint}.

Read and approved for {site} (name, office, date, signature):"""


def statement(study: Study, site: SiteId | None = None) -> str:
    """Return the privacy statement of a study, as Markdown; every number is recomputed from the Study.

    site  whose statement it is; by default the first in the roster, since the guarantee is the same at each

    Raises CSL-122 for a site outside the roster, CSL-203 if the study spends more than it states.
    """
    plan = PrivacyPlan.for_site(study, site or study.roster[0].site_id)
    bands = [member.band for member in study.roster]
    simulated = study.kind is Kind.SIMULATION
    return _STATEMENT.format(
        digest=study.digest,
        title=" ".join(study.title.split()),
        addressee=_addressee(study, plan, site),
        warning="\n**This is a simulation study: no hospital's promise stands behind it.**\n" if simulated else "",
        unit=plan.unit.value,
        neighbour=NEIGHBOUR[plan.unit],
        stated=study.privacy.epsilon,
        epsilon=rounded_up(plan.epsilon()),
        rounded=rounded_up(plan.epsilon(), 2).rstrip("0").rstrip("."),
        delta=plan.delta,
        charges=plan.max_charges,
        steps_per_charge=plan.steps_per_charge,
        releases=plan.evaluation_releases,
        training=rounded_up(plan.epsilon_of_part(steps=plan.steps, releases=0)),
        evaluating=rounded_up(
            plan.epsilon_of_part(steps=0, releases=plan.evaluation_releases) if plan.evaluation_releases else 0.0
        ),
        rate=plan.sampling_rate,
        clip=plan.clip_norm,
        sigma=plan.noise_multiplier,
        steps=plan.steps,
        least=min(bands),
        most=max(bands),
        rounds=study.training.rounds,
        spare=plan.max_charges - study.training.rounds,
        sites=len(bands),
        two_epsilon=rounded_up(2 * plan.epsilon()),
        two_delta=2 * plan.delta,
        all_epsilon=rounded_up(len(bands) * plan.epsilon()),
        all_delta=len(bands) * plan.delta,
        signing=_GENERAL
        if site is None
        else _OWN.format(site=site, fingerprint=fingerprint(study.member(site).public_key)),
        accountant=accountant_version(),
        records=_records(plan),
        evaluation=_evaluation(study, plan),
        noise=_NOISE[plan.noise],
        drawn=_DRAWN[plan.noise],
        randomness="A simulation may seed its randomness, and is then not private at all; its metrics say so."
        if simulated
        else "Sampling and noise come from an AES-256-CTR keystream keyed by the operating system.",
    )


def _evaluation(study: Study, plan: PrivacyPlan) -> str:
    if not plan.evaluation_releases:
        return _NO_EVALUATION
    return _EVALUATION.format(
        unit=plan.unit.value,
        sensitivity=EVALUATION_SENSITIVITY,
        scale=EVALUATION_SCALE,
        deviation=plan.evaluation_deviation,
        evaluation=plan.evaluation_noise_multiplier,
        releases=plan.evaluation_releases,
        bound=cell_bound(study),
        width=100 * expected_half_width(study),
        needed=units_to_test(study, 0.1),
    )


def _addressee(study: Study, plan: PrivacyPlan, site: SiteId | None) -> str:
    if site is None:
        return f", for each of its {len(study.roster)} sites"
    return f", for {site}: band {plan.population:,}, {plan.divisor:.10g} {plan.unit.value}s expected in a step"


def _records(plan: PrivacyPlan) -> str:
    if plan.unit is Unit.PATIENT:
        return (
            f"A patient's records in a step (at most {plan.max_records_per_unit}, chosen at random) are summed before "
            "the clip, so the guarantee is for the whole patient, however many records there are."
        )
    rows = "\n".join(f"| {count} | {_epsilon_shown(epsilon_for_person(plan, count))} |" for count in SHOWN_GROUPS)
    return (
        "**A person is not a record.** The guarantee above is for one record. Whoever has k records at a site is "
        f"protected by this much, at the same delta of {plan.delta:.10g}, if all k are added or removed together:\n\n"
        f"| records of one person | epsilon |\n|---|---|\n{rows}\n\n"
        "Where people have several records, sign a study with unit 'patient': its guarantee does not grow with k."
    )


def _epsilon_shown(epsilon: float) -> str:
    if math.isinf(epsilon):
        return "no finite bound: not protected"
    return rounded_up(epsilon) + (" (no protection to speak of)" if epsilon > NAMELESS_EPSILON else "")


def rounded_up(epsilon: float, digits: int = 4) -> str:
    """Print an epsilon, never smaller than it is."""
    return f"{math.ceil(epsilon * 10**digits) / 10**digits:.{digits}f}"


def rounded_down(epsilon: float, digits: int = 4) -> str:
    """Print what is left of an epsilon, never larger than it is."""
    return f"{math.floor(epsilon * 10**digits) / 10**digits:.{digits}f}"
