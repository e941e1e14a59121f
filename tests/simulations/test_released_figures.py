"""Wherever a released figure is published, its interval stands beside it (RULES 9); concerns are said before a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.console import Console

from common.figures import percent
from simulations import metrics as m
from simulations.cli import show
from simulations.report import render
from tests.simulations.runs import run, study

AGREED = study()
TOLD = m.Released(accuracy=0.6213, low=0.5877, high=0.6545, note="noised")
"""Figures that nothing else in the run prints alike."""
RUN = run(AGREED).model_copy(update={"released": TOLD})
LINES = r"<(p|tr|title|desc)\b[^>]*>(.*?)</\1>"


def published(html: str, accuracy: float) -> list[str]:
    """Return every paragraph, table row, hint and description of a page that shows a figure in print."""
    held = [found.group(2) for found in re.finditer(LINES, html, re.DOTALL)]
    return [text for text in held if percent(accuracy) in text.replace("&nbsp;", "\u00a0")]


def test_on_the_page_the_interval_is_beside_the_figure_wherever_it_stands() -> None:
    found = published(render(RUN, AGREED), TOLD.accuracy)
    # The verdict, the table and, drawn wide and narrow, the figure's hint and description.
    assert len(found) == 6
    for text in found:
        assert f"{100 * TOLD.low:.1f}" in text
        assert f"{100 * TOLD.high:.1f}" in text


def test_without_its_interval_a_figure_on_the_page_is_found() -> None:
    bare = re.sub(rf"{100 * TOLD.low:.1f}", "", render(RUN, AGREED))
    assert any(f"{100 * TOLD.low:.1f}" not in text for text in published(bare, TOLD.accuracy))


def test_the_figure_draws_the_interval() -> None:
    html = render(RUN, AGREED)
    without = render(run(AGREED, released=False), AGREED)
    assert html.count("<title>released:") == 2
    assert "<title>released:" not in without


def test_on_the_terminal_the_interval_is_on_the_line_of_the_figure() -> None:
    console = Console(width=200)
    with console.capture() as captured:
        show(RUN, Path("report.html"), console)
    lines = [line for line in captured.get().splitlines() if f"{100 * TOLD.accuracy:.1f} %" in line]
    assert len(lines) == 1
    assert f"{100 * TOLD.low:.1f} % to {100 * TOLD.high:.1f} %" in lines[0]


@pytest.mark.parametrize("end", ["low", "high"])
def test_metrics_hold_no_released_figure_without_both_ends(end: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    m.write(RUN, path)
    text = path.read_text()
    path.write_text(re.sub(rf'"{end}": [\d.]+,?\n', "", text))
    with pytest.raises(Exception, match=r"CSL-514"):
        m.read(path)
