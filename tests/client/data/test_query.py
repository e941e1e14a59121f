from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from client import query
from client.query import run_query
from client.table import BATCH_ROWS
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


def read(sql: str, folder: Path, *names: str) -> dict[str, tuple[str | None, ...]]:
    columns = run_query(sql, folder, {name: f"columns.{name}" for name in names})
    return {name: tuple(column) for name, column in columns.items()}


def code_of(sql: str, folder: Path) -> str:
    with pytest.raises(ConsiliumError) as caught:
        read(sql, folder, "note")
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
    assert read(sql, folder, "note", "label") == {"note": ("first", "second"), "label": ("fit", "ill")}
    assert os.getcwd() == here


def test_a_file_of_the_same_name_in_the_working_directory_is_not_read(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "deep").mkdir()
    (elsewhere / "deep" / "notes.csv").write_text("note,label\ndecoy,fit\n")
    monkeypatch.chdir(elsewhere)
    assert read("FROM 'deep/notes.csv'", folder, "note")["note"] == ("first", "second")


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
        "UPDATE t SET note = 1",
        "DROP TABLE t",
        "COPY t FROM 'deep/notes.csv'",
        "IMPORT DATABASE 'deep'",
        "CREATE SECRET s (TYPE http)",
        "CREATE MACRO m() AS 1",
        "SET VARIABLE v = 1",
        "PREPARE p AS SELECT 1",
        "BEGIN",
        "CHECKPOINT",
        "VACUUM",
        "USE memory",
        "FROM glob('*')",
        "FROM sniff_csv('deep/notes.csv')",
        "FROM read_blob('deep/notes.csv')",
        "FROM parquet_metadata('deep/notes.csv')",
        "FROM duckdb_extensions()",
        "FROM duckdb_settings()",
        "FROM pragma_version()",
        "FROM sqlite_scan('deep/notes.csv', 't')",
        "FROM postgres_query('host=example.com', 'SELECT 1')",
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
        "FROM read_json('../outside.csv')",
        "FROM read_ndjson_objects('/proc/self/environ')",
        "FROM read_text('/proc/self/cwd/../outside.csv')",
        "FROM 'deep/../link.csv'",
        "SELECT (SELECT content FROM read_text('../outside.csv')) AS note",
        "FROM '../*.csv'",
    ],
)
def test_what_lies_outside_the_data_folder_is_out_of_reach(sql: str, folder: Path) -> None:
    assert code_of(sql, folder) == "CSL-502"


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '../new.csv'",
        "ATTACH '../new.db'",
        "INSTALL httpfs",
        "FROM read_blob('../outside.csv')",
        "FROM 'https://example.com/notes.csv'",
        "SET enable_external_access = true",
        "SET allowed_directories = ['/']",
    ],
)
def test_the_connection_alone_refuses_what_the_parser_would(sql: str, folder: Path) -> None:
    with query._fenced(folder) as connection, contextlib.chdir(folder), pytest.raises(duckdb.Error) as caught:
        connection.execute(sql).fetchall()
    assert isinstance(caught.value, (duckdb.PermissionException, duckdb.InvalidInputException))


def test_what_stands_inside_the_projection_cannot_close_it(folder: Path) -> None:
    for sql in ("SELECT 1 AS note) UNION ALL (SELECT 2 AS note", "SELECT 1 AS note) -- ", "SELECT 1 AS note /*"):
        assert code_of(sql, folder) == "CSL-501"


@pytest.mark.parametrize("sql", ["SELEC 1", "SELECT nothing", "FROM 'absent.csv'", "FROM t", "SELECT 1 AS a, 2 AS a"])
def test_sql_that_cannot_run_says_so_in_one_line(sql: str, folder: Path) -> None:
    with pytest.raises(ConsiliumError) as caught:
        read(sql, folder, "note")
    assert caught.value.code == "CSL-501"
    assert "\n" not in str(caught.value)


def test_the_environment_is_not_a_column(folder: Path) -> None:
    assert code_of("SELECT getenv('PATH') AS note", folder) == "CSL-501"


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
        "SELECT error(note) AS note FROM 'deep/notes.csv'",
    ],
)
def test_an_error_never_quotes_a_record(sql: str, folder: Path) -> None:
    with pytest.raises(ConsiliumError) as caught:
        read(sql, folder, "note")
    assert caught.value.code == "CSL-501"
    assert "first" not in str(caught.value)


def test_a_column_is_text_or_whole_numbers_and_says_where_it_has_nothing(folder: Path) -> None:
    sql = "SELECT * FROM (VALUES ('a', 1, 1.5), (NULL, NULL, NULL)) AS t(text, number, float)"
    assert read(sql, folder, "text", "number") == {"text": ("a", None), "number": ("1", None)}
    for name, code in (("float", "CSL-505"), ("absent", "CSL-503")):
        with pytest.raises(ConsiliumError) as caught:
            read(sql, folder, "text", name)
        assert caught.value.code == code
        assert caught.value.detail.startswith(f"columns.{name}")


@pytest.mark.parametrize(
    "end", ["", ";", " ; ", ";\n-- the end; of it", "\n-- no semicolon", "/* a; b */", ";;", " LIMIT (1);"]
)
def test_a_statement_may_end_as_it_likes(end: str, folder: Path) -> None:
    sql = "SELECT 'ä; ''note' AS \"a; \"\"name\", 2 AS other FROM range(1)"
    assert read(sql + end, folder, 'a; "name') == {'a; "name': ("ä; 'note",)}


def test_a_column_that_plays_no_part_is_not_even_computed(folder: Path) -> None:
    assert read("SELECT note, error(label) AS other FROM 'deep/notes.csv'", folder, "note")["note"] == (
        "first",
        "second",
    )


def test_the_order_is_the_querys_over_many_batches(folder: Path) -> None:
    rows = 3 * BATCH_ROWS + 7
    sql = f"SELECT i AS number, CASE WHEN i % 3 = 0 THEN NULL ELSE 'é' || i END AS note FROM range({rows}) t(i)"  # noqa: S608
    found = read(f"{sql} ORDER BY i DESC", folder, "note", "number")
    assert found["number"] == tuple(map(str, reversed(range(rows))))
    assert found["note"] == tuple(None if i % 3 == 0 else f"é{i}" for i in reversed(range(rows)))
