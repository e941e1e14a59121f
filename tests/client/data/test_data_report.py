"""The report says what was read, and its fingerprint changes with any value and with nothing else."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from client.cli import app
from client.config import Data
from client.data_report import DataReport, make_report, write_report
from client.records import SPLIT_PURPOSE, side_of
from common.errors import ConsiliumError
from tests.client.data.sites import IDENTITY, PASSPHRASE, QUERY, Row, site_file, write_notes

ROWS: list[Row] = [
    ("p1", "one", "yes", "train"),
    ("p1", "two", "no", "train"),
    ("p2", "three", "no", "test"),
    ("p3", "four", "no", "elsewhere"),
    (None, "no patient", "yes", "train"),
    ("p4", " ", "yes", "train"),
    ("p4", None, None, "train"),
    ("p4", "no label", None, "train"),
    ("p4", "no side", "no", None),
]
ALL = {"text": "note", "label": "label", "unit": "patient", "split": "side"}


def reported(folder: Path, rows: list[Row], columns: dict[str, str] = ALL, query: str = QUERY) -> DataReport:
    write_notes(folder, rows)
    return make_report(site_file(folder, columns, query=query).data, None)


def test_what_was_read_what_was_left_out_and_why_is_counted(tmp_path: Path) -> None:
    report = reported(tmp_path, ROWS)
    assert (report.source, report.rows) == ("records", len(ROWS))
    assert report.dropped == {"label": 1, "split": 1, "text": 2, "unit": 1}
    assert report.missing == {"text": 2, "label": 2, "unit": 1, "split": 1}
    assert (report.kept.records, report.kept.units, report.kept.classes) == (4, 3, {"no": 3, "yes": 1})
    assert {name: (side.records, side.units, side.classes) for name, side in report.sides.items()} == {
        "train": (2, 1, {"no": 1, "yes": 1}),
        "test": (1, 1, {"no": 1}),
        "unknown": (1, 1, {"no": 1}),
    }


def test_without_units_or_rows_there_are_none(tmp_path: Path) -> None:
    assert reported(tmp_path, ROWS, {"text": "note", "label": "label"}).kept.units is None
    empty = reported(tmp_path, [])
    assert (empty.rows, empty.kept.records, empty.kept.units, empty.sides) == (0, 0, 0, {})


def test_the_fingerprint_is_of_the_rows_in_any_order(tmp_path: Path) -> None:
    first = reported(tmp_path, ROWS).fingerprint
    assert reported(tmp_path, ROWS[::-1]).fingerprint == first
    assert reported(tmp_path, ROWS, query=f"SELECT *, 1 AS other {QUERY} ORDER BY note").fingerprint == first


def test_the_fingerprint_changes_with_any_value_that_is_read(tmp_path: Path) -> None:
    found = {reported(tmp_path, ROWS).fingerprint}
    changed: list[list[Row]] = [ROWS[1:], [*ROWS, ROWS[0]], [*ROWS, *ROWS]]
    for row in range(len(ROWS)):
        for column in range(4):
            rows = list(ROWS)
            values = list(rows[row])
            values[column] = "" if values[column] is None else None
            rows[row] = (values[0], values[1], values[2], values[3])
            changed.append(rows)
    # Values that move over a border, between rows and between columns.
    changed += [[("ab", "c", "d", "e")], [("a", "bc", "d", "e")], [("c", "ab", "d", "e")], [("a", "b", "cd", "e")]]
    found |= {reported(tmp_path, rows).fingerprint for rows in changed}
    assert len(found) == 1 + len(changed)
    assert reported(tmp_path, ROWS, {**ALL, "unit": "note", "text": "patient"}).fingerprint not in found


def test_a_label_that_is_another_column_does_not_fill_the_report(tmp_path: Path) -> None:
    report = reported(tmp_path, [(f"p{i}", "note", f"class {i}", "train") for i in range(250)])
    assert (len(report.kept.classes), report.kept.further) == (200, 50)


def test_unreadable_images_are_counted_and_their_pixels_are_in_the_fingerprint(tmp_path: Path) -> None:
    pillow = pytest.importorskip("PIL.Image")
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    pillow.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"none")
    rows: list[Row] = [("p1", name, "no", "train") for name in ("a.png", "b.png", "c.png", "")]
    columns = {"path": "note", "label": "label"}
    report = reported(tmp_path, rows, columns)
    assert (report.kept.records, report.dropped, report.missing["path"]) == (1, {"file": 2, "path": 1}, 1)
    pillow.fromarray(pixels + 1).save(tmp_path / "a.png")
    assert reported(tmp_path, rows, columns).fingerprint != report.fingerprint
    with pytest.raises(ConsiliumError) as raised:
        reported(tmp_path, [("p1", "../a.png", "no", "train")], columns)
    assert raised.value.code == "CSL-502"


def test_a_report_is_the_owners_alone_and_replaces_the_last(tmp_path: Path) -> None:
    path = tmp_path / "state" / "data-report.json"
    for rows in (ROWS, ROWS[:2]):
        report = reported(tmp_path, rows)
        write_report(path, report)
        assert DataReport.model_validate_json(path.read_text()) == report
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    (tmp_path / "file").touch()
    with pytest.raises(ConsiliumError) as raised:
        write_report(tmp_path / "file" / "report.json", report)
    assert raised.value.code == "CSL-508"


def test_the_command_prints_what_it_keeps_with_the_sides_of_the_keyed_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_notes(tmp_path, [(f"p{i}", f"secret note {i}", "no", "") for i in range(60)])
    site = site_file(tmp_path, {"text": "note", "label": "label", "unit": "patient"})
    monkeypatch.setenv("SITE_PASSPHRASE", PASSPHRASE.decode())
    result = CliRunner().invoke(app, ["data", "report", "-c", str(tmp_path / "site.toml"), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(site.data_report_file.read_text())
    key = IDENTITY.derive_key(SPLIT_PURPOSE)
    wanted = Counter(side_of(key, f"p{i}", "", test=0.2) for i in range(60))
    assert {name: side["records"] for name, side in json.loads(result.stdout)["sides"].items()} == wanted
    # Without the sides there is no need of a key.
    result = CliRunner().invoke(app, ["data", "report", "-c", str(tmp_path / "site.toml"), "--no-sides"])
    assert result.exit_code == 0, result.output
    assert "60 records" in result.stdout
    assert "secret" not in result.stdout


def test_the_command_ends_with_a_coded_line(tmp_path: Path) -> None:
    site_file(tmp_path, ALL)
    result = CliRunner().invoke(app, ["data", "report", "-c", str(tmp_path / "site.toml")])
    assert result.exit_code == 2
    assert "CSL-501" in result.stderr
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
def test_five_million_rows_are_reported_within_a_gigabyte(tmp_path: Path) -> None:
    """Beside three columns that are read, the file has two wider ones that play no part."""
    program = f"""
import duckdb
columns = [
    "i AS id",
    "'patient ' || (i // 3) AS patient",
    "'a note of some forty characters, number ' || i AS note",
    "CASE WHEN i % 2 = 0 THEN 'yes' ELSE 'no' END AS label",
    "repeat(md5(i::VARCHAR), 4) AS wide",
    "md5(i::VARCHAR) AS other",
]
rows = "SELECT " + ", ".join(columns) + " FROM range(5000000) t(i)"
duckdb.connect().execute("COPY (" + rows + ") TO '{tmp_path}/notes.parquet'")
"""  # noqa: S608
    subprocess.run([sys.executable, "-c", program], check=True)
    read = """
import resource, sys
from client.config import Data
from client.data_report import make_report
report = make_report(Data.model_validate_json(sys.argv[1]), lambda unit, text: "train")
print(report.rows, report.kept.records, report.kept.units, report.sides["train"].units)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    columns = {"text": "note", "label": "label", "unit": "patient"}
    data = json.dumps({"folder": str(tmp_path), "query": "FROM 'notes.parquet'", "columns": columns})
    result = subprocess.run([sys.executable, "-c", read, data], check=True, capture_output=True, text=True)
    figures, peak = result.stdout.splitlines()
    assert figures == "5000000 5000000 1666667 1666667"
    assert int(peak) < 1_000_000_000


def test_a_report_names_no_value_of_a_record_but_its_classes(tmp_path: Path) -> None:
    text = reported(tmp_path, ROWS).model_dump_json()
    assert not any(str(value) in text for row in ROWS for value in row[:2] if value not in (None, " ", "one"))
    assert isinstance(site_file(tmp_path, ALL).data, Data)
