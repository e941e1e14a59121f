"""The licence check lets permissive licences pass and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.house import licences


@pytest.mark.parametrize(
    "expression",
    [
        "MIT",
        "Apache-2.0 OR BSD-3-Clause",
        "GPL-3.0-only OR MIT",
        "MIT AND (GPL-2.0-only OR ISC)",
        "Apache-2.0 WITH LLVM-exception AND MIT",
    ],
)
def test_a_permissive_expression_is_accepted(expression: str) -> None:
    assert licences.judge("planted", expression).accepted


@pytest.mark.parametrize(
    "expression",
    [
        "GPL-3.0-or-later",
        "AGPL-3.0-only",
        "MIT AND GPL-2.0-only",
        "(MIT OR ISC) AND LGPL-3.0-only",
        "GPL-2.0-only WITH Classpath-exception-2.0",
        "LicenseRef-Proprietary",
        "MIT )",
        "( MIT",
        "MIT MIT",
        "OR MIT",
    ],
)
def test_copyleft_and_nonsense_are_refused(expression: str) -> None:
    assert not licences.judge("planted", expression).accepted


@pytest.mark.parametrize(
    ("text", "classifiers", "accepted"),
    [
        ("MIT License", (), True),
        ("", ("Apache Software License", "BSD License"), True),
        ("GNU General Public License v3", (), False),
        ("", ("GNU General Public License v3 (GPLv3)",), False),
        ("", ("MIT License", "GNU General Public License v3 (GPLv3)"), False),
        ("UNKNOWN", (), False),
        ("Permission is hereby granted " * 20, ("MIT License",), True),
        ("Permission is hereby granted " * 20, (), False),
    ],
)
def test_older_packages_are_read_by_text_then_classifiers(
    text: str, classifiers: tuple[str, ...], accepted: bool
) -> None:
    assert licences.judge("planted", "", text, classifiers).accepted is accepted


def test_a_planted_package_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "planted-1.0.dist-info"
    planted.mkdir()
    (planted / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: planted\nVersion: 1.0\nLicense-Expression: GPL-3.0-only\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert licences.main() == 1
    assert "planted: GPL-3.0-only" in capsys.readouterr().out
