"""What reports and consoles have in common: templates that escape, and figures as inline SVG for two widths of screen.

A page holds no script.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from common.figures import clean

WIDE, NARROW = 720, 344
"""Pixels that figures are drawn for; the style sheet shows one of the two."""


def environment(*folders: Path) -> Environment:
    """Return templates in which every text is escaped and cleaned, and a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: clean(value) if type(value) is str else value,
    )


def drawn(svg: str) -> Markup:
    """Return a figure as markup; every text in it was escaped where it was drawn."""
    return Markup(svg)  # noqa: S704  see above


def both(draw: Callable[[int], str]) -> Markup:
    """Return one figure for a wide and a narrow screen."""
    return drawn(f'<div class="wide">{draw(WIDE)}</div><div class="narrow">{draw(NARROW)}</div>')
