"""An audit's page and its lines on the terminal: every number is there, alarms are seen, text is escaped."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import ConsiliumError
from simulations.audit.command import show, write
from simulations.audit.findings import Audit, Sabotage
from simulations.audit.page import page, shares
from tests.simulations.audit.audits import findings
from tests.simulations.pages import Page

HOSTILE = "<script>alert(1)</script> ${x} {{ 7 * 7 }}"


def test_bounds_stand_beside_claims_with_power() -> None:
    games = Page(page(findings())).table("games")
    assert [cell.text for cell in games.row("whole study")] == [
        "whole study", "60", "14 of 21", "0.310", "7.940", "0.410", "0.860", "30%",
    ]  # fmt: skip
    assert games.row("one charge")[3].text == "0.100"


def test_a_refuted_claim_is_said_first_and_a_claim_that_stands_is_not_called_safe() -> None:
    broken, honest = page(findings(bound=9.0, noise=0.25, sabotage=Sabotage.NOISE_QUARTER)), page(findings())
    assert "The claim does not hold." in broken
    assert "at least epsilon 9 where 7.94 is claimed" in broken
    assert "less noise left than is claimed: 0.250 times" in broken
    assert "SABOTAGED" in broken
    assert 'class="refuted"' in broken
    assert "Nothing was found that contradicts the claim." in honest
    assert "a short bar proves no safety" in honest
    assert "SABOTAGED" not in honest
    assert 'class="refuted"' not in honest


def test_what_the_reader_must_know_is_said() -> None:
    assert "<p>several local steps: guesses rest on directions</p>" in page(
        findings(notes=("several local steps: guesses rest on directions",))
    )


def test_text_from_outside_is_escaped_and_nothing_is_asked_of_anybody() -> None:
    text = page(findings(title=HOSTILE, site=HOSTILE, command=HOSTILE))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "{{ 7 * 7 }}" in text
    assert not re.search(r'(src|href)="', text)
    assert "default-src 'none'" in text
    read = Page(text)
    assert (read.left_open, read.misnested) == ([], [])


def test_equal_findings_give_equal_pages() -> None:
    assert page(findings()) == page(findings())


def test_scores_are_shares_whatever_their_size() -> None:
    counts = shares((-math.inf, -50.0, 0.0, math.nan, 50.0), 12.0)
    assert sum(counts) == pytest.approx(1.0)
    assert counts[0] == pytest.approx(0.4)
    assert counts[len(counts) // 2] == pytest.approx(0.4)
    assert counts[-1] == pytest.approx(0.2)


def test_an_audit_without_any_score_is_drawn() -> None:
    assert "<svg" in page(findings().model_copy(update={"log_odds_in": (), "log_odds_out": ()}))


def test_findings_are_kept_unrounded_and_read_back(tmp_path: Path) -> None:
    found = findings(bound=1.0 / 3.0)
    write(found, tmp_path / "new" / "folder")
    text = (tmp_path / "new" / "folder" / "audit.json").read_text()
    assert Audit.model_validate_json(text) == found
    assert json.loads(text)["games"][0]["bound"] == 1.0 / 3.0
    assert (tmp_path / "new" / "folder" / "audit.html").read_text() == page(found)


def test_a_folder_that_cannot_be_written_is_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConsiliumError) as caught:
        write(findings(), tmp_path / "file" / "out")
    assert caught.value.code == "CSL-513"


def test_the_terminal_says_what_the_page_says() -> None:
    console = Console(record=True, width=200)
    show(findings(bound=9.0, noise=0.25), console, Path("out"))
    text = console.export_text()
    assert "9.000" in text
    assert "FOUND whole study: at least epsilon 9 where 7.94 is claimed" in text
    assert "the claim does not hold" in text
    assert "AUC 0.440" in text
    assert "one charge: guesses alone would hardly have noticed a quarter of the noise" in text
    assert "SIMULATOR ONLY" in text
