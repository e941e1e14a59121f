from __future__ import annotations

import io

import pytest
from rich.console import Console

from simulations.progress import RichProgress


def work(console: Console) -> None:
    with RichProgress(console) as progress:
        progress.phase("reading [data]", 2)
        progress.advance()
        progress.advance()
        progress.note("three [of] five")
        progress.phase("thinking")


def test_a_log_file_gets_one_plain_line_a_phase() -> None:
    log = io.StringIO()
    work(Console(file=log, force_terminal=False))
    assert log.getvalue().splitlines() == ["reading [data]", "three [of] five", "thinking"]


def test_a_terminal_gets_bars_that_end_complete() -> None:
    screen = io.StringIO()
    work(Console(file=screen, force_terminal=True, width=100, color_system=None))
    last = screen.getvalue().split("three [of] five")[-1]
    assert "reading [data]" in last
    assert "2/2" in last
    assert "1/1" in last


def test_the_display_gives_the_cursor_back_when_the_work_fails() -> None:
    screen = io.StringIO()

    def fail() -> None:
        with RichProgress(Console(file=screen, force_terminal=True)) as progress:
            progress.phase("dividing", 3)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    hidden, shown = screen.getvalue().rfind("\x1b[?25l"), screen.getvalue().rfind("\x1b[?25h")
    assert 0 <= hidden < shown
