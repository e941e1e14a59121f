"""A file below a folder, by a path that the hospital's query returned: its bytes, and never those of another file."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from common import errors
from common.errors import ConsiliumError


def read_below(folder: Path, path: str, most: int) -> bytes | None:
    """Return a file's bytes, or None for what is no file, cannot be read or is larger than ``most`` bytes.

    folder  what the path is below once links are followed
    path    relative to it

    Raises CSL-502 for a path that leads out of the folder.
    """
    try:
        # Not to wait for a writer where there is a pipe, and not to follow a link that has just been made.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(_inside(folder, path), flags), "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode) or found.st_size > most:
                return None
            raw = file.read(most + 1)
    except OSError:
        return None
    return raw if len(raw) <= most else None


def _inside(folder: Path, path: str) -> Path:
    """Resolve a path; the detail of the error does not repeat it, because files are named after patients."""
    root = folder.resolve()
    if "\x00" in path or Path(path).is_absolute():
        raise ConsiliumError(errors.DATA_FORBIDDEN, "columns.path: a path is not relative")
    try:
        found = (root / path).resolve()
    except (OSError, RuntimeError):
        # A loop of links leads nowhere, and a name too long to nothing.
        return root
    if not found.is_relative_to(root):
        raise ConsiliumError(errors.DATA_FORBIDDEN, f"columns.path: a path leads out of {folder}")
    return found
