"""A hospital's files, read by one DuckDB SELECT that cannot write and cannot leave its folder.

Three fences, because one alone leaks: the parsed statement must be a plain SELECT down to its innermost node (DuckDB
2.0 counts ``WITH t AS (COPY ... TO ...)`` as a SELECT, and it does write), only known table functions are called, and
the connection is locked to the folder with every extension off.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import duckdb

from common import errors
from common.errors import ConsiliumError
from simulations.records import Records
from simulations.scenario import Columns

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

_NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})


def read_records(sql: str, columns: Columns, split: str | None, data_dir: Path) -> Records:
    """Run the query and take the columns named; every value must be there.

    split   name of the column with train, validation and test, if the data has one

    Raises CSL-501 for SQL that does not run, CSL-502 for what is not one SELECT below ``data_dir``, CSL-503 for a
    missing column, CSL-505 for a missing or empty value.
    """
    rows = run_query(sql, data_dir)

    def column(role: str, name: str) -> tuple[str, ...]:
        if name not in rows:
            raise ConsiliumError(errors.DATA_COLUMN, f"{role} = {name!r}; the query returns {', '.join(rows)}")
        if any(value is None for value in rows[name]):
            raise ConsiliumError(errors.DATA_VALUE, f"{role}: a value of {name!r} is NULL")
        kinds = {type(value) for value in rows[name]} - {str, int}
        if kinds:
            kind = sorted(kind.__name__ for kind in kinds)[0]
            raise ConsiliumError(errors.DATA_VALUE, f"{role}: {name!r} is {kind}; read or cast it as VARCHAR")
        return tuple(str(value) for value in rows[name])

    def optional(role: str, name: str | None) -> tuple[str, ...] | None:
        return None if name is None else column(role, name)

    texts = column("columns.text", columns.text)
    if any(not text.strip() for text in texts):
        raise ConsiliumError(errors.DATA_VALUE, f"columns.text: a value of {columns.text!r} is empty")
    return Records(
        texts,
        column("columns.label", columns.label),
        optional("columns.site", columns.site),
        optional("columns.unit", columns.unit),
        optional("columns.group", columns.group),
        optional("split.column", split),
        {name: column("columns.subgroups", name) for name in columns.subgroups},
    )


def run_query(sql: str, data_dir: Path) -> dict[str, tuple[object, ...]]:
    """Return the result's columns by name, in order; raises CSL-501 or CSL-502.

    Relative paths in the query are below ``data_dir``: the process's working directory is changed while the query runs,
    so this must not run beside another thread that opens relative paths.
    """
    folder = data_dir.resolve()
    if not folder.is_dir():
        raise ConsiliumError(errors.DATA_QUERY, f"--data {data_dir} is not a folder")
    _check_only_reads(sql)
    with _fenced(folder) as connection, contextlib.chdir(folder):
        try:
            result = connection.execute(sql)
            names = [str(item[0]) for item in result.description]
            rows = result.fetchall()
        except duckdb.PermissionException as error:
            raise ConsiliumError(errors.DATA_FORBIDDEN, _first_line(error)) from error
        except duckdb.Error as error:
            raise ConsiliumError(errors.DATA_QUERY, _first_line(error)) from error
    if len(set(names)) != len(names):
        raise ConsiliumError(errors.DATA_QUERY, "two columns of the result have one name")
    return {name: tuple(row[i] for row in rows) for i, name in enumerate(names)}


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
            f"allowed_directories = ['{str(folder).replace(chr(39), chr(39) * 2)}/']",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        yield connection
    finally:
        connection.close()


def _check_only_reads(sql: str) -> None:
    """Refuse whatever is not one SELECT of reading nodes and reading table functions; raises CSL-501, CSL-502."""
    with contextlib.closing(duckdb.connect(":memory:")) as connection:
        try:
            statements = connection.extract_statements(sql)
        except duckdb.Error as error:
            raise ConsiliumError(errors.DATA_QUERY, _first_line(error)) from error
        if len(statements) != 1:
            raise ConsiliumError(errors.DATA_FORBIDDEN, f"{len(statements)} statements; one is allowed")
        if statements[0].type is not duckdb.StatementType.SELECT:
            raise ConsiliumError(errors.DATA_FORBIDDEN, f"{statements[0].type.name} is not SELECT")
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
    return str(error).partition("\n")[0]
