"""What a run tells a waiting person: which phase it is in, how far it has come, and remarks worth keeping.

Goes to stderr, so that stdout stays free for results.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text


class Progress(Protocol):
    """Where a run reports to. A phase ends when the next one begins."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a phase of ``total`` steps, or of an unknown number."""

    def advance(self, steps: int = 1) -> None:
        """Count steps of the current phase."""

    def note(self, text: str) -> None:
        """Leave a line that stays."""


class SilentProgress:
    """Says nothing."""

    def phase(self, name: str, total: int | None = None) -> None:
        """Say nothing."""

    def advance(self, steps: int = 1) -> None:
        """Say nothing."""

    def note(self, text: str) -> None:
        """Say nothing."""


class RichProgress:
    """A live bar for each phase on a terminal; one plain line for each phase elsewhere.

    Used as a context manager; leaving it ends the display, whatever happened inside.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Bars(
            SpinnerColumn(finished_text="[green]✓[/]"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._current: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._bars.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """Complete the bar of the phase before and begin another."""
        self._finish()
        self._current = self._bars.add_task(name, total=total)
        if not self._console.is_terminal:
            self._console.print(Text(name), soft_wrap=True)

    def advance(self, steps: int = 1) -> None:
        """Move the current bar."""
        if self._current is not None:
            self._bars.advance(self._current, steps)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(Text(text, style="dim"), soft_wrap=True)

    def _finish(self) -> None:
        if self._current is None:
            return
        task = next(task for task in self._bars.tasks if task.id == self._current)
        total = task.total if task.total is not None else max(task.completed, 1)
        self._bars.update(self._current, total=total, completed=total)
