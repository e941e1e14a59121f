"""The rows of a benchmark on disk: kept cell by cell, whole or not at all, with where and when they were measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

Value = float | int | str | None
Row = dict[str, Value]


def kept(out: Path, *, fresh: bool) -> list[Row]:
    """Return the rows that were measured before; none where they are to be measured again."""
    return [] if fresh or not out.exists() else list(json.loads(out.read_text()))


def save(
    out: Path,
    rows: Sequence[Mapping[str, Value]],
    command: str,
    packages: Sequence[str],
    more: Mapping[str, Value] | None = None,
) -> None:
    """Write the rows, and beside them ``*.meta.json``: command, moment, machine, versions, and what else is given."""
    out.parent.mkdir(parents=True, exist_ok=True)
    meta = {
        "command": command,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        **(more or {}),
    }
    for path, content in ((out, list(rows)), (out.with_suffix(".meta.json"), meta)):
        partial = path.with_suffix(".new")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        partial.replace(path)
