"""Bad input through the real command: one coded line, exit code 2, no traceback, nothing written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from simulations.cli import app, show
from tests.simulations.runs import run as example
from tests.simulations.runs import study
from tests.simulations.scenarios import fields, toml, write_csv


class Bench:
    """A folder with data and a scenario, and the command run over it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.data.mkdir()
        write_csv(self.data / "notes.csv", rows=60)
        (folder / "outside.csv").write_text("text,label,site\nsecret,calm,A\n")

    def run(self, scenario: str, *options: str) -> Result:
        path = self.folder / "scenario.toml"
        path.write_text(scenario)
        arguments = ["run", str(path), "--data", str(self.data), "--out", str(self.folder / "out"), *options]
        return CliRunner().invoke(app, arguments, catch_exceptions=True)

    def refused(self, code: str, scenario: str, *options: str) -> str:
        before = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        result = self.run(scenario, *options)
        assert isinstance(result.exception, SystemExit), result.exception
        assert result.exit_code == 2
        assert result.stdout == ""
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        assert len(lines) == 1
        assert lines[0].startswith(code + " ")
        assert "Traceback" not in result.stderr
        assert "secret" not in result.stderr
        after = {path: path.read_bytes() for path in self.folder.rglob("*") if path.is_file()}
        after.pop(self.folder / "scenario.toml")
        assert after == before
        assert not (self.folder / "out").exists()
        return lines[0]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_broken_toml(bench: Bench) -> None:
    assert "line 1" in bench.refused("CSL-510", "name = \ntitle = 1")


def test_an_unknown_key(bench: Bench) -> None:
    assert "privacy.noise_seed" in bench.refused("CSL-511", toml(fields(privacy={"noise_seed": 1})))


@pytest.mark.parametrize("epsilon", [0.0, -3.0])
def test_an_epsilon_that_is_not_positive(bench: Bench, epsilon: float) -> None:
    assert "privacy.epsilon" in bench.refused("CSL-511", toml(fields(privacy={"epsilon": epsilon})))


def test_a_scenario_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(tmp_path / "absent.toml"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert result.stderr.startswith("CSL-510")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--baselines", "majority,best"), "--baselines"),
        (("--device", "tpu"), "--device"),
        (("--full",), "full"),
    ],
)
def test_an_option_that_means_nothing(bench: Bench, options: tuple[str, ...], named: str) -> None:
    assert named in bench.refused("CSL-511", toml(fields()), *options)


def test_an_output_folder_that_is_a_file(bench: Bench) -> None:
    (bench.folder / "file").write_text("")
    result = bench.run(toml(fields()), "--out", str(bench.folder / "file"))
    assert result.exit_code == 2
    assert result.stderr.startswith("CSL-513")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"columns": {"text": "note"}}, "CSL-503"),
        ({"columns": {"unit": "person"}}, "CSL-503"),
        ({"data": {"query": "COPY (SELECT 1) TO 'stolen.csv'"}}, "CSL-502"),
        ({"data": {"query": "WITH t AS (COPY (SELECT 1) TO 'stolen.csv') FROM t"}}, "CSL-502"),
        ({"data": {"query": "FROM '../outside.csv'"}}, "CSL-502"),
        ({"data": {"query": "FROM 'https://example.com/notes.csv'"}}, "CSL-502"),
        ({"data": {"query": "FROM 'absent.csv'"}}, "CSL-501"),
        ({"data": {"query": "SELECT NULL AS text, label, site FROM 'notes.csv'"}}, "CSL-505"),
        ({"task": {"labels": ["calm", "severe"]}}, "CSL-321"),
        ({"data": {"sites": ["North 1", "South 2", "West", "East"]}}, "CSL-504"),
        ({"data": {"query": "SELECT * FROM 'notes.csv' WHERE false"}}, "CSL-504"),
        ({"partition": {"rule": "iid", "sites": 50}, "columns": {"site": None}}, "CSL-512"),
    ],
)
def test_data_that_is_not_as_the_scenario_says(bench: Bench, changes: dict[str, object], code: str) -> None:
    bench.refused(code, toml(fields(**changes)))


def test_a_query_without_a_data_folder(bench: Bench) -> None:
    path = bench.folder / "scenario.toml"
    path.write_text(toml(fields()))
    result = CliRunner().invoke(app, ["run", str(path), "--out", str(bench.folder / "out")])
    assert result.exit_code == 2
    assert "--data" in result.stderr
    assert not (bench.folder / "out").exists()


def test_the_shipped_scenarios_are_listed() -> None:
    result = CliRunner().invoke(app, ["scenarios"])
    assert result.exit_code == 0
    assert all(name in result.stdout for name in ("demo", "medquad", "sst2"))
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert "tabular-classification" in lines["heart"]
    assert "image-classification" in lines["pneumonia"]


def test_the_command_is_a_module_too() -> None:
    found = subprocess.run([sys.executable, "-m", "simulations.cli", "--help"], capture_output=True, text=True)
    assert found.returncode == 0
    assert "scenarios" in found.stdout


def test_what_is_printed_has_the_figures_the_guarantee_the_warnings_and_the_report() -> None:
    metrics = example(study())
    console = Console(width=100)
    with console.capture() as captured:
        show(metrics, Path("runs/x/report.html"), console)
    printed = " ".join(captured.get().split())
    for site in metrics.sites:
        assert site.id in printed
    assert f"{100 * metrics.pooled.accuracy:.1f} %" in printed
    assert f"epsilon {metrics.privacy.epsilon:.3g}" in printed
    assert f"unit {metrics.privacy.unit}" in printed
    assert metrics.privacy.neighbour in printed
    for warning in metrics.warnings:
        assert " ".join(warning.split()) in printed
    assert "report: runs/x/report.html" in printed
