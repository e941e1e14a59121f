"""The error catalogue is sound: one code a fault, a page for each, none that nobody raises."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from common import errors
from common.errors import ConsiliumError, Fault, catalogue
from tests.house import error_pages

ROOT = Path(__file__).resolve().parents[2]
NAMES = {value.code: name for name, value in vars(errors).items() if isinstance(value, Fault)}


def test_codes_are_unique_and_well_formed() -> None:
    codes = [fault.code for fault in catalogue()]
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"CSL-[1-9]\d\d", code) for code in codes)


@pytest.mark.parametrize("fault", catalogue(), ids=lambda fault: fault.code)
def test_a_fault_says_its_cause_and_its_mend_in_one_line(fault: Fault) -> None:
    for text in (fault.area, fault.cause, fault.mend):
        assert text
        assert text == text.strip()
        assert "\n" not in text
        assert not text.endswith(".")


def test_the_page_of_errors_is_current() -> None:
    assert error_pages.PAGE.read_text(encoding="utf-8") == error_pages.render(catalogue()), (
        "run `python -m tests.house.error_pages`"
    )


def test_every_fault_is_raised_somewhere() -> None:
    sources = [path for part in ("common", "client", "server", "simulations") for path in (ROOT / part).rglob("*.py")]
    code = "\n".join(path.read_text(encoding="utf-8") for path in sources)
    unused = [name for name in NAMES.values() if not re.search(rf"errors\.{name}\b", code)]
    assert unused == []


def test_every_code_that_documents_name_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    named = {code for page in pages for code in re.findall(r"CSL-\d\d\d", page.read_text(encoding="utf-8"))}
    assert named <= NAMES.keys()


def test_every_page_that_a_mend_names_exists() -> None:
    named = {page for fault in catalogue() for page in re.findall(r"docs/[\w.-]+\.md", fault.mend)}
    assert [page for page in named if not (ROOT / page).is_file()] == []


def test_a_message_is_one_line_with_code_cause_detail_and_mend() -> None:
    error = ConsiliumError(errors.DATA_COLUMN, "no column\n 'text'")
    assert str(error) == (
        "CSL-503 data: a column named is not in the query's result: no column 'text'. Mend: correct the column roles"
    )


def test_an_error_survives_a_process_boundary() -> None:
    error = ConsiliumError(errors.LEDGER_SPENT, "account north")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes, as multiprocessing would carry them
    assert (copy.fault, copy.detail) == (error.fault, error.detail)
