"""`python -m tests.house.names`: no installed package may bring a top-level name of ours.

Our import names are plain words (`common`, `client`, `server`, `simulations`): a dependency that installs one of them
would shadow our code, or be shadowed by it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions

OURS = frozenset({"common", "client", "server", "simulations"})


def installed_names() -> dict[str, set[str]]:
    """Return the top-level import names that each installed distribution but ours brings."""
    return {
        package.name: {_top_level(str(path)) for path in package.files or ()}
        for package in distributions()
        if package.name != "consilium"
    }


def collisions(installed: Mapping[str, Iterable[str]]) -> list[str]:
    """Return one line for each distribution that brings a name of ours."""
    return sorted(
        f"{name} installs {', '.join(sorted(OURS & set(tops)))}" for name, tops in installed.items() if OURS & set(tops)
    )


def _top_level(path: str) -> str:
    first, separator, _ = path.partition("/")
    return first if separator else first.split(".", 1)[0]


def main() -> int:
    """Print what collides; returns 1 if anything does."""
    installed = installed_names()
    found = collisions(installed)
    print("\n".join(found) or f"names: {len(installed)} packages, none brings one of ours")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
