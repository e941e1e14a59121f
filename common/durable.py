"""Small files that are there whole, or as they were before: written beside, synced, and put in place by name."""

from __future__ import annotations

import os
from pathlib import Path

from common.sqlite_files import sync_folder


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it, also after a crash, finds the old content or the new; raises OSError."""
    made = path.with_name(f".{path.name}")
    with made.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    made.replace(path)
    sync_folder(path.parent)
