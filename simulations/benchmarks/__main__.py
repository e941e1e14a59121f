"""`python -m simulations.benchmarks [NAME [ARGUMENTS...]]`: run one benchmark, or all of them one after the other.

A benchmark is a module of this package whose ``main(argv)`` returns an exit status. This one finds and starts them.
"""

from __future__ import annotations

import pkgutil
import sys
from collections.abc import Sequence
from importlib import import_module

from simulations import benchmarks


def names() -> tuple[str, ...]:
    """Return the benchmarks there are, in alphabetical order."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return tuple(sorted(name for name in found if not name.startswith("_")))


def main(argv: Sequence[str]) -> int:
    """Run the benchmark named first with the remaining arguments, or every one; returns the worst exit status."""
    known = names()
    if argv and argv[0] not in known:
        choice = f"choose from: {', '.join(known)}" if known else "there is none yet"
        print(f"no benchmark is called {argv[0]!r}; {choice}", file=sys.stderr)
        return 2
    if not known:
        print("there is no benchmark yet")
    worst = 0
    for name in argv[:1] or known:
        print(f"== {name}", flush=True)
        worst = max(worst, import_module(f"simulations.benchmarks.{name}").main(list(argv[1:])))
    return worst


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
