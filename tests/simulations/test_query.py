from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConsiliumError
from common.task_specs import TextClassification
from simulations.query import read_records
from simulations.scenario import Columns

COLUMNS = Columns(text="note", label="label")
TASK = TextClassification(labels=("fit", "ill"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "notes.csv").write_text("note,label\nfirst,fit\nsecond,ill\n")
    return tmp_path


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT note FROM 'deep/notes.csv'", "CSL-503"),
        ("SELECT note, NULL AS label FROM 'deep/notes.csv'", "CSL-505"),
        ("SELECT NULL AS note, label FROM 'deep/notes.csv'", "CSL-505"),
        ("SELECT note, label = 'fit' AS label FROM 'deep/notes.csv'", "CSL-505"),
        ("SELECT '  ' AS note, label FROM 'deep/notes.csv'", "CSL-505"),
    ],
)
def test_every_column_named_is_there_and_filled(sql: str, code: str, folder: Path) -> None:
    with pytest.raises(ConsiliumError) as caught:
        read_records(sql, COLUMNS, None, folder, TASK)
    assert caught.value.code == code
    assert "columns." in str(caught.value)
