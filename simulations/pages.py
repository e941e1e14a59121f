"""What every page that a simulation writes has in common: templates that escape, a style allowed by its hash only.

A page stands by itself: no request, no script, figures as inline SVG for a wide and a narrow screen.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from simulations.figures import clean

TEMPLATES = Path(__file__).parent / "templates"
WIDE, NARROW = 720, 344
"""Pixels that figures are drawn for; the style sheet shows one of the two."""


@dataclass(frozen=True, slots=True)
class Style:
    """A page's style and the digest under which its content security policy allows it."""

    text: Markup
    digest: str

    @classmethod
    def of(cls, *parts: str) -> Style:
        """Return the style of a page from sheets that hold no input."""
        text = "".join(parts)
        return cls(Markup(text), base64.b64encode(hashlib.sha256(text.encode()).digest()).decode())  # noqa: S704


def sheet(name: str) -> str:
    """Return one of our style sheets."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def environment() -> Environment:
    """Return templates in which every text is escaped and cleaned, and a name that is missing is an error."""
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
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
