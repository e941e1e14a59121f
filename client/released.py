"""The last vector that a site was asked to evaluate, kept for its own use: it came from the operator and is public.

With it the site judges afterwards, on its own machine, whether the study helped it.
"""

from __future__ import annotations

from pathlib import Path

from common import errors
from common.durable import write_whole
from common.errors import ConsiliumError
from common.parts import Digest


def keep_vector(state: Path, study: Digest, raw: bytes) -> None:
    """Write a vector's bytes as they came, in place of the last; raises OSError."""
    path = _file(state, study)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_whole(path, raw)


def kept_vector(state: Path, study: Digest) -> bytes:
    """Return the vector's bytes as they came; raises CSL-611 where none was kept."""
    try:
        return _file(state, study).read_bytes()
    except OSError as error:
        raise ConsiliumError(errors.RELEASE_NOT_KEPT, study[:12]) from error


def _file(state: Path, study: Digest) -> Path:
    return state / "released" / f"{study[:16]}.vector"
