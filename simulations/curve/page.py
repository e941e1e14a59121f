"""`curve.html`: one page that stands by itself, made from a curve alone. Pure functions, no torch."""

from __future__ import annotations

import math

from common.figures import Axis, drawing, fraction_domain, percent, segment, shape, swatch, ticks, words
from common.pages import WIDE, both, drawn, environment
from simulations.curve.cells import Curve, Spot
from simulations.pages import TEMPLATES, Style, sheet

KINDS = ("federated", "nonprivate", "centralised", "released", "local", "majority")
"""The look of each way: no two have one colour or one shape."""
_ASIDE = 7.0
"""Pixels between two ways at one number of labels."""


def page(curve: Curve) -> str:
    """Return the page as HTML; every text is escaped."""
    templates = environment(TEMPLATES)
    templates.filters.update(percent=percent, count=lambda value: f"{value:,}", privacy=privacy, spot=spot)
    return templates.get_template("curve.html.j2").render(
        curve=curve,
        style=Style.of(sheet("report.css"), sheet("curve.css")),
        marks=[mark.partition(":") for mark in curve.marks],
        legend=[(drawn(swatch(kind)), way) for kind, way in zip(KINDS, curve.ways(), strict=False)],
        figures=[
            (epsilon, both(lambda width, epsilon=epsilon: figure(curve, epsilon, width)))  # type: ignore[misc]
            for epsilon in curve.epsilons()
        ],
    )


def privacy(epsilon: float | None) -> str:
    """Print an epsilon, or that there is none."""
    return "without privacy" if epsilon is None else f"epsilon {epsilon:g}"


def spot(found: Spot | None) -> str:
    """Print what one spot came to: an interval, or the spread over seeds."""
    if found is None:
        return "–"
    if found.spread is not None:
        return f"{percent(found.accuracy)} ± {100 * found.spread:.1f}"
    return f"{percent(found.accuracy)} ({100 * found.low:.0f} – {percent(found.high, 0)})"


def figure(curve: Curve, epsilon: float | None, width: int) -> str:
    """Draw accuracy against labels per site, one line a way, on the same axes for every epsilon."""
    ends = [end for row in curve.rows for end in row.interval]
    counts = [math.log10(count) for count in curve.labels()]
    middle = 0.0 if len(counts) > 1 else 0.5
    across = Axis(counts[0] - middle, counts[-1] + middle, 76.0, width - 40.0)
    left, right = 50.0, width - 14.0
    top, bottom = 14.0, 14.0 + (0.5 * width if width < WIDE else 260.0)
    down = Axis(*fraction_domain(ends), bottom, top)
    parts = []
    for tick in ticks(down.low, down.high, 6):
        parts.append(segment(left, down.at(tick), right, down.at(tick), "grid"))
        parts.append(words(left - 8, down.at(tick) + 4, "tick end", percent(tick, 0)))
    for count, place in zip(curve.labels(), counts, strict=True):
        parts.append(words(across.at(place), bottom + 18, "tick middle", f"{count:,}"))
    parts.append(segment(left, bottom, right, bottom, "base"))
    parts.append(words(right, bottom + 38, "tick end", "labels per site"))
    said = []
    for number, (kind, way) in enumerate(zip(KINDS, curve.ways(), strict=False)):
        # Side by side, so that no interval hides another.
        aside = _ASIDE * (number - (len(curve.ways()) - 1) / 2)
        found = [(place, curve.at(way, count, epsilon)) for place, count in zip(counts, curve.labels(), strict=True)]
        points = [(across.at(place) + aside, there) for place, there in found if there is not None]
        parts += [segment(x, down.at(there.low), x, down.at(there.high), f"whisker {kind}") for x, there in points]
        line = " ".join(f"{x:.1f},{down.at(there.accuracy):.1f}" for x, there in points)
        parts.append(f'<polyline class="curve {kind}" points="{line}"/>')
        parts += [shape(kind, x, down.at(there.accuracy)) for x, there in points]
        said.append(f"{way}: " + ", ".join(spot(there) for _, there in points))
    label = f"Accuracy by labels per site, {privacy(epsilon)}"
    return drawing(width, bottom + 46, label, "; ".join(said) + ".", parts)
