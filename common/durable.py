"""Small files that are there whole, or as they were before: written beside, synced, and put in place by name."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.sqlite_files import sync_folder


@contextmanager
def folder_whole(folder: Path) -> Iterator[Path]:
    """Yield an empty folder beside; leaving the context puts it in place by its name, or removes it. Raises OSError.

    Hidden while it is being made. Refused by the system where something lies there already.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        yield made
        made.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that whoever reads it, also after a crash, finds the old content or the new; raises OSError."""
    made = path.with_name(f".{path.name}")
    with made.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    made.replace(path)
    sync_folder(path.parent)
