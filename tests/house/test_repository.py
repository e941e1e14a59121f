"""What is in the repository is ours, is said truly, and ships as meant."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from simulations.benchmarks.__main__ import main as benchmarks
from tests.house import names, wheel

ROOT = Path(__file__).resolve().parents[2]
# Written so that this file does not match itself.
STRANGERS = re.compile(
    r"/wor[k]/|/opt/(?:pyp[i]|wheel[s])|pypi[-]more|\.librar[y]\b|issues[ ]show|--(?:extra-)?index[-]url|--find[-]links"
    r"|https?://(?:[\w.-]+\.)?pyp[i]\.|files\.python[h]osted|clau[d]e|anthropi[c]",
    re.IGNORECASE,
)


def tracked() -> list[Path]:
    """Return the files that git tracks and that are still there."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listed.split("\0") if name and (path := ROOT / name).is_file()]


def targets(makefile: str) -> set[str]:
    """Return the targets that a Makefile's help lists."""
    return set(re.findall(r"^([a-z][a-z-]*):.*## ", makefile, re.MULTILINE))


def test_no_tracked_file_names_where_it_was_written() -> None:
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in STRANGERS.finditer(text)]
    assert found == []


def test_no_module_has_outgrown_its_one_job() -> None:
    parts = ("common/", "client/", "server/", "simulations/")
    modules = [path for path in tracked() if path.suffix == ".py" and str(path.relative_to(ROOT)).startswith(parts)]
    long = {str(path.relative_to(ROOT)) for path in modules if len(path.read_text().splitlines()) > 400}
    assert long == set()


@pytest.mark.parametrize("page", ["README.md", "docs/researchers.md", "docs/architecture.md"])
def test_every_make_command_a_page_shows_exists(page: str) -> None:
    shown = set(re.findall(r"\bmake ([a-z-]+)\b(?=[^a-z]*[`#\n]|  )", (ROOT / page).read_text(encoding="utf-8")))
    assert shown <= targets((ROOT / "Makefile").read_text(encoding="utf-8"))


def test_every_relative_link_of_the_documents_leads_somewhere() -> None:
    broken = []
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if "://" not in link and not (page.parent / link).exists():
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert broken == []


def test_a_dependency_with_one_of_our_names_is_found() -> None:
    assert names.collisions({"planted": ["planted", "common"], "other": ["commons"]}) == ["planted installs common"]


def test_no_dependency_has_one_of_our_names() -> None:
    assert names.collisions(names.installed_names()) == []


def test_a_wheel_with_tests_is_refused() -> None:
    files = ["common/study.py", "client/site.py", "server/coordinator.py", "simulations/cli.py"]
    pages = ["client/templates/a.html.j2", "server/templates/a.html.j2", "common/templates/console.html.j2"]
    schemas = ["client/ledger/migrations/versions/v0001_entries.py", "server/migrations/versions/v0001_studies.py"]
    shipped = [
        *files,
        *pages,
        "common/static/console.css",
        *schemas,
        "simulations/scenarios/demo.toml",
        "consilium-0.1.0.dist-info/METADATA",
    ]
    assert wheel.faults(shipped) == []
    assert wheel.faults([*shipped, "tests/conftest.py"]) == ["must not ship: tests/conftest.py"]
    assert wheel.faults(shipped[1:]) == ["missing: common/study.py"]


def test_the_wheel_holds_our_packages_and_nothing_else(tmp_path: Path) -> None:
    assert wheel.faults(wheel.build(tmp_path)) == []


def test_an_unknown_benchmark_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmarks(["no-such-table"]) == 2
    assert "no benchmark is called 'no-such-table'" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["check", "test", "test-slow", None])
def test_the_ci_run_tries_everything_and_fails_if_anything_did(tmp_path: Path, broken: str | None) -> None:
    make = tmp_path / "make"
    make.write_text(f'#!/bin/sh\necho "made $1"\n[ "$1" != "{broken}" ]\n')
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "CI": "true"}
    result = subprocess.run([ROOT / ".ci" / "run"], env=environment, capture_output=True, text=True, check=False)
    assert [line for line in result.stdout.splitlines() if line.startswith("made")] == [
        "made check",
        "made test",
        "made test-slow",
    ]
    assert result.returncode == (1 if broken else 0)
