"""The container files are read, not built: what can be seen from here holds."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.packaging.charts import read

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "packaging" / "docker"
SIDES = ("server", "client")
INSTRUCTIONS = {"FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
SECRET = re.compile(r"passphrase|password|secret|token", re.IGNORECASE)


def instructions(side: str) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions with their arguments, continued lines joined, comments left out."""
    text = (FOLDER / f"Dockerfile.{side}").read_text(encoding="utf-8")
    lines = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in lines if line.strip()]


def given(side: str, name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions(side) if instruction == name]


@pytest.mark.parametrize("side", SIDES)
def test_a_dockerfile_has_known_instructions_and_a_base_pinned_to_a_release(side: str) -> None:
    assert {instruction for instruction, _ in instructions(side)} <= INSTRUCTIONS
    for base in given(side, "FROM"):
        assert re.fullmatch(r"python:3\.\d+\.\d+-slim-[a-z]+( AS [a-z]+)?", base)
    head = (FOLDER / f"Dockerfile.{side}").read_text(encoding="utf-8")
    assert "@sha256:" in head
    assert "Not built by this repository's tests" in head


@pytest.mark.parametrize("side", SIDES)
def test_an_image_runs_our_command_as_nobody_in_particular_and_says_whether_it_is_well(side: str) -> None:
    assert given(side, "USER")[-1] == "10001:10001"
    assert instructions(side)[-2:] == [
        ("ENTRYPOINT", json.dumps([f"/opt/consilium/bin/consilium-{side}"])),
        (
            "CMD",
            json.dumps(
                ["run", "--config", f"/var/lib/consilium-{side}/{'server' if side == 'server' else 'site'}.toml"]
            ),
        ),
    ]
    (health,) = given(side, "HEALTHCHECK")
    python, dash_c, program = json.loads(health.split("CMD ", 1)[1])
    assert (python, dash_c) == ("/opt/consilium/bin/python", "-c")
    compile(program, "health", "exec")
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert f"consilium-{side}" in scripts


@pytest.mark.parametrize("side", SIDES)
def test_an_image_is_made_of_our_packages_at_the_tested_versions_and_of_no_secret(side: str) -> None:
    copied = [part for line in given(side, "COPY") if not line.startswith("--from") for part in line.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"common", "client", "server", "simulations", "constraints.txt"} <= set(copied)
    assert "tests" not in copied
    ignored = (FOLDER / f"Dockerfile.{side}.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    assert any("--constraint constraints.txt" in line for line in given(side, "RUN"))
    for line in given(side, "ENV"):
        assert not SECRET.search(line.replace("CREDENTIALS_DIRECTORY=/run/secrets", ""))


@pytest.mark.parametrize("side", SIDES)
def test_a_service_may_write_its_home_and_nothing_else(side: str) -> None:
    compose = read(FOLDER / "compose.yaml")
    services = compose["services"]
    assert isinstance(services, dict)
    service = services[side]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["profiles"] == [side]
    assert not service.keys() & {"privileged", "network_mode", "environment", "user", "devices", "cap_add"}
    assert f"{side}-home:/var/lib/consilium-{side}" in service["volumes"]
    build = service["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_a_hospital_publishes_no_port_and_the_server_its_listener_alone() -> None:
    services = read(FOLDER / "compose.yaml")["services"]
    assert isinstance(services, dict)
    assert "ports" not in services["client"]
    assert services["server"]["ports"] == ["9443:9443"]


def test_the_passphrase_is_a_secret_by_the_name_that_credentials_have() -> None:
    compose = read(FOLDER / "compose.yaml")
    assert compose["secrets"] == {"passphrase": {"file": "./passphrase.txt"}}
    services = compose["services"]
    assert isinstance(services, dict)
    for side in SIDES:
        assert services[side]["secrets"] == [{"source": "passphrase", "target": "consilium"}]
        assert any("CREDENTIALS_DIRECTORY=/run/secrets" in line for line in given(side, "ENV"))
    assert not (FOLDER / "passphrase.txt").exists()
