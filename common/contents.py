"""What a record is before a task sees it: a text, an image, a recording, or a row of fields.

Values only. How files become contents is a site's affair, what a task makes of them :mod:`common.tasks`. No content is
ever printed.
"""

from __future__ import annotations

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
