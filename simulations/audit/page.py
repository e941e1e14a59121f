"""`audit.html`: one page that stands by itself, made from the findings alone. Pure functions, no torch.

What was proven beside what is claimed, then the scores that it rests on, then every test in a table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from common.figures import Axis, drawing, percent, safe, segment, ticks, words
from common.pages import WIDE, both, environment
from simulations.audit.findings import BOUND_LEVEL, MECHANISM_LEVEL, Audit
from simulations.pages import TEMPLATES, Style, sheet

MARKED = "SIMULATOR ONLY: nothing on this page is released, and no real patient is protected or exposed by it."
_BINS = 31
_FARTHEST = 12.0
"""Log odds beyond which a canary is as good as known; what lies further is drawn here."""


def page(audit: Audit) -> str:
    """Return the page as HTML; every text is escaped."""
    templates = environment(TEMPLATES)
    templates.filters.update(percent=percent, count=lambda value: f"{value:,}")
    return templates.get_template("audit.html.j2").render(
        audit=audit,
        style=Style.of(sheet("report.css"), sheet("audit.css")),
        marked=MARKED,
        bound_level=BOUND_LEVEL,
        mechanism_level=MECHANISM_LEVEL,
        bounds_figure=both(lambda width: bounds_figure(audit, width)),
        scores_figure=both(lambda width: scores_figure(audit, width)),
    )


def bounds_figure(audit: Audit, width: int) -> str:
    """Draw for each game the bound that was proven and the epsilon that is claimed, over one axis from zero."""
    most = max(max(game.claim, game.bound) for game in audit.games)
    axis = Axis(0.0, 1.08 * most or 1.0, 12.0, width - 12.0)
    top, height = 26.0, 54.0
    bottom = top + height * len(audit.games)
    parts = []
    for tick in ticks(axis.low, axis.high, 5 if width < WIDE else 9):
        parts.append(segment(axis.at(tick), top - 4, axis.at(tick), bottom, "grid"))
        parts.append(words(axis.at(tick), top - 10, "tick middle", f"{tick:g}"))
    for index, game in enumerate(audit.games):
        above = top + height * index
        middle = above + 36.0
        kind = "refuted" if game.is_exceeded else "proven"
        parts.append(words(axis.start, above + 18, "name", safe(game.name)))
        parts.append(words(axis.end, above + 18, "aside end", f"proven {game.bound:.2f} · claimed {game.claim:.3g}"))
        parts.append(segment(axis.start, middle, axis.end, middle, "rail"))
        parts.append(segment(axis.start, middle, axis.at(game.bound), middle, kind))
        parts.append(segment(axis.at(game.claim), middle - 9, axis.at(game.claim), middle + 9, "claim"))
    said = "; ".join(f"{game.name}: at least {game.bound:.2f}, claimed {game.claim:.3g}" for game in audit.games)
    return drawing(width, bottom + 8, "Epsilon that was proven, beside the claim", f"{said}.", parts)


def scores_figure(audit: Audit, width: int) -> str:
    """Draw the scores of one charge: shares of canaries that were in upwards, of those that were out downwards."""
    inside, outside = audit.log_odds_in, audit.log_odds_out
    reach = min(max((abs(value) for value in (*inside, *outside)), default=0.0) or 1.0, _FARTHEST)
    axis = Axis(-reach, reach, 12.0, width - 12.0)
    above, below = shares(inside, reach), shares(outside, reach)
    most = max(*above, *below) or 1.0
    middle, tall = 96.0, 70.0
    across = (axis.end - axis.start) / _BINS
    parts = []
    for place, (up, down) in enumerate(zip(above, below, strict=True)):
        x = axis.start + place * across + 0.5
        for share, kind, y in ((up, "inside", middle - tall * up / most), (down, "outside", middle)):
            if share:
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{across - 1.0:.1f}" height="{tall * share / most:.1f}" '
                    f'class="{kind}"><title>{percent(share)} of those {kind}</title></rect>'
                )
    parts.append(segment(axis.start, middle, axis.end, middle, "base"))
    parts.append(words(axis.start, 16.0, "name", "canaries that were in"))
    parts.append(words(axis.start, middle + tall + 14.0, "name", "canaries that were out"))
    for tick in ticks(axis.low, axis.high, 5):
        parts.append(words(axis.at(tick), middle + tall + 34.0, "tick middle", f"{tick:g}".replace("-", "−")))
    said = f"{len(inside):,} coins in, {len(outside):,} out; log odds from {axis.low:.2f} to {axis.high:.2f}."
    return drawing(width, middle + tall + 42.0, "Log odds of canaries in one charge", said, parts)


def shares(values: Sequence[float], reach: float) -> list[float]:
    """Return shares of the values in equal bins over [-reach, reach]; what lies beyond is in the last ones.

    A value that is no number counts as unknown, in the middle.
    """
    counts = [0.0] * _BINS
    for value in values:
        kept = 0.0 if math.isnan(value) else min(max(value, -reach), reach)
        counts[min(int((kept + reach) / (2.0 * reach) * _BINS), _BINS - 1)] += 1.0 / len(values)
    return counts
