"""Output folders and files: every command writes through here, and what the disk refuses is CSL-513."""

from __future__ import annotations

import os
from pathlib import Path

from common import errors
from common.errors import ConsiliumError


def check_writable(out: Path) -> None:
    """Raise CSL-513 for an output folder that cannot be made; writes nothing."""
    nearest = next(parent for parent in (out, *out.absolute().parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConsiliumError(errors.OUTPUT_UNWRITABLE, f"{nearest} is not a folder that can be written")


def make_folder(out: Path) -> None:
    """Make the output folder; raises CSL-513 where that cannot be done."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConsiliumError(errors.OUTPUT_UNWRITABLE, f"{out}: {error.strerror}") from error


def save(text: str, path: Path) -> None:
    """Write a file; raises CSL-513 if the path cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConsiliumError(errors.OUTPUT_UNWRITABLE, f"{path}: {error.strerror}") from error
