"""The settings that every test run relies on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
PROBE = """
import pytest

@pytest.mark.realdata
def test_reads_real_data(real_data):
    assert real_data.is_dir()

def test_reads_nothing():
    pass
"""


def run_probe(checkout: Path) -> str:
    """Run two tests, one of them marked, in a checkout that has our conftest; returns pytest's summary."""
    tests = checkout / "tests"
    tests.mkdir(parents=True)
    (tests / "conftest.py").write_text(CONFTEST.read_text(encoding="utf-8"))
    (tests / "test_probe.py").write_text(PROBE)
    (checkout / "pytest.ini").write_text("[pytest]\nmarkers = realdata\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False).stdout


def test_real_data_is_skipped_with_a_reason_where_it_is_absent(tmp_path: Path) -> None:
    summary = run_probe(tmp_path / "checkout")
    assert "1 passed, 1 skipped" in summary
    assert "not beside the checkout" in summary


def test_real_data_is_read_where_it_is_beside_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "shared" / "data").mkdir(parents=True)
    assert "2 passed" in run_probe(tmp_path / "checkout")


def test_nothing_calls_home_and_threads_are_bounded() -> None:
    wanted = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "1"}
    assert {name: os.environ.get(name) for name in wanted} == wanted
    assert os.environ["OMP_NUM_THREADS"].isdigit()
