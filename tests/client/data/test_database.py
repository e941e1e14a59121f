"""A hospital's database is read and never written, whatever the query; PostgreSQL is a real server."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from client.database import run_query
from client.table import BATCH_ROWS
from common.errors import ConsiliumError
from tests.server.postgres import PASSWORD, Server, binaries, server

WANTED = {"note": "data.columns.text", "label": "data.columns.label"}
NOTES = [("p1", "first 100 %", "fit"), ("p2", "secret", "ill"), ("p3", None, "ill")]
Read = Callable[[str], list[tuple[str | None, ...]]]


def rows(sql: str, url: str, password: str | None = None) -> list[tuple[str | None, ...]]:
    columns = run_query(sql, url, WANTED, password=password)
    return list(zip(columns["note"], columns["label"], strict=True))


def refused(read: Read, sql: str) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as raised:
        read(sql)
    assert "secret" not in str(raised.value)
    assert "\n" not in str(raised.value)
    return raised.value


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Read]:
    """Reads a file; whatever happens, its folder is as it was."""
    path = tmp_path / "hospital's notes #1.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE notes (patient TEXT, note TEXT, label TEXT)")
        connection.executemany("INSERT INTO notes VALUES (?, ?, ?)", NOTES)
        connection.execute("INSERT INTO notes VALUES ('p4', CAST(x'ff' AS TEXT), 'torn')")
    connection.close()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    yield lambda sql: rows(sql, f"sqlite:///{path}")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    if binaries() is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    with server() as started:
        started.run("CREATE TABLE notes (patient text, note text, label text)")
        for patient, note, label in NOTES:
            written = "NULL" if note is None else f"'{note}'"
            started.run(f"INSERT INTO notes VALUES ('{patient}', {written}, '{label}')")  # noqa: S608 - our own words
        started.run("CREATE SEQUENCE numbers")
        started.run(
            "CREATE FUNCTION writes() RETURNS text LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO notes VALUES ('x', 'x', 'x'); RETURN 'x'; END $$"
        )
        yield started


@pytest.fixture
def password(monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"DATABASE_{os.urandom(6).hex()}"
    monkeypatch.setenv(name, PASSWORD)
    return f"env:{name}"


def plain(running: Server) -> str:
    return f"postgresql+pg8000://operator@127.0.0.1:{running.port}/postgres"


@pytest.fixture
def postgres(running: Server, password: str) -> Iterator[Read]:
    """Reads a server; whatever happens, the tables are as they were."""
    look = "SELECT (SELECT count(*) FROM notes), (SELECT count(*) FROM pg_class), (SELECT last_value FROM numbers)"
    before = running.run(look)
    yield lambda sql: rows(sql, plain(running), password)
    assert running.run(look) == before


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT note, label FROM notes WHERE patient <> 'p4' ORDER BY patient",
        "SELECT *, 1.5 AS other FROM notes WHERE patient NOT LIKE '%4%' ORDER BY patient; -- done; indeed",
        "WITH all_of AS (SELECT * FROM notes WHERE patient != 'p4') SELECT label, note FROM all_of ORDER BY patient",
    ],
)
@pytest.mark.parametrize("place", ["sqlite", "postgres"])
def test_the_columns_wanted_are_read(place: str, sql: str, request: pytest.FixtureRequest) -> None:
    read: Read = request.getfixturevalue(place)
    assert read(sql) == [(note, label) for _, note, label in NOTES]


WRITES = [
    "INSERT INTO notes VALUES ('a', 'b', 'c')",
    "INSERT INTO notes VALUES ('a', 'b', 'c') RETURNING note, label",
    "UPDATE notes SET note = 'x'",
    "DELETE FROM notes",
    "WITH gone AS (DELETE FROM notes RETURNING note, label) SELECT * FROM gone",
    "DROP TABLE notes",
    "CREATE TABLE more AS SELECT * FROM notes",
    "SELECT note, label FROM notes; DELETE FROM notes",
    "SELECT note, label FROM notes; COMMIT; DELETE FROM notes",
    "COMMIT; DELETE FROM notes",
    "BEGIN",
    "EXPLAIN SELECT 1",
    "",
    "-- nothing",
]


@pytest.mark.parametrize(
    "sql",
    [
        *WRITES,
        "REPLACE INTO notes VALUES ('a', 'b', 'c')",
        "ATTACH 'other.sqlite' AS other",
        "PRAGMA query_only = 0",
        "PRAGMA journal_mode = WAL",
        "SELECT name AS note, type AS label FROM pragma_table_info('notes')",
        "VACUUM INTO 'copy.sqlite'",
        "SELECT load_extension('libc.so.6') AS note, 'x' AS label",
        "REINDEX",
    ],
)
def test_sqlite_is_asked_for_nothing_but_reading(sqlite: Read, sql: str) -> None:
    assert refused(sqlite, sql).code in ("CSL-501", "CSL-502")


def test_the_authorizer_alone_refuses_what_the_parser_would(sqlite: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.database.check_one_select", lambda sql: None)
    for sql in (
        "DELETE FROM notes",
        "ATTACH 'other.sqlite' AS other",
        "PRAGMA journal_mode = WAL",
        "CREATE TEMP TABLE t AS SELECT 1",
        "COMMIT",
        "SELECT note, label FROM notes; DELETE FROM notes",
    ):
        assert refused(sqlite, sql).code == "CSL-502", sql


def test_what_is_no_text_in_sqlite_is_nothing_and_stops_nobody(sqlite: Read) -> None:
    assert sqlite("SELECT note, label FROM notes WHERE label IN ('torn', 'fit') ORDER BY label") == [
        ("first 100 %", "fit"),
        (None, "torn"),
    ]


@pytest.mark.parametrize(
    "sql",
    [
        *WRITES,
        "CALL writes()",
        "DO $$ BEGIN DELETE FROM notes; END $$",
        "COPY notes TO '/tmp/notes'",
        "COPY notes TO PROGRAM 'true'",
        "SELECT note, label INTO more FROM notes",
        "SELECT note, label FROM notes FOR UPDATE",
        "SELECT writes() AS note, 'x' AS label",
        "SELECT nextval('numbers')::text AS note, 'x' AS label",
        "SELECT set_config('transaction_read_only', 'off', true) AS note, writes() AS label",
        "SET TRANSACTION READ WRITE",
        "LISTEN notes",
        "TRUNCATE notes",
    ],
)
def test_postgres_is_asked_for_nothing_but_reading(postgres: Read, sql: str) -> None:
    assert refused(postgres, sql).code in ("CSL-501", "CSL-502")


def test_the_server_alone_refuses_what_the_parser_would(postgres: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.database.check_one_select", lambda sql: None)
    for sql in (*WRITES, "SELECT note, label FROM notes; COMMIT; SELECT 1"):
        assert refused(postgres, sql).code in ("CSL-501", "CSL-502"), sql
    assert refused(postgres, "SELECT writes() AS note, 'x' AS label").code == "CSL-502"


def test_what_a_read_only_transaction_lets_pass_is_rolled_back(postgres: Read, running: Server) -> None:
    look = "SELECT count(*) FROM pg_largeobject_metadata"
    before = running.run(look)
    assert postgres("SELECT lo_create(0)::text AS note, 'x' AS label")
    assert running.run(look) == before


def test_words_of_postgres_that_duckdb_does_not_know_are_the_servers(postgres: Read) -> None:
    sql = "SELECT note, label FROM notes WHERE note @@ to_tsquery('simple', 'first') IS TRUE"
    assert postgres(sql) == [("first 100 %", "fit")]


def test_many_batches_come_in_order(postgres: Read) -> None:
    many = 2 * BATCH_ROWS + 3
    found = postgres(f"SELECT 'n' || i AS note, i AS label FROM generate_series(1, {many}) i ORDER BY i")  # noqa: S608
    assert found == [(f"n{i}", str(i)) for i in range(1, many + 1)]


@pytest.mark.parametrize("place", ["sqlite", "postgres"])
def test_what_cannot_run_says_so_and_never_quotes_a_record(place: str, request: pytest.FixtureRequest) -> None:
    read: Read = request.getfixturevalue(place)
    assert "absent" in refused(read, "SELECT note, label FROM absent").detail
    assert refused(read, "SELECT note FROM notes").code == "CSL-503"
    assert refused(read, "SELECT note, 1.5 AS label FROM notes").code == "CSL-505"
    broken = "note::int AS note" if place == "postgres" else "json(note) AS note"
    assert refused(read, f"SELECT {broken}, label FROM notes WHERE note = 'secret'").code == "CSL-501"  # noqa: S608


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for content in (None, b"this is no database, and longer than a header of one hundred bytes" * 3):
        path = tmp_path / "absent.sqlite"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ConsiliumError) as raised:
            rows("SELECT note, label FROM notes", f"sqlite:///{path}")
        assert raised.value.code == "CSL-506"
        assert path.exists() == (content is not None)


def test_a_wrong_password_or_no_server_is_said_without_it(
    running: Server, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("WRONG_PASSWORD", "hunter2")
    for url, source, code in (
        (plain(running), "env:WRONG_PASSWORD", "CSL-506"),
        ("postgresql+pg8000://operator@127.0.0.1:1/postgres", password, "CSL-506"),
        (plain(running), "env:NOTHING_HERE", "CSL-155"),
    ):
        with pytest.raises(ConsiliumError) as raised:
            rows("SELECT note, label FROM notes", url, source)
        assert raised.value.code == code
        assert "hunter2" not in str(raised.value)


def test_the_password_is_taken_from_the_environment_once_and_kept(running: Server, password: str) -> None:
    for _ in range(2):
        assert rows("SELECT note, label FROM notes", plain(running), password)
    assert password.removeprefix("env:") not in os.environ


def test_a_server_elsewhere_is_reached_by_tls_alone(running: Server, password: str) -> None:
    """It listens there too, without TLS."""
    with pytest.raises(ConsiliumError) as raised:
        rows("SELECT note, label FROM notes", plain(running).replace("127.0.0.1", "127.0.0.2"), password)
    assert raised.value.code == "CSL-506"
