"""The documents are one site: every page in its menu, every link leading somewhere, nothing loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from client.cli import app as client
from server.cli import app as server

ROOT = Path(__file__).resolve().parents[2]
WALKS = {"docs/hospitals.md": "hospital", "docs/operators.md": "operator"}
BLOCK = re.compile(r"^<!-- run: (\w+)( daemon)? -->\n```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"--[a-z][a-z-]*")


def commands(text: str) -> list[list[str]]:
    """Return the words of every command of ours in the console blocks of a page."""
    blocks = re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line[2:] for block in blocks for line in block.splitlines() if line[:2] in ("$ ", "# ")]
    return [line.split() for line in lines if re.match(r"consilium-(client|server) ", line)]


def offered(words: list[str]) -> set[str]:
    """Return the options of the command that some words begin with; raises AssertionError for one that is not there."""
    command = get_command(client if words[0] == "consilium-client" else server)
    for word in words[1:]:
        inner = getattr(command, "commands", None)
        if inner is None:
            break
        assert word in inner, f"{' '.join(words)}: there is no {word}"
        command = inner[word]
    return {name for parameter in command.params for name in parameter.opts}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return folder


def test_every_document_is_a_page_and_every_link_leads_somewhere(site: Path) -> None:
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    built = {str(path.relative_to(site)) for path in site.rglob("*.html")}
    assert {page.removesuffix(".md") + ".html" for page in pages} <= built


def test_the_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loading = re.compile(
        r"<(?:script|img|iframe|source)[^>]*\bsrc=\"?(https?:)?//|<link[^>]*\bhref=\"?(https?:)?//[^>]*stylesheet"
    )
    found = [path.name for path in site.rglob("*.html") if loading.search(path.read_text(encoding="utf-8"))]
    assert found == []
    assert loading.search('<script src="https://example.org/a.js">')


def test_every_document_is_in_the_menu_once() -> None:
    """Read as text, so that it is seen without building."""
    menu = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(menu) == sorted(str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md"))
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["strict"] is True


@pytest.mark.parametrize("page", [*WALKS, "docs/retention.md", "docs/upgrade.md"])
def test_every_command_on_a_page_exists_with_the_options_shown(page: str) -> None:
    found = commands((ROOT / page).read_text(encoding="utf-8"))
    assert found
    for words in found:
        shown = {word for word in words if OPTION.fullmatch(word)}
        assert shown <= offered(words), " ".join(words)


@pytest.mark.parametrize(("page", "side"), WALKS.items())
def test_each_step_of_a_walk_through_says_who_runs_it_and_holds_commands_alone(page: str, side: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = BLOCK.findall(text)
    assert len(found) == text.count("<!-- run:")
    for who, daemon, block in found:
        assert who == side
        assert all(line.startswith("$ ") for line in block.splitlines())
        assert bool(daemon) == (f"consilium-{'client' if side == 'hospital' else 'server'} run" in block)


def test_what_a_walk_through_leaves_open_is_in_variables() -> None:
    named = {
        name
        for page in WALKS
        for _, _, block in BLOCK.findall((ROOT / page).read_text(encoding="utf-8"))
        for name in re.findall(r"\$\{?([A-Z_]+)", block)
    }
    assert named == {
        "ADMISSION", "BACKBONE", "BAND", "CONSILIUM_HOME", "CONSORTIUM", "CONSORTIUM_FILE", "DIGEST", "EDITOR",
        "JOIN_REQUEST", "PEER", "PEER_FINGERPRINT", "RELEASE", "SERVER", "SITE", "STUDY",
    }  # fmt: skip
