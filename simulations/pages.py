"""What every page that a simulation writes has beside :mod:`common.pages`: a style that is allowed by its hash only.

Such a page stands by itself: no request, no script.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


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
