from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import query
from client.query import run_query, text_column
from common.errors import ConsiliumError


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A data folder with one file, beside one that must stay out of reach; whatever happens, only these exist after."""
    inside = tmp_path / "data's"
    (inside / "deep").mkdir(parents=True)
    (inside / "deep" / "notes.csv").write_text("note,label\nfirst,fit\nsecond,ill\n")
    (tmp_path / "outside.csv").write_text("note,label\nsecret,fit\n")
    (inside / "link.csv").symlink_to(tmp_path / "outside.csv")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    yield inside
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def code_of(sql: str, folder: Path) -> str:
    with pytest.raises(ConsiliumError) as caught:
        run_query(sql, folder)
    assert "secret" not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize(
    "sql",
    [
        "FROM 'deep/notes.csv'",
        "SELECT * FROM read_csv('deep/*.csv', all_varchar = true);",
        "WITH t AS (FROM 'deep/notes.csv') FROM t WHERE label = 'fit' UNION ALL FROM t WHERE label = 'ill'",
    ],
)
def test_relative_paths_are_below_the_data_folder_wherever_the_process_is(sql: str, folder: Path) -> None:
    here = os.getcwd()
    assert run_query(sql, folder) == {"note": ("first", "second"), "label": ("fit", "ill")}
    assert os.getcwd() == here


def test_a_file_of_the_same_name_in_the_working_directory_is_not_read(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    (elsewhere / "deep" / "notes.csv").write_text("note,label\ndecoy,fit\n")
    monkeypatch.chdir(elsewhere)
    assert run_query("FROM 'deep/notes.csv'", folder)["note"] == ("first", "second")


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO 'deep/notes.csv'",
        "WITH t AS (COPY (SELECT 1) TO 'deep/notes.csv') FROM t",
        "SELECT * FROM (WITH t AS (COPY (SELECT 1) TO 'new.csv') FROM t)",
        "SELECT (WITH t AS (COPY (SELECT 1) TO 'new.csv') SELECT count(*) FROM t)",
        "SELECT 1 AS a UNION ALL (WITH t AS (COPY (SELECT 1) TO 'new.csv') FROM t)",
        "FROM query('WITH t AS (COPY (SELECT 1) TO ''new.csv'') FROM t')",
        "FROM MAIN.QUERY('WITH t AS (COPY (SELECT 1) TO ''new.csv'') FROM t')",
        "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
        "WITH t AS (INSERT INTO x VALUES (1) RETURNING *) FROM t",
        "CREATE TABLE t AS SELECT 1",
        "INSERT INTO t VALUES (1)",
        "DELETE FROM t",
        "ATTACH 'new.db'",
        "EXPORT DATABASE 'new'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA version",
        "SET threads = 1",
        "CALL enable_logging()",
        "FROM enable_logging(storage = 'file', storage_path = 'log')",
        "FROM read_duckdb('deep/notes.csv')",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY (SELECT 1) TO 'new.csv'",
        "",
        "-- nothing",
        "EXPLAIN ANALYZE SELECT 1",
    ],
)
def test_whatever_is_not_one_reading_select_is_refused(sql: str, folder: Path) -> None:
    assert code_of(sql, folder) == "CSL-502"


@pytest.mark.parametrize(
    "sql",
    [
        "FROM '../outside.csv'",
        "FROM 'deep/../../outside.csv'",
        "FROM 'link.csv'",
        "FROM read_text('/etc/hostname')",
        "FROM read_csv(['deep/notes.csv', '../outside.csv'])",
        "FROM read_csv('../' || 'outside.csv')",
        "FROM read_text('~/.profile')",
        "FROM 'https://example.com/notes.csv'",
        "FROM read_parquet('s3://bucket/notes.parquet')",
        "FROM 'hf://datasets/some/notes.csv'",
    ],
)
def test_what_lies_outside_the_data_folder_is_out_of_reach(sql: str, folder: Path) -> None:
    assert code_of(sql, folder) == "CSL-502"


def test_the_fenced_connection_refuses_outside_paths_even_without_the_parser(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "_check_only_reads", lambda sql: None)
    for sql in (
        "COPY (SELECT 1) TO '../new.csv'",
        "ATTACH '../new.db'",
        "INSTALL httpfs",
        "FROM read_blob('../outside.csv')",
    ):
        assert code_of(sql, folder) == "CSL-502"
    assert code_of("SET enable_external_access = true", folder) == "CSL-501"


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nothing", "FROM 'absent.csv'", "FROM t", "SELECT 1 AS a, 2 AS a"])
def test_sql_that_cannot_run_says_so_in_one_line(sql: str, folder: Path) -> None:
    with pytest.raises(ConsiliumError) as caught:
        run_query(sql, folder)
    assert caught.value.code == "CSL-501"
    assert "\n" not in str(caught.value)


def test_variables_of_this_program_are_not_tables(folder: Path) -> None:
    leaked = {"a": [1]}
    assert leaked
    assert code_of("FROM leaked", folder) == "CSL-501"


def test_a_data_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert code_of("SELECT 1", tmp_path / "absent") == "CSL-501"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT note::INT AS note FROM 'deep/notes.csv'",
        "FROM read_csv('deep/notes.csv', columns = {'note': 'INT', 'label': 'VARCHAR'})",
        "SELECT error(note) FROM 'deep/notes.csv'",
    ],
)
def test_an_error_never_quotes_a_record(sql: str, folder: Path) -> None:
    with pytest.raises(ConsiliumError) as caught:
        run_query(sql, folder)
    assert caught.value.code == "CSL-501"
    assert "first" not in str(caught.value)


def test_a_column_is_text_or_whole_numbers_and_says_where_it_has_nothing(folder: Path) -> None:
    rows = run_query("SELECT * FROM (VALUES ('a', 1, 1.5), (NULL, NULL, NULL)) AS t(text, number, float)", folder)
    assert text_column(rows, "columns.text", "text") == ("a", None)
    assert text_column(rows, "columns.unit", "number") == ("1", None)
    for name, code in (("float", "CSL-505"), ("absent", "CSL-503")):
        with pytest.raises(ConsiliumError) as caught:
            text_column(rows, "columns.unit", name)
        assert caught.value.code == code
        assert caught.value.detail.startswith("columns.unit")
