"""`python -m tests.house.error_pages [--check]`: write docs/errors.md from the catalogue, or compare it."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from common.errors import Fault, catalogue

PAGE = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
_HEAD = """# Errors

Every error a person can meet has a code, a cause and a mend, and never ends in a traceback. What follows the cause in a
message is what was seen there; it never holds a record or a secret. Towards the operator a site has one code only,
`CSL-600`: its reasons stay on site.

The hundreds digit says where: 1 study, identity and messages; 2 privacy and ledger; 3 backbone, adapters, tasks and
preflight; 4 secure aggregation; 5 data and scenarios; 6 site, coordinator and release.

This page is written from `common/errors.py` by `python -m tests.house.error_pages`.
"""


def render(faults: Iterable[Fault]) -> str:
    """Return the page: one section a code, in the order given."""
    sections = (f"\n## {fault.code}\n\n**{fault.area}: {fault.cause}.**\n\nMend: {fault.mend}.\n" for fault in faults)
    return _HEAD + "".join(sections)


def main(arguments: list[str]) -> int:
    """Write the page, or with ``--check`` return 1 if it is not what the catalogue says."""
    page = render(catalogue())
    if arguments != ["--check"]:
        PAGE.write_text(page, encoding="utf-8")
        return 0
    current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == page
    print("errors: docs/errors.md is current" if current else "run `python -m tests.house.error_pages`")
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
