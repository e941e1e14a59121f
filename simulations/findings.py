"""What the figures of a run say, in plain words, and how sure one can be of it.

Pure functions from `Metrics`. Nothing here claims a difference that chance on a test set of that size could have made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.figures import percent
from simulations.metrics import Baseline, Metrics, Score, SiteMetrics

Z95 = 1.959964
"""Two-sided 95% quantile of the standard normal distribution."""
FEW = 30
"""Below this many records an accuracy is called uncertain wherever it is printed."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of training, judged on the pooled test records.

    kind       class of its mark in figures
    name       in figures and tables
    interval   Wilson, 95%; None for a mean over sites, which is no single proportion
    """

    kind: str
    name: str
    accuracy: float
    interval: tuple[float, float] | None
    macro_f1: float | None
    note: str


@dataclass(frozen=True, slots=True)
class SubgroupFinding:
    """One value of a subgroup column over all sites: exact, with its Wilson interval and the site that does worst."""

    value: str
    examples: int
    accuracy: float
    low: float
    high: float
    sites: int
    worst: str
    worst_accuracy: float
    few: bool


@dataclass(frozen=True, slots=True)
class Difference:
    """`value`, a difference of two accuracies, and `chance`, the 95% half-width it must exceed to be called one."""

    value: float
    chance: float

    @property
    def clear(self) -> bool:
        """Larger than chance."""
        return abs(self.value) > self.chance


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95% Wilson score interval of a proportion `share` seen among `count` >= 0; (0, 1) if there is none.

    [Wilson 1927, JASA 22, 209-212]
    """
    if count == 0:
        return 0.0, 1.0
    spread = Z95 * Z95 / count
    centre = (share + spread / 2) / (1 + spread)
    half = Z95 / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, min(centre - half, share)), min(1.0, max(centre + half, share))


def difference(first: float, second: float, count: int) -> Difference:
    """Compare two accuracies on the same `count` records as if the two had been tested on different ones.

    That is cautious: models agree on most records, so the true uncertainty of the difference is smaller.
    """
    variance = (first * (1 - first) + second * (1 - second)) / max(count, 1)
    return Difference(first - second, Z95 * math.sqrt(variance))


def arms(metrics: Metrics) -> tuple[Arm, ...]:
    """Return the ways of training that were run, from the least that could be done to the most that could be known."""
    count, base, pooled = metrics.pooled.examples, metrics.baselines, metrics.pooled
    found: list[Arm] = []
    if base.majority is not None:
        note = "Always answers the commonest label."
        found.append(_arm("majority", "Most frequent label", base.majority, count, note))
    if base.local_only is not None:
        alone, note = base.local_only, "Mean over sites of the models trained on one site’s records only."
        found.append(Arm("local", "Each site alone (mean)", alone.accuracy, None, alone.macro_f1, note))
    name = f"Together, {epsilon_is(metrics.privacy.epsilon)}"
    found.append(_arm("federated", name, pooled, count, "The federated model of this study."))
    if base.federated_nonprivate is not None:
        note = "The same study without clipping and noise."
        found.append(_arm("nonprivate", "Together, no privacy", base.federated_nonprivate, count, note))
    if base.centralised_nonprivate is not None:
        note = "What could be reached if all records might lie in one place."
        found.append(_arm("centralised", "All records in one place", base.centralised_nonprivate, count, note))
    return tuple(found)


def verdict(metrics: Metrics) -> tuple[str, ...]:
    """Return the headline: what federation brought and, where it was measured, what privacy cost."""
    base, mine, count = metrics.baselines, metrics.pooled.accuracy, metrics.pooled.examples
    budget = epsilon_is(metrics.privacy.epsilon)
    if base.local_only is None:
        on = "of" if is_accuracy(metrics) else "on"
        said = [f"The federated model, trained under {budget}, {reaches(metrics, mine)} {on} the pooled test."]
    else:
        gain = difference(mine, base.local_only.accuracy, count)
        if not gain.clear:
            said = [f"Training together under {budget} came out level with training alone."]
        elif gain.value > 0:
            said = [f"Training together under {budget} beat training alone by {points(gain.value)}."]
        else:
            said = [f"Training together under {budget} lost {points(-gain.value)} against training alone."]
    if base.federated_nonprivate is not None:
        cost = difference(base.federated_nonprivate.accuracy, mine, count)
        if not cost.clear:
            said.append("Privacy had no cost that this test could tell from chance.")
        elif cost.value > 0:
            said.append(f"Privacy cost {points(cost.value)}.")
        else:
            said.append(f"The noisy model was even better, by {points(-cost.value)}, than the one without privacy.")
    return tuple(said)


def evidence(metrics: Metrics) -> tuple[str, ...]:
    """Return the sentences under the headline: the figures behind it, and how many sites gain or lose."""
    base, mine, count = metrics.baselines, metrics.pooled.accuracy, metrics.pooled.examples
    low, high = wilson(mine, count)
    if base.local_only is None:
        said = [f"That is on {count:,} records; its 95% interval reaches from {percent(low)} to {percent(high)}."]
    else:
        gain = difference(mine, base.local_only.accuracy, count)
        said = [
            f"On {count:,} pooled test records the federated model {reaches(metrics, mine)}, a site’s own model "
            f"{percent(base.local_only.accuracy)} (mean over sites): {signed(gain.value)} points, where chance alone "
            f"could make {100 * gain.chance:.1f}."
        ]
    if base.federated_nonprivate is not None:
        cost = difference(mine, base.federated_nonprivate.accuracy, count)
        said.append(
            f"The same study without clipping and noise reaches {percent(base.federated_nonprivate.accuracy)}: privacy "
            f"makes a difference of {signed(cost.value)} points, where chance alone could make {100 * cost.chance:.1f}."
        )
    compared = [(site, gained) for site in metrics.sites if (gained := site_gain(site)) is not None]
    if compared:
        said.append(_sites_said(compared))
    return tuple(said)


def is_accuracy(metrics: Metrics) -> bool:
    """Whether records are right or wrong; where a task scores in shares, figures are means of these."""
    return metrics.config.score == "accuracy"


def reaches(metrics: Metrics, value: float) -> str:
    """Return what a model does that reaches a figure: `is right on 80.0%` or `scores 80.0%`."""
    return f"{'is right on' if is_accuracy(metrics) else 'scores'} {percent(value)}"


def site_gain(site: SiteMetrics) -> float | None:
    """Return what the federated model brings to a site on its own test against its own model; None if not measured."""
    return None if site.accuracy_local_only is None else site.accuracy - site.accuracy_local_only


def sites_by_gain(metrics: Metrics) -> tuple[SiteMetrics, ...]:
    """Return the sites in falling order of what federation brings them; without local baselines, of accuracy."""

    def rank(site: SiteMetrics) -> tuple[float, str]:
        gained = site_gain(site)
        return (-(site.accuracy if gained is None else gained), site.id)

    return tuple(sorted(metrics.sites, key=rank))


def subgroups(metrics: Metrics) -> Mapping[str, tuple[SubgroupFinding, ...]]:
    """Return each subgroup column with its values pooled over sites, largest first."""
    seen: dict[str, dict[str, list[tuple[str, float, int]]]] = {}
    for site in metrics.sites:
        for column, values in site.subgroups.items():
            for value, group in values.items():
                seen.setdefault(column, {}).setdefault(value, []).append((site.id, group.accuracy, group.examples))
    return {column: _ranked(values) for column, values in sorted(seen.items())}


def guess_at_best(epsilon: float, delta: float) -> float:
    """Return the share of right guesses that (epsilon, delta) still allows to somebody who starts from even odds.

    The question is whether one unit took part; the bound is (e^epsilon + delta) / (1 + e^epsilon). [Kairouz, Oh and
    Viswanath 2015, ICML, theorem 2.1: the region of attainable errors]
    """
    weight = 1.0 / (1.0 + math.exp(-epsilon))
    return min(1.0, weight + delta * (1.0 - weight))


def points(value: float) -> str:
    """Print a difference of accuracies >= 0 in percentage points."""
    return f"{100 * value:.1f}\u00a0{'point' if f'{100 * value:.1f}' == '1.0' else 'points'}"


def signed(value: float) -> str:
    """Print a difference of accuracies in points with its sign, a true minus and no negative zero."""
    text = f"{100 * value:+.1f}"
    return "±0.0" if text in {"+0.0", "-0.0"} else text.replace("-", "−")


def epsilon_text(epsilon: float) -> str:
    """Print epsilon with at most two decimals, never smaller than it is."""
    raised = math.ceil(round(epsilon * 100, 6)) / 100
    return f"{raised:.2f}".rstrip("0").rstrip(".")


def epsilon_is(epsilon: float) -> str:
    """Print `ε = ...` so that no line breaks within it."""
    return f"ε\u00a0=\u00a0{epsilon_text(epsilon)}"


def _arm(kind: str, name: str, score: Score | Baseline, count: int, note: str) -> Arm:
    return Arm(kind, name, score.accuracy, wilson(score.accuracy, count), score.macro_f1, note)


def _sites_said(compared: Sequence[tuple[SiteMetrics, float]]) -> str:
    losing = [(site, value) for site, value in compared if value < 0]
    said = f"Judged by each site’s own test, federation helps {_of(sum(v > 0 for _, v in compared), len(compared))}"
    if not losing:
        return f"{said}."
    site, worst = min(losing, key=lambda item: item[1])
    clear = difference(site.accuracy, site.accuracy - worst, site.test_examples).clear
    told = "" if clear else f", which its {site.test_examples:,} records cannot tell from chance"
    return f"{said} and leaves {len(losing)} worse off; the largest loss is {points(-worst)}, at {site.id}{told}."


def _ranked(values: Mapping[str, list[tuple[str, float, int]]]) -> tuple[SubgroupFinding, ...]:
    found = []
    for value, parts in values.items():
        count = sum(examples for _, _, examples in parts)
        if count == 0:
            continue
        accuracy = sum(part * examples for _, part, examples in parts) / count
        site, worst, _ = min((part for part in parts if part[2] > 0), key=lambda part: (part[1], part[0]))
        low, high = wilson(accuracy, count)
        found.append(SubgroupFinding(value, count, accuracy, low, high, len(parts), site, worst, count < FEW))
    return tuple(sorted(found, key=lambda item: (-item.examples, item.value)))


def _of(some: int, all_of_them: int) -> str:
    if some == all_of_them:
        return f"all {all_of_them} sites"
    return f"{some if some else 'none'} of {all_of_them} sites"
