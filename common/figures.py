"""Figures for reports and consoles: pure functions from numbers to one SVG string.

No style and no colour is set here, only classes (the page's style sheet gives them colours in light and in dark) and
geometry. Every text is escaped. Each function takes the width in pixels it is drawn for, because text in a figure that
is merely shrunk cannot be read on a telephone: pages draw each figure twice and show one.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

STACKED_BELOW = 500
"""Narrower than this many pixels, names stand above their rows, not beside them."""
DIRECTION = frozenset(chr(c) for c in (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)))
"""Characters that change the direction of the text after them."""
NARROW_LETTERS, WIDE_LETTERS = frozenset("fijlrt.,:;'|!()[]-·/ "), frozenset("mwMWGOQ@%<>=+~#…&")


@dataclass(frozen=True, slots=True)
class Mark:
    """One value on an axis.

    kind    class of the mark, which decides shape and colour: federated, local, nonprivate, centralised, ...
    low     ends of its interval, or None
    hint    what the mark says in words, shown when pointed at
    """

    kind: str
    value: float
    hint: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a dot plot: a name, its marks (drawn in order, the last on top) and a text in the right margin."""

    name: str
    marks: tuple[Mark, ...]
    aside: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One series over rounds: points (round, value) in order; `show` prints a value.

    is_fraction  drawn tall, its axis holds percentages and need not begin at zero
    """

    name: str
    kind: str
    points: tuple[tuple[int, float], ...]
    show: Callable[[float], str]
    is_fraction: bool = True


@dataclass(frozen=True, slots=True)
class Bar:
    """One length from zero: a name, a value >= 0 and how to print it."""

    name: str
    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from the values [low, high] to the pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Return the pixel of a value; values outside the axis are drawn at its ends."""
        inside = min(max(value, self.low), self.high)
        return self.start + (inside - self.low) / (self.high - self.low) * (self.end - self.start)


def clean(text: str) -> str:
    """Replace control, surrogate and direction-changing characters, which could disguise a name, by U+FFFD."""
    return "".join("\ufffd" if _disguises(character) else character for character in text)


def safe(text: str) -> str:
    """Clean and escape a text, for an element or for a quoted attribute."""
    return escape(clean(text))


def breadth(text: str) -> float:
    """Estimate the width in pixels of a text at 12.5 px in the broadest of the page's fonts (DejaVu Sans)."""
    return sum(_breadth(character) for character in text)


def shorten(text: str, pixels: float) -> str:
    """Cut a text that is too long for `pixels` and end it with an ellipsis."""
    if breadth(text) <= pixels:
        return text
    kept = len(text)
    while kept > 0 and breadth(text[:kept]) + breadth("…") > pixels:
        kept -= 1
    return text[:kept].rstrip() + "…"


def ticks(low: float, high: float, most: int) -> tuple[float, ...]:
    """Return at most `most` round values (1, 2 or 5 times a power of ten apart) within [low, high]; low < high."""
    rough = (high - low) / max(most - 1, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    for step in (power * f for f in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < most:
            return tuple(round(i * step, 12) for i in range(first, last + 1))
    raise AssertionError("unreachable: twenty times the power always suffices")


def fraction_domain(values: Sequence[float]) -> tuple[float, float]:
    """Return bounds, in steps of 0.05 and at least 0.1 apart, that hold the values; within [0, 1] if they all are."""
    low, high = min(values), max(values)
    bottom, top = math.floor((low - 0.01) * 20) / 20, math.ceil((high + 0.01) * 20) / 20
    if low >= 0.0 and high <= 1.0:
        bottom, top = max(bottom, 0.0), min(top, 1.0)
    if top - bottom < 0.1:
        bottom, top = (bottom - 0.05, top) if top >= 1.0 else (bottom, top + 0.05)
    return bottom, top


def percent(value: float, decimals: int = 1) -> str:
    """Print a fraction as a percentage."""
    return f"{100 * value:.{decimals}f}%".replace("-", "−")


def dot_plot(
    rows: Sequence[Row],
    *,
    width: int,
    label: str,
    description: str,
    link: tuple[str, str] | None = None,
    guide: str | None = None,
) -> str:
    """Draw rows of marks over one axis of fractions, with their intervals.

    link    (from, to): kinds of mark joined in each row by a line, classed `gain` or `loss` by its direction
    guide   kind of mark through which a vertical hairline is drawn, from its first occurrence
    """
    stacked = width < STACKED_BELOW
    left, right = (8.0, 8.0) if stacked else (_name_room(rows, width), 74.0)
    height, top = (46.0 if stacked else 26.0), 26.0
    bottom = top + height * len(rows)
    ends = [v for row in rows for m in row.marks for v in (m.value, m.low, m.high) if v is not None]
    axis = Axis(*fraction_domain(ends), left, width - right)
    parts = [_grid(axis, ticks(axis.low, axis.high, 4 if stacked else 7), top, bottom, width)]
    if guide is not None:
        here = next((m.value for row in rows for m in row.marks if m.kind == guide), None)
        if here is not None:
            parts.append(segment(axis.at(here), top, axis.at(here), bottom, f"guide {guide}"))
    for index, row in enumerate(rows):
        above = top + height * index
        middle = above + (32.0 if stacked else height / 2)
        room = width - 100.0 if stacked else left - 14.0
        name, aside = safe(shorten(row.name, room)), safe(row.aside)
        if stacked:
            parts.append(f'<text x="{left:.1f}" y="{above + 16:.1f}" class="name">{name}</text>')
            parts.append(words(width - right, above + 16, "aside end", aside))
        else:
            parts.append(words(left - 14, middle + 4, "name end", name))
            parts.append(words(width - right + 14, middle + 4, "aside", aside))
        parts.append(segment(axis.start, middle, axis.end, middle, "rail"))
        parts.append(_marks(row.marks, axis, middle, link))
    return drawing(width, bottom + 8, label, description, parts)


def line_panels(panels: Sequence[Panel], *, width: int, label: str, description: str) -> str:
    """Draw series over the same rounds, one above the other: the first tall, the others low; ends and peak labelled.

    Panels without points are left out; with no points at all the figure is empty and should not be shown.
    """
    shown = [panel for panel in panels if panel.points]
    rounds = [number for panel in shown for number, _ in panel.points]
    first, last = min(rounds, default=0), max(rounds, default=1)
    left, right = 46.0, max([58.0, *(breadth(panel.show(panel.points[-1][1])) + 12.0 for panel in shown)])
    across = Axis(first, max(last, first + 1), left, width - right)
    parts: list[str] = []
    top = 24.0
    for index, panel in enumerate(shown):
        height = (0.36 * width if width < STACKED_BELOW else 190.0) if index == 0 else 46.0
        parts.append(_panel(panel, across, top, height, tall=index == 0, last=index == len(shown) - 1))
        top += height + 40.0
    bottom = top - 40.0
    for tick in ticks(across.low, across.high, 5 if width < STACKED_BELOW else 9):
        if tick == int(tick):
            parts.append(words(across.at(tick), bottom + 18, "tick middle", str(int(tick))))
    parts.append(words(left - 8, bottom + 18, "tick end", "round"))
    return drawing(width, bottom + 26, label, description, parts)


def bar_chart(bars: Sequence[Bar], *, width: int, label: str, description: str) -> str:
    """Draw horizontal bars from zero, longest value to the full width."""
    left, right, height = (96.0 if width < STACKED_BELOW else 150.0), 84.0, 24.0
    left = max(left, min(max((breadth(bar.name) for bar in bars), default=0.0) + 18.0, 0.34 * width))
    axis = Axis(0.0, max((bar.value for bar in bars), default=0.0) or 1.0, left, width - right)
    parts = []
    for index, bar in enumerate(bars):
        middle = height * index + height / 2
        length = max(axis.at(bar.value) - left, 1.0)
        parts.append(words(left - 12, middle + 4, "name end", safe(shorten(bar.name, left - 12))))
        parts.append(f'<rect x="{left:.1f}" y="{middle - 6:.1f}" width="{length:.1f}" height="12" class="bar"/>')
        parts.append(words(left + length + 8, middle + 4, "aside", safe(bar.text)))
    return drawing(width, height * len(bars) + 4, label, description, parts)


def cell_interval(mark: Mark, domain: tuple[float, float], reference: float) -> str:
    """Draw one interval small enough for a table cell; decoration, since the cell's row holds the numbers."""
    axis = Axis(*domain, 6.0, 134.0)
    rail = segment(axis.start, 8, axis.end, 8, "rail")
    tick = segment(axis.at(reference), 1, axis.at(reference), 15, "guide federated")
    inside = rail + tick + _marks((mark,), axis, 8, None)
    return f'<svg class="cell" width="140" height="16" viewBox="0 0 140 16" aria-hidden="true">{inside}</svg>'


def swatch(kind: str) -> str:
    """Draw one mark for a legend; decoration, since the legend names it."""
    return (
        f'<svg class="swatch" width="18" height="14" viewBox="0 0 18 14" aria-hidden="true">{shape(kind, 9, 7)}</svg>'
    )


def segment(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """Return a line from one point to another, of a class."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def words(x: float, y: float, kind: str, markup: str) -> str:
    """Return a text that is escaped already, of a class, at its baseline."""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{markup}</text>'


def drawing(width: float, height: float, label: str, description: str, parts: Sequence[str]) -> str:
    """Return one figure of its parts, with its name and what it shows in words for those who do not see it."""
    return (
        f'<svg role="img" aria-label="{safe(label)}" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}"><desc>{safe(description)}</desc>{"".join(parts)}</svg>'
    )


def _name_room(rows: Sequence[Row], width: float) -> float:
    return min(max((breadth(row.name) for row in rows), default=0.0) + 18.0, 0.34 * width)


def _breadth(character: str) -> float:
    if unicodedata.combining(character):
        return 0.0
    if character in WIDE_LETTERS or unicodedata.east_asian_width(character) in {"W", "F"}:
        return 12.8
    if character in NARROW_LETTERS:
        return 5.2
    return 9.6 if character.isupper() or character == "\ufffd" else 8.0


def _disguises(character: str) -> bool:
    if character in "\n\t":
        return False
    return character in DIRECTION or unicodedata.category(character) in {"Cc", "Cs"}


def _panel(panel: Panel, across: Axis, top: float, height: float, *, tall: bool, last: bool) -> str:
    values = [value for _, value in panel.points]
    as_fraction = tall and panel.is_fraction
    low, high = fraction_domain(values) if as_fraction else (0.0, max(*values, 1e-12) * (1.18 if tall else 1.05))
    down = Axis(low, high, top + height, top)
    marks = ticks(low, high, 5) if tall else ()
    parts = [words(across.start, top - 10, "name", safe(panel.name))]
    for tick in marks:
        said = percent(tick, 0) if as_fraction else f"{tick:g}"
        parts.append(segment(across.start, down.at(tick), across.end, down.at(tick), "grid"))
        parts.append(words(across.start - 8, down.at(tick) + 4, "tick end", said))
    parts.append(segment(across.start, top + height, across.end, top + height, "base" if last else "grid"))
    where = [(across.at(number), down.at(value)) for number, value in panel.points]
    parts.append(f'<polyline class="curve {panel.kind}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in where)}"/>')
    for (number, value), (x, y) in zip(panel.points, where, strict=True):
        hint = f"<title>round {number}: {safe(panel.show(value))}</title>"
        radius = (3.0 if len(where) <= 40 else 1.2) if tall else 1.6
        parts.append(f'<circle class="point {panel.kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}">{hint}</circle>')
    x, y = where[-1]
    parts.append(words(x + 8, y + 4, "aside strong" if tall else "aside", safe(panel.show(values[-1]))))
    if tall and len(values) > 1:
        x, y = where[0]
        # On the side to which the line does not go.
        beside = y - 6 if values[1] < values[0] else min(y + 16, top + height - 4)
        parts.append(words(x + 8, beside, "tick", safe(panel.show(values[0]))))
    return "".join(parts)


def _marks(marks: Sequence[Mark], axis: Axis, middle: float, link: tuple[str, str] | None) -> str:
    parts = []
    for mark in marks:
        if mark.low is not None and mark.high is not None:
            parts.append(segment(axis.at(mark.low), middle, axis.at(mark.high), middle, f"interval {mark.kind}"))
    values = {mark.kind: mark.value for mark in marks}
    if link is not None and link[0] in values and link[1] in values:
        start, end = values[link[0]], values[link[1]]
        parts.append(segment(axis.at(start), middle, axis.at(end), middle, "gain" if end >= start else "loss"))
    for mark in marks:
        drawn = shape(mark.kind, axis.at(mark.value), middle)
        parts.append(f"<g>{drawn}<title>{safe(mark.hint)}</title></g>")
    return "".join(parts)


def shape(kind: str, x: float, y: float) -> str:
    """A shape of its own for each kind, so that colour is never the only difference."""
    if kind == "nonprivate":
        return f'<path class="mark {kind}" d="M{x:.1f} {y - 6.5:.1f}l6.5 6.5l-6.5 6.5l-6.5 -6.5z"/>'
    if kind == "centralised":
        return f'<rect class="mark {kind}" x="{x - 4.5:.1f}" y="{y - 4.5:.1f}" width="9" height="9"/>'
    if kind == "majority":
        return f'<path class="mark {kind}" d="M{x:.1f} {y - 6:.1f}v12"/>'
    if kind == "released":
        return f'<path class="mark {kind}" d="M{x - 5:.1f} {y + 4.5:.1f}h10l-5 -9.5z"/>'
    radius = 3.2 if kind == "each" else 4.5
    return f'<circle class="mark {escape(kind)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'


def _grid(axis: Axis, marks: Sequence[float], top: float, bottom: float, width: float) -> str:
    parts = []
    for tick in marks:
        x = axis.at(tick)
        anchor = "" if x < 18 else " end" if x > width - 18 else " middle"
        parts.append(segment(x, top - 4, x, bottom, "grid"))
        parts.append(words(x, top - 10, f"tick{anchor}", percent(tick, 0)))
    return "".join(parts)
