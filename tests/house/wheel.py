"""`python -m tests.house.wheel`: build the wheel as a release would be and look at what it holds."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tests.house.names import OURS

ROOT = Path(__file__).resolve().parents[2]
_WANTED = (
    "common/study.py",
    "common/static/console.css",
    "common/templates/console.html.j2",
    "client/templates/",
    "server/templates/",
    "client/site.py",
    "client/ledger/migrations/versions/v",
    "server/coordinator.py",
    "server/migrations/versions/v",
    "simulations/cli.py",
    "simulations/scenarios/",
)


def build(folder: Path) -> tuple[str, ...]:
    """Build a wheel from a copy of what git tracks and return the names of its files."""
    source = folder / "source"
    source.mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        return tuple(content.namelist())


def faults(files: Iterable[str]) -> list[str]:
    """Return one line for each file that must not ship, and for each part that is missing."""
    held = [name for name in files if ".dist-info/" not in name]
    strangers = [f"must not ship: {name}" for name in held if name.split("/", 1)[0] not in OURS]
    missing = [f"missing: {part}" for part in _WANTED if not any(name.startswith(part) for name in held)]
    return strangers + missing


def main() -> int:
    """Print what is wrong with the wheel; returns 1 if anything is."""
    with tempfile.TemporaryDirectory() as folder:
        files = build(Path(folder))
    found = faults(files)
    print("\n".join(found) or f"wheel: {len(files)} files, our four packages and nothing else")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
