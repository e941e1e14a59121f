"""What a record is before a task sees it: a text, an image, a recording, or a row of fields.

Values only. How files become contents is a site's affair, what a task makes of them :mod:`common.tasks`. No content is
ever printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
"""(height, width, channels), 1 channel for grey, 3 for red, green and blue."""


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """One channel of sound.

    samples  (n,) float32 in [-1, 1]
    rate     samples a second, > 0
    """

    samples: NDArray[np.float32] = field(repr=False)
    rate: int


Row = tuple[str | None, ...]
"""The values of one row in the order of the study's fields, None where one is missing."""

Content = str | Image | Recording | Row
"""What one record holds; which of these, the study's task says."""


def written_down(values: Iterable[str | bytes | None]) -> bytes:
    """Return values in one canonical form: whether each is there, its length and its bytes; no two lists share one."""
    raw = (value.encode() if isinstance(value, str) else value for value in values)
    return b"".join(b"-" if value is None else b"%d " % len(value) + value for value in raw)


def ordinal(content: Content) -> bytes:
    """Return what contents of one kind are sorted by: equal for equal contents only; texts keep the order of their own.

    Of an image or a recording it is a SHA-256, so that the order says nothing of where the file was.
    """
    if isinstance(content, str):
        return content.encode(errors="surrogatepass")
    if isinstance(content, tuple):
        return written_down(content)
    values, form = (content.samples, content.rate) if isinstance(content, Recording) else (content, content.shape)
    return hashlib.sha256(written_down((repr(form), values.tobytes()))).digest()
