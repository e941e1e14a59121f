"""What reports and consoles have in common: templates that escape, and figures as inline SVG for two widths of screen.

A page holds no script.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.figures import clean
from common.wording import listed

SHARED = Path(__file__).parent / "templates"
"""Templates that pages of several packages include."""
WIDE, NARROW = 720, 344
"""Pixels that figures are drawn for; the style sheet shows one of the two."""


def environment(*folders: Path) -> Environment:
    """Return templates in which every text is escaped and cleaned, and a name that is missing is an error."""
    made = Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )
    made.filters.update(moment=moment, size=size, listed=listed)
    return made


def moment(at: datetime) -> str:
    """Print a time in UTC, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def size(count: float) -> str:
    """Print a number of bytes with three digits and a decimal unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.9995 * scale:
            value = count / scale
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{count:.0f} bytes"


def drawn(svg: str) -> Markup:
    """Return a figure as markup; every text in it was escaped where it was drawn."""
    return Markup(svg)  # noqa: S704  see above


def both(draw: Callable[[int], str]) -> Markup:
    """Return one figure for a wide and a narrow screen."""
    return drawn(f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>')
