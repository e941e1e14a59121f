"""What the researcher's commands check alike before an hour of work."""

from __future__ import annotations

import os
import re
from pathlib import Path

from common import errors
from common.errors import ConsiliumError


def check_device(device: str) -> None:
    """Raise CSL-511 for the name of a device that is none."""
    if not re.fullmatch(r"auto|cpu|cuda:\d+", device):
        raise ConsiliumError(errors.SCENARIO_INVALID, f"--device: {device!r} is none of auto, cpu, cuda:N")


def check_writable(out: Path) -> None:
    """Raise CSL-513 for an output folder that cannot be made; writes nothing."""
    nearest = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConsiliumError(errors.OUTPUT_UNWRITABLE, f"{nearest} is not a folder that can be written")
