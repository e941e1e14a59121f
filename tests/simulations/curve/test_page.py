"""A curve's page and its lines on the terminal: every figure is there, its marks too, and text is escaped."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from common.figures import percent, swatch
from common.ways import WAYS
from simulations.curve.cells import MOST_WAYS, Curve
from simulations.curve.command import show
from simulations.curve.page import KINDS, figure, page
from tests.simulations.curve.curves import curve
from tests.simulations.pages import Page

HOSTILE = "<script>alert(1)</script> ${x} {{ 7 * 7 }}"


def printed(found: Curve) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(found, console, None)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_every_figure_and_every_mark_is_on_the_page_and_on_the_terminal() -> None:
    found = curve()
    read, lines = Page(page(found)), printed(found)
    for row in found.rows:
        shown = f"{percent(row.accuracy)} ("
        assert shown in read.text
        assert shown in lines
    for mark in found.marks:
        assert mark.partition(":")[2] in read.text
        assert mark in lines


def test_the_table_holds_each_way_and_number_of_labels_under_its_epsilon() -> None:
    found = curve(ways=("lora", "full"), labels=(10, 30), epsilons=(None, 3.0))
    table = Page(page(found)).table("cells")
    assert [cell.text for cell in table.rows[0]] == ["Way", "Labels per site", "without privacy", "epsilon 3"]
    assert [row[1].text for row in table.rows[1:]] == ["10", "30", "10", "30"]
    assert table.rows[3][0].text == "full"
    spot = found.at("full", 10, 3.0)
    assert spot is not None
    assert table.rows[3][3].text.startswith(percent(spot.accuracy))


def test_seeds_are_shown_as_mean_and_spread() -> None:
    text = page(curve(ways=("lora",), labels=(10,), epsilons=(None,), seeds=(0, 1)))
    assert "60.2% ± 0.4" in text


@pytest.mark.parametrize("width", [344, 720])
def test_the_figure_has_a_line_and_an_interval_for_every_way_and_says_them_in_words(width: int) -> None:
    found = curve(ways=list(WAYS)[:MOST_WAYS], labels=(10, 30, 100))
    drawn = figure(found, 8.0, width)
    assert drawn.count("<polyline") == MOST_WAYS
    assert drawn.count('class="whisker') == MOST_WAYS * 3
    for way in found.ways():
        assert f"{way}: " in drawn
    places = [float(x) for x in re.findall(r'\bx1="([\d.]+)"', drawn)]
    assert 0 <= min(places) <= max(places) <= width


def test_no_two_ways_look_alike() -> None:
    assert len({re.sub(r'class="mark \w+"', "", swatch(kind)) for kind in KINDS}) >= MOST_WAYS - 1
    assert len(set(KINDS)) == MOST_WAYS


def test_one_number_of_labels_makes_a_page_too() -> None:
    assert Page(page(curve(labels=(10,), epsilons=(None,)))).table("cells").rows[1][1].text == "10"


def test_text_from_outside_is_escaped_and_nothing_is_asked_of_anybody() -> None:
    text = page(curve(title=HOSTILE, command=HOSTILE))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert not re.search(r'(src|href)="', text)
    assert "default-src 'none'" in text
    read = Page(text)
    assert (read.left_open, read.misnested) == ([], [])
