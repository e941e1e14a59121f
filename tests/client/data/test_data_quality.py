"""What is wrong with data is found and named by its row; the data, and what a site trains on, stay as they are."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.data_quality import Record, duplicates, examine, normalised, straddling, suspects
from client.records import load
from common.errors import ConsiliumError
from tests.client.data.sites import IDENTITY, PASSPHRASE, Row, site_file, write_notes
from tests.studies import signed_study

COLUMNS = {"text": "note", "label": "label", "unit": "patient", "split": "side"}
HEART = ["heart", "chest", "angina", "pressure", "rhythm", "valve", "murmur", "aorta", "infarct", "stent"]
LUNG = ["lung", "cough", "asthma", "breath", "sputum", "wheeze", "smoke", "oxygen", "pleura", "airway"]
WRONG = 12


def record(row: int, content: str, unit: str = "", label: str = "a", side: str = "train") -> Record:
    return Record(row, unit, content, label, side)


def sentences(number: int, words: list[str], seed: int) -> list[str]:
    dice = np.random.default_rng(seed)
    return [" ".join(dice.choice(words, size=8)) for _ in range(number)]


def planted() -> tuple[list[Record], set[int]]:
    """Return 300 records of two classes, and the rows of those whose label was turned."""
    texts = [(text, "heart") for text in sentences(150, HEART, 1)] + [
        (text, "lung") for text in sentences(150, LUNG, 2)
    ]
    turned = set(range(0, 300, 300 // WRONG))
    return [
        record(row, text, label={"heart": "lung", "lung": "heart"}[label] if row in turned else label)
        for row, (text, label) in enumerate(texts)
    ], turned


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("A  Note,\nof-two_lines!", "a note of two lines", True),
        ("Ｆｕｌｌ ﬁve", "full five", True),
        ("STRASSE", "straße", True),
        ("no fever", "fever", False),
        ("temperature 38", "temperature 39", False),
    ],
)
def test_case_layout_and_punctuation_are_no_difference_but_words_are(one: str, other: str, same: bool) -> None:
    assert (normalised(one) == normalised(other)) == same


def test_duplicates_are_grouped_and_those_that_cross_come_first() -> None:
    records = [
        record(1, "harmless", "p1"),
        record(2, "harmless", "p1"),
        record(3, "two names", "p2"),
        record(4, "two names", "p3"),
        record(5, "leak", "p4", "a", "train"),
        record(6, "leak", "p5", "b", "test"),
        record(7, "Leak!", "p6", "b", "test"),
        record(8, "alone", "p7"),
    ]
    exact = duplicates(records, str, 20)
    assert (exact.groups, exact.records) == (3, 6)
    assert (exact.across_sides, exact.across_units, exact.across_labels) == (1, 2, 1)
    assert exact.rows == ((5, 6), (3, 4), (1, 2))
    near = duplicates(records, normalised, 1)
    assert (near.records, near.rows) == (7, ((5,),))
    assert duplicates([record(1, "..."), record(2, "!!!")], normalised, 20).groups == 0


def test_units_on_two_sides_are_found() -> None:
    records = [
        record(1, "x", "p1"),
        record(2, "y", "p1", side="test"),
        record(3, "z", "p1", side="train"),
        record(4, "x", "p2"),
        record(5, "y", "p2"),
        record(6, "x", "", side="test"),
        record(7, "x", ""),
    ]
    found = straddling(records, 20)
    assert (found.units, found.rows) == (1, (2,))


def test_turned_labels_are_doubted_and_few_others() -> None:
    pytest.importorskip("cleanlab")
    records, turned = planted()
    found = suspects(records, 50)
    named = {suspect.row for suspect in found.first}
    assert found.looked_at == 300
    assert found.suspected == len(named)
    assert turned <= named
    assert len(named - turned) <= 3
    assert all(suspect.likely != suspect.label and suspect.belief < 0.5 for suspect in found.first)


def test_suspicion_is_the_same_each_time_and_whatever_the_order() -> None:
    pytest.importorskip("cleanlab")
    records, _ = planted()
    assert suspects(records, 10) == suspects(records[::-1], 10)


def test_a_copy_cannot_vouch_for_its_own_label() -> None:
    """Each turned record is there three times, as another patient's, in other clothes."""
    pytest.importorskip("cleanlab")
    records, turned = planted()
    copies = [
        record(1000 * copy + row, f"{records[row].content.upper()} {'!' * copy}", label=records[row].label)
        for row in turned
        for copy in (1, 2)
    ]
    named = {suspect.row for suspect in suspects([*records, *copies], 100).first}
    assert len(turned - named) <= 1


def test_rare_classes_and_lone_ones_are_not_looked_at() -> None:
    rare = [record(row, f"text {row}", label="rare" if row < 9 else "common") for row in range(40)]
    found = suspects(rare, 10)
    assert (found.looked_at, found.left_out, found.suspected, bool(found.why_not)) == (0, 9, 0, True)
    few_units = [record(row, f"text {row}", f"p{row % 4}", label=str(row % 2)) for row in range(40)]
    assert suspects(few_units, 10).why_not
    assert suspects([], 10).why_not


def test_without_cleanlab_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    with pytest.raises(ConsiliumError) as raised:
        suspects(planted()[0], 10)
    assert raised.value.code == "CSL-507"
    assert "consilium[data]" in str(raised.value)


ROWS: list[Row] = [
    ("p1", "the same note", "yes", "train"),
    ("p2", "The same note.", "yes", "test"),
    (None, "nobody", "yes", "train"),
    ("p3", "a private word", "no", "train"),
    ("p3", "another one", "no", "test"),
    ("p4", "nowhere", "no", "elsewhere"),
    ("p5", None, "no", "train"),
]


def test_rows_are_numbered_as_the_query_returns_them(tmp_path: Path) -> None:
    write_notes(tmp_path, ROWS)
    found, texts = examine(site_file(tmp_path, COLUMNS).data, None)
    assert (found.rows, found.records, found.unknown_sides) == (7, 5, 1)
    assert found.missing == {"text": 1, "label": 0, "unit": 1, "split": 0}
    assert found.classes == {"no": 3, "yes": 2}
    assert found.exact is not None
    assert found.exact.groups == 0
    assert found.near is not None
    assert (found.near.rows, found.near.across_sides) == (((1, 2),), 1)
    assert (found.straddling.units, found.straddling.rows) == (1, (5,))
    assert texts == {1: "the same note", 2: "The same note.", 5: "another one"}


def test_texts_are_shown_on_request_alone_and_nothing_is_written(tmp_path: Path) -> None:
    write_notes(tmp_path, ROWS)
    site_file(tmp_path, COLUMNS)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    command = ["data", "quality", "-c", str(tmp_path / "site.toml")]
    for options in ([], ["--json"]):
        quiet = CliRunner().invoke(app, [*command, *options])
        assert quiet.exit_code == 0, quiet.output
        assert "same note" not in quiet.output
        loud = CliRunner().invoke(app, [*command, *options, "--show"])
        assert "The same note." in loud.stdout
        assert "private" not in loud.stdout
    assert json.loads(loud.stdout)["texts"]["1"] == "the same note"
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_looking_changes_nothing_of_what_a_site_trains_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Duplicates, doubtful labels and all (RULES 12)."""
    pytest.importorskip("cleanlab")
    records, _ = planted()
    names = {"heart": "yes", "lung": "no"}
    rows: list[Row] = [(f"p{one.row}", one.content, names[one.label], "") for one in records]
    write_notes(tmp_path, [*rows, *rows[:9]])
    site = site_file(tmp_path, {"text": "note", "label": "label", "unit": "patient"})
    study = signed_study(privacy={"unit": "patient", "max_records_per_unit": 4}).study
    before = load(site, study, IDENTITY)
    monkeypatch.setenv("SITE_PASSPHRASE", PASSPHRASE.decode())
    result = CliRunner().invoke(app, ["data", "quality", "-c", str(tmp_path / "site.toml"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["exact"]["groups"] >= 9
    assert found["labels"]["suspected"] >= WRONG - 2
    for one, other in zip(before, load(site, study, IDENTITY), strict=True):
        assert (one.contents, one.labels, one.units.tolist()) == (other.contents, other.labels, other.units.tolist())
    assert sum(map(len, before)) == len(rows) + 9


def test_identical_images_are_duplicates_whatever_their_names(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    for name, shade in (("a.png", 1), ("b.png", 1), ("c.png", 2)):
        pillow.fromarray(np.full((4, 4), shade, dtype=np.uint8)).save(tmp_path / name)
    write_notes(tmp_path, [(f"p{name}", f"{name}.png", "no", "train") for name in "abcd"])
    found, paths = examine(
        site_file(tmp_path, {"path": "note", "label": "label", "unit": "patient", "split": "side"}).data, None
    )
    assert found.exact is not None
    assert (found.records, found.exact.rows, found.exact.across_units) == (3, ((1, 2),), 1)
    assert found.near is None
    assert found.labels.why_not
    assert paths == {1: "a.png", 2: "b.png"}
