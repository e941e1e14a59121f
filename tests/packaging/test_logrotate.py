"""The audit log is rotated in the one way that loses no line, and the hash chain in none."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

FILE = Path(__file__).resolve().parents[2] / "packaging" / "logrotate" / "consilium"
TEXT = re.sub(r"^#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE)


def test_one_log_is_rotated_by_renaming_and_compressed_a_turn_later() -> None:
    found = re.fullmatch(r"\s*(\S+) \{\n(.*)\}\s*", TEXT, re.DOTALL)
    assert found
    assert found[1] == "/var/lib/consilium-server/state/audit.jsonl"
    directives = {line.split()[0] for line in found[2].splitlines() if line.strip()}
    assert {"nocreate", "compress", "delaycompress", "missingok", "rotate", "su"} <= directives
    assert not directives & {"copytruncate", "copy", "create", "postrotate", "shred"}


@pytest.mark.skipif(shutil.which("logrotate") is None, reason="no logrotate here: the file is only read")
def test_logrotate_understands_it(tmp_path: Path) -> None:
    log, copy = tmp_path / "audit.jsonl", tmp_path / "consilium"
    log.write_text("{}\n")
    text = TEXT.replace("/var/lib/consilium-server/state/audit.jsonl", str(log))
    copy.write_text(re.sub(r"^\s*su .*\n", "", text, flags=re.MULTILINE))
    copy.chmod(0o644)
    subprocess.run(["logrotate", "--force", "--state", tmp_path / "state", copy], check=True, capture_output=True)
    assert not log.exists()
    (rotated,) = tmp_path.glob("audit.jsonl-*")
    assert rotated.read_text() == "{}\n"
