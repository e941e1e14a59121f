"""A hospital's files, read by one DuckDB SELECT that cannot write and cannot leave its folder.

Three fences, because one alone leaks: the parsed statement must be a plain SELECT down to its innermost node (DuckDB
2.0 counts ``WITH t AS (COPY ... TO ...)`` as a SELECT, and it does write), only known table functions are called, and
the connection is locked to the folder with every extension off.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import duckdb

from client.table import BATCH_ROWS, TextColumn, collect
from common import errors
from common.errors import ConsiliumError

TABLE_FUNCTIONS = frozenset(
    {
        "generate_series",
        "parquet_scan",
        "range",
        "read_csv",
        "read_csv_auto",
        "read_json",
        "read_json_auto",
        "read_json_objects",
        "read_json_objects_auto",
        "read_ndjson",
        "read_ndjson_auto",
        "read_ndjson_objects",
        "read_parquet",
        "read_text",
        "unnest",
    }
)
"""Table functions that only read. Others run SQL in strings, open databases or change settings."""

_SPEAKS_OF_SQL = (
    duckdb.BinderException,
    duckdb.CatalogException,
    duckdb.IOException,
    duckdb.ParserException,
    duckdb.PermissionException,
    duckdb.SyntaxException,
)
"""Errors whose messages quote the query or a file's name. Others quote values: what could not be converted."""
_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})


def run_query(
    sql: str, data_dir: Path, wanted: Mapping[str, str], numbers: Collection[str] = ()
) -> dict[str, TextColumn]:
    """Return the columns wanted, by name; see :func:`client.table.collect`, also for the errors beside CSL-502.

    Only what is wanted is read, and a batch of rows at a time. Relative paths in the query are below ``data_dir``: the
    process's working directory is changed while the query runs, so this must not run beside another thread that opens
    relative paths.
    """
    folder = data_dir.resolve()
    if not folder.is_dir():
        raise ConsiliumError(errors.DATA_QUERY, f"{data_dir} is not a folder")
    check_only_reads(sql)
    with _fenced(folder) as connection, contextlib.chdir(folder), _coded():
        names = [str(row[0]) for row in connection.execute(f"DESCRIBE {sql}").fetchall()]
        collect(names, (), wanted)  # before anything is read
        chosen = ", ".join(_quoted(name) for name in wanted)
        connection.execute(f"SELECT {chosen} FROM (\n{_without_semicolon(sql)}\n)")  # noqa: S608 - fenced in
        return collect(tuple(wanted), _batches(connection), wanted, numbers)


def check_one_select(sql: str) -> None:
    """Refuse what DuckDB's parser reads as anything but one SELECT; raises CSL-501 where it reads nothing, CSL-502."""
    with contextlib.closing(duckdb.connect(":memory:")) as connection, _coded():
        statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise ConsiliumError(errors.DATA_FORBIDDEN, f"{len(statements)} statements; one is allowed")
    if statements[0].type is not duckdb.StatementType.SELECT:
        raise ConsiliumError(errors.DATA_FORBIDDEN, f"{statements[0].type.name} is not SELECT")


def _batches(connection: duckdb.DuckDBPyConnection) -> Iterator[list[tuple[object, ...]]]:
    while rows := connection.fetchmany(BATCH_ROWS):
        yield rows


@contextlib.contextmanager
def _coded() -> Iterator[None]:
    try:
        yield
    except duckdb.PermissionException as error:
        raise ConsiliumError(errors.DATA_FORBIDDEN, _first_line(error)) from error
    except duckdb.Error as error:
        raise ConsiliumError(errors.DATA_QUERY, _first_line(error)) from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _without_semicolon(sql: str) -> str:
    """Return one statement without what ends it, so that it can stand in parentheses."""
    raw = sql.encode()
    ends = (at for at, kind in duckdb.tokenize(sql) if kind == duckdb.token_type.operator and raw[at : at + 1] == b";")
    return raw[: next(ends, len(raw))].decode()


@contextlib.contextmanager
def _fenced(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open an in-memory database that sees one folder, and no configuration change after that."""
    connection = duckdb.connect(":memory:")
    try:
        for setting in (
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            "allow_community_extensions = false",
            "python_enable_replacements = false",
            "temp_directory = ''",
            # It would be drawn on stdout, which commands keep for their result.
            "enable_progress_bar = false",
            f"allowed_directories = ['{str(folder).replace(chr(39), chr(39) * 2)}/']",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        yield connection
    finally:
        connection.close()


def check_only_reads(sql: str) -> None:
    """Refuse whatever is not one SELECT of reading nodes and reading table functions; raises CSL-501, CSL-502."""
    check_one_select(sql)
    with contextlib.closing(duckdb.connect(":memory:")) as connection:
        row = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchone()
    tree = json.loads(row[0]) if row else {"error": True}
    if tree.get("error"):
        raise ConsiliumError(errors.DATA_FORBIDDEN, "not a plain SELECT")
    for node in _nodes(tree):
        kind = node.get("type")
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in _NODES:
            raise ConsiliumError(
                errors.DATA_FORBIDDEN, f"{kind.removesuffix('_QUERY_NODE').removesuffix('_NODE')} inside"
            )
        function = node.get("function") if kind == "TABLE_FUNCTION" else None
        if isinstance(function, dict) and str(function.get("function_name")).lower() not in TABLE_FUNCTIONS:
            raise ConsiliumError(errors.DATA_FORBIDDEN, f"table function {function.get('function_name')!r}")


def _nodes(tree: object) -> Iterator[dict[str, object]]:
    """Yield every object of a parsed JSON value, depth first, without recursion: queries may nest deeply."""
    waiting = [tree]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield value
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)


def _first_line(error: duckdb.Error) -> str:
    """Return what went wrong; of a message that may quote a record, only its kind."""
    if not isinstance(error, _SPEAKS_OF_SQL):
        return f"{type(error).__name__}; its message may quote a record, so run the query by hand to see it"
    return str(error).partition("\n")[0]
