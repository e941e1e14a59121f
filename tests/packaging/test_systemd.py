"""The units are valid, are what this software expects, and give their processes little to abuse."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from client import enrolment as hospitals
from server import enrolment as operators

FOLDER = Path(__file__).resolve().parents[2] / "packaging" / "systemd"
SIDES = ("server", "client")
MOST_EXPOSED = 12
"""Tenths of systemd's exposure level, which goes from 0 to 10; the units stand at 11."""
systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


def unit(side: str) -> str:
    return (FOLDER / f"consilium-{side}.service").read_text(encoding="utf-8")


def settings(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"([A-Za-z]+)=(.*)", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def analysed(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@systemd
@pytest.mark.parametrize("side", SIDES)
def test_a_unit_is_valid(side: str, tmp_path: Path) -> None:
    """The command is not installed here: another that exists takes its place."""
    copy = tmp_path / f"consilium-{side}.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", unit(side), flags=re.MULTILINE))
    result = analysed("verify", "--man=no", copy)
    assert (result.returncode, result.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("ProtectSystem=strict", "ProtectSystem=strct"))
    assert analysed("verify", "--man=no", copy).stderr != ""


@systemd
@pytest.mark.parametrize("side", SIDES)
def test_a_unit_is_little_exposed(side: str, tmp_path: Path) -> None:
    path = FOLDER / f"consilium-{side}.service"
    result = analysed("security", "--offline=true", f"--threshold={MOST_EXPOSED}", path)
    assert result.returncode == 0, result.stdout + result.stderr
    loose = tmp_path / path.name
    loose.write_text(re.sub(r"^(SystemCallFilter|Protect\w+|PrivateUsers)=.*\n", "", unit(side), flags=re.MULTILINE))
    assert analysed("security", "--offline=true", f"--threshold={MOST_EXPOSED}", loose).returncode != 0


@pytest.mark.parametrize("side", SIDES)
def test_the_passphrase_comes_as_a_sealed_credential_and_nothing_secret_stands_in_the_unit(side: str) -> None:
    found = settings(unit(side))
    (credential,) = found["LoadCredentialEncrypted"]
    assert credential.split(":") == ["consilium", f"/etc/credstore.encrypted/consilium-{side}"]
    assert 'passphrase = "credential:consilium"' in unit(side)
    assert "PASSPHRASE" not in unit(side)


@pytest.mark.parametrize(("side", "file"), [("server", operators.FILE), ("client", hospitals.FILE)])
def test_a_unit_runs_the_command_with_the_file_that_init_makes(side: str, file: str) -> None:
    found = settings(unit(side))
    home = f"/var/lib/consilium-{side}"
    assert found["ExecStart"] == [f"/opt/consilium/bin/consilium-{side} run --config {home}/{file}"]
    assert found["StateDirectory"] == [f"consilium-{side}"]
    assert f"u consilium-{side} " in (FOLDER / "consilium.sysusers.conf").read_text(encoding="utf-8")
    assert found["User"] == [f"consilium-{side}"]


def test_a_hospital_listens_nowhere_and_a_server_on_two_ports() -> None:
    assert settings(unit("client"))["SocketBindDeny"] == ["any"]
    assert "SocketBindAllow" not in settings(unit("client"))
    assert settings(unit("server"))["SocketBindAllow"] == ["tcp:9443", "tcp:9444"]


@pytest.mark.parametrize("side", SIDES)
def test_what_would_break_torch_is_off_and_the_unit_says_why(side: str) -> None:
    found = settings(unit(side))
    for name in ("MemoryDenyWriteExecute", "ProcSubset"):
        assert name not in found
        assert re.search(rf"^# {name}=.* stays off: ", unit(side), re.MULTILINE)
