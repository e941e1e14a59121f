"""Figures are well formed, say in words what they show, and let no text out of its place."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.figures import (
    Axis,
    Bar,
    Mark,
    Panel,
    Row,
    bar_chart,
    clean,
    dot_plot,
    fraction_domain,
    line_panels,
    percent,
    shorten,
    ticks,
)

HOSTILE = "</text><script>alert(1)</script>\" onload='x' & \u202e\x07"
WIDTHS = (720, 344)


def drawn(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)  # noqa: S314  our own output


def row(name: str, *values: float) -> Row:
    kinds = ("local", "federated", "nonprivate", "centralised")
    return Row(name, tuple(Mark(kind, value, f"{name} {value}") for kind, value in zip(kinds, values, strict=False)))


@pytest.mark.parametrize("width", WIDTHS)
def test_every_figure_is_well_formed_and_says_in_words_what_it_shows(width: int) -> None:
    panel = Panel(HOSTILE, "federated", ((0, 0.2), (1, 0.4)), percent)
    for svg in (
        dot_plot(
            [row(HOSTILE, 0.4, 0.8)], width=width, label=HOSTILE, description=HOSTILE, link=("local", "federated")
        ),
        line_panels([panel, panel], width=width, label=HOSTILE, description=HOSTILE),
        bar_chart([Bar(HOSTILE, 3.0, HOSTILE)], width=width, label=HOSTILE, description=HOSTILE),
    ):
        root = drawn(svg)
        assert root.get("role") == "img"
        assert root.get("aria-label") == clean(HOSTILE)
        assert root.findtext("desc") == clean(HOSTILE)
        assert not root.findall(".//script")
        assert not {name for element in root.iter() for name in element.attrib if name.startswith(("on", "style"))}


def test_a_mark_stands_where_its_value_is() -> None:
    rows = [row("a", 0.5, 0.75), row("b", 0.6, 0.9)]
    svg = drawn(dot_plot(rows, width=720, label="", description=""))
    found = [float(circle.get("cx", "nan")) for circle in svg.iter("circle")]
    first, second = found[0], found[3]
    for value, x in zip((0.5, 0.75, 0.6, 0.9), found, strict=True):
        assert x == pytest.approx(first + (value - 0.5) / 0.4 * (second - first), abs=0.15)


@pytest.mark.parametrize("width", WIDTHS)
def test_marks_and_their_intervals_stay_within_the_figure(width: int) -> None:
    rows = [Row("x" * 200, (Mark("released", 1.08, "", -0.1, 1.2), Mark("majority", 0.0, "")), "+12.3")] * 30
    svg = dot_plot(rows, width=width, label="", description="", guide="released")
    assert all(0 <= float(x) <= width for x in re.findall(r'\b(?:x|x1|x2|cx)="(-?[\d.]+)"', svg))
    height = float(drawn(svg).get("height", "0"))
    assert all(0 <= float(y) <= height for y in re.findall(r'\b(?:y|y1|y2|cy)="(-?[\d.]+)"', svg))


def test_a_gain_and_a_loss_are_told_apart_without_colour() -> None:
    gain = dot_plot([row("a", 0.5, 0.8)], width=720, label="", description="", link=("local", "federated"))
    loss = dot_plot([row("a", 0.8, 0.5)], width=720, label="", description="", link=("local", "federated"))
    assert 'class="gain"' in gain
    assert 'class="loss"' in loss


def test_no_two_kinds_of_mark_have_one_shape() -> None:
    """Rings and dots differ by their filling, which the style sheet sets; the others by outline."""
    shapes = set()
    for kind in ("federated", "nonprivate", "centralised", "majority", "released"):
        svg = drawn(dot_plot([Row("", (Mark(kind, 0.5, ""),))], width=720, label="", description=""))
        mark = next(element for element in svg.iter() if (element.get("class") or "").startswith("mark"))
        shapes.add((mark.tag, re.sub(r"M[\d.]+ [\d.]+", "", mark.get("d") or "")))
    assert len(shapes) == 5


@pytest.mark.parametrize("points", [((0, 0.5),), ((3, 0.2), (7, 0.2)), tuple((i, i / 500) for i in range(500))])
def test_a_curve_of_any_length_can_be_drawn(points: tuple[tuple[int, float], ...]) -> None:
    panels = [Panel("a", "federated", points, percent), Panel("b", "small", (), percent)]
    svg = drawn(line_panels(panels, width=344, label="", description=""))
    assert len(list(svg.iter("circle"))) == len(points)
    assert percent(points[-1][1]) in [text.text for text in svg.iter("text")]


def test_bars_are_as_long_as_their_values() -> None:
    bars = bar_chart(
        [Bar("a", 10.0, "10"), Bar("b", 5.0, "5"), Bar("c", 0.0, "0")], width=720, label="", description=""
    )
    lengths = [float(bar.get("width", "nan")) for bar in drawn(bars).iter("rect")]
    assert lengths[1] == pytest.approx(lengths[0] / 2, abs=0.1)
    assert lengths[2] <= 1.0


@given(values=st.lists(st.floats(0, 1), min_size=1))
def test_an_axis_of_fractions_holds_its_values_and_stays_within_zero_and_one(values: list[float]) -> None:
    low, high = fraction_domain(values)
    assert -1e-9 <= low <= min(values)
    assert max(values) <= high <= 1 + 1e-9
    assert high - low >= 0.1 - 1e-9


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6), most=st.integers(2, 12))
def test_ticks_are_few_and_within_the_axis(low: float, span: float, most: int) -> None:
    found = ticks(low, low + span, most)
    assert len(found) <= most
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in found)


def test_ticks_are_round_numbers() -> None:
    assert ticks(0.35, 0.95, 7) == (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert ticks(0.0, 120.0, 9) == (0, 20, 40, 60, 80, 100, 120)


def test_values_outside_an_axis_are_drawn_at_its_ends() -> None:
    axis = Axis(0.0, 1.0, 100.0, 200.0)
    assert (axis.at(-3.0), axis.at(0.5), axis.at(7.0)) == (100.0, 150.0, 200.0)


def test_names_that_would_disguise_themselves_are_cleaned_and_honest_ones_kept() -> None:
    assert clean("gp\u202egnp.exe\x00") == "gp\ufffdgnp.exe\ufffd"
    assert clean("Zürich · نیم‌فاصله · 東京") == "Zürich · نیم‌فاصله · 東京"


def test_long_names_are_shortened_visibly() -> None:
    assert shorten("short", 200) == "short"
    assert shorten("a" * 100, 100).endswith("a…")
    assert len(shorten("a" * 100, 100)) < 20


def test_a_tall_series_that_is_no_fraction_begins_at_zero_and_has_no_percentages() -> None:
    norms = Panel("norm", "federated", ((0, 3.5), (1, 12.0)), lambda value: f"{value:.1f}", is_fraction=False)
    ticks_shown = list(drawn(line_panels([norms], width=720, label="", description="")).itertext())
    assert "0" in ticks_shown
    assert not [text for text in ticks_shown if "%" in text]
