"""docs/privacy.md names every pitfall and every rule with tests that exist, in the files where they are said to be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "privacy.md").read_text(encoding="utf-8")
TABLES = {"The twelve pitfalls": 12, "The rules": 18}


def table(page: str, heading: str) -> list[list[str]]:
    """Return the rows of the table under a heading, without the two of its head."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert section, f"no section {heading!r}"
    lines = [line for line in section.group(1).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines[2:]]


def named(cell: str) -> Iterator[tuple[str, str]]:
    """Return (file below tests, test) of each test that a cell names: `file`: `test`, `test`; `file`: ..."""
    file = ""
    for name in re.findall(r"`([^`]+)`", cell):
        if name.endswith(".py"):
            file = name
        elif name.startswith("test_"):
            yield file, name


@lru_cache
def defined(file: str) -> frozenset[str]:
    """Return the tests in a file below tests; none where there is no such file."""
    path = ROOT / "tests" / file
    if not file or not path.is_file():
        return frozenset()
    return frozenset(
        node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)
    )


def missing(page: str) -> list[str]:
    """Return every test that a table's row names and that is not where the row says."""
    rows = [line for line in page.splitlines() if line.startswith("|")]
    return [f"{file or 'no file'}: {test}" for row in rows for file, test in named(row) if test not in defined(file)]


@pytest.mark.parametrize("heading", TABLES)
def test_every_number_has_one_row_in_order(heading: str) -> None:
    numbers = [row[0] for row in table(PAGE, heading)]
    assert numbers == [str(number) for number in range(1, TABLES[heading] + 1)]


@pytest.mark.parametrize("heading", [*TABLES, "Further traps"])
def test_every_row_is_whole_and_names_a_test(heading: str) -> None:
    rows = table(PAGE, heading)
    assert len({len(row) for row in rows}) == 1
    for row in rows:
        assert all(row)
        assert list(named(row[-1])), row


def test_a_rule_that_is_not_kept_in_full_says_what_is_left() -> None:
    for row in table(PAGE, "The rules"):
        assert row[2] == "kept" or len(row[2]) > len("kept") + 10, row


def test_every_test_named_exists_where_the_page_says() -> None:
    assert missing(PAGE) == []


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("`test_an_empty_batch_is_a_noise_step`", "`test_an_empty_batch_is_no_step`"),
        ("`client/training/test_step.py`", "`client/training/test_steps.py`"),
        ("`client/training/test_step.py`: ", ""),
    ],
)
def test_a_renamed_test_or_file_is_found(before: str, after: str) -> None:
    assert before in PAGE
    assert missing(PAGE.replace(before, after)) != []


def test_a_row_that_was_dropped_is_found() -> None:
    page = re.sub(r"^\| 7 \|.*\n", "", PAGE, flags=re.MULTILINE)
    for heading in TABLES:
        assert "7" not in [row[0] for row in table(page, heading)]
