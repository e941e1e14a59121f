"""The last vector that a site was asked to evaluate, kept for its own use: it came from the operator and is public.

With it the site judges afterwards, on its own machine, whether the study helped it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common import errors
from common.durable import write_whole
from common.errors import ConsiliumError
from common.parts import Digest
from common.payloads import parse_vector


def keep_vector(state: Path, study: Digest, raw: bytes) -> None:
    """Write a vector's bytes as they came, in place of the last; raises OSError."""
    path = _file(state, study)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, raw)


def kept_vector(state: Path, study: Digest, dimension: int) -> NDArray[np.float32]:
    """Return the vector, (dimension,) float32; raises CSL-611 where none was kept, CSL-311 for another length."""
    try:
        raw = _file(state, study).read_bytes()
    except OSError as error:
        raise ConsiliumError(errors.RELEASE_NOT_KEPT, study[:12]) from error
    return parse_vector(raw, dimension)


def _file(state: Path, study: Digest) -> Path:
    return state / "released" / f"{study[:16]}.vector"
