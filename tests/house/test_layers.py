"""The layers of the house hold, and what must be light is light."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "peft", "opacus")
LIGHT = (
    "common.agreement",
    "common.chunks",
    "common.errors",
    "common.identity",
    "common.keystore",
    "common.link.inprocess",
    "common.link.records",
    "common.messages",
    "common.payloads",
    "common.privacy.concerns",
    "common.privacy.plan",
    "common.privacy.statement",
    "common.secagg",
    "common.stream",
    "common.web",
    "common.study",
    "client.audio",
    "client.cli",
    "client.config",
    "client.console",
    "client.contents",
    "client.data",
    "client.data_cli",
    "client.data_quality",
    "client.data_report",
    "client.database",
    "client.egress",
    "client.egress_log",
    "client.fetching",
    "client.gate",
    "client.images",
    "client.judgement",
    "client.judging_cli",
    "client.ledger",
    "client.mismatch",
    "client.outbox",
    "client.policy",
    "client.preparing",
    "client.query",
    "client.records",
    "client.released",
    "client.review",
    "client.review_page",
    "client.shelf",
    "client.site",
    "client.study_cli",
    "client.sources",
    "client.table",
    "client.verdict",
    "server.aggregation",
    "server.console",
    "server.coordinator",
    "server.journal",
    "server.distribution",
    "server.witnesses",
    "simulations.cli",
    "simulations.curve.page",
    "simulations.metrics",
    "simulations.report",
    "simulations.scenario",
)


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run this interpreter with the arguments given and return what came of it."""
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=False)


def test_the_layers_hold() -> None:
    result = run("-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-logo", "--no-cache")
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_without_the_machine_learning_stack(module: str) -> None:
    result = run("-c", f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])")
    assert (result.stdout.strip(), result.returncode) == ("[]", 0), result.stdout + result.stderr


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("simulations.cli", ["--help"]),
        ("simulations.cli", ["curve", "--help"]),
        ("client.cli", ["--help"]),
        ("client.cli", ["ledger", "--help"]),
        ("client.cli", ["data", "--help"]),
        ("client.cli", ["verdict", "--help"]),
        ("client.cli", ["mismatch", "--help"]),
    ],
)
def test_help_needs_no_machine_learning_stack_and_no_accountant(module: str, arguments: list[str]) -> None:
    program = f"""
import sys
from {module} import main
sys.argv = ["command", *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print([name for name in {(*HEAVY, "dp_accounting", "scipy")!r} if name in sys.modules], file=sys.stderr)
"""
    result = run("-c", program)
    assert (result.stderr.strip(), result.returncode) == ("[]", 0), result.stdout + result.stderr


def test_our_packages_are_found_where_the_working_directory_is_not_searched(tmp_path: Path) -> None:
    for name in ("common", "client", "server", "simulations"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('a stranger was imported')")
    program = "import client, common, server, simulations; print(common.__file__)"
    result = run("-P", "-c", program, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()) == ROOT / "common" / "__init__.py"


def test_what_answers_the_operator_cannot_reach_what_a_site_fits_for_itself(tmp_path: Path) -> None:
    """The contract that stands in pyproject.toml breaks where one import of a private fit is planted (RULES 11)."""
    for part in ("common", "client", "server", "simulations", "pyproject.toml"):
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tmp_path / part)
    planted = tmp_path / "client" / "workload.py"
    planted.write_text(planted.read_text() + "\n\ndef planted() -> None:\n    from client import personal  # noqa\n")
    program = "from importlinter.cli import lint_imports_command as main; main()"
    result = run(
        "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}", "--no-cache", cwd=tmp_path
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "client.workload -> client.personal" in result.stdout.replace("\n", " ")
