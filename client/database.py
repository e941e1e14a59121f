"""A hospital's database, read by one SELECT in a transaction that cannot write and is rolled back.

The database itself is what refuses, not a guess at its grammar: PostgreSQL declares the query as a cursor in a
transaction that is read-only for good, SQLite opens the file read-only and is asked about every single action. DuckDB's
parser goes before, where it understands the dialect, because it says best what is wrong. An account that may only
SELECT is still the hospital's best fence: a function may do what no transaction undoes.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
import ssl
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, cast
from urllib.parse import quote

import sqlalchemy as sa

from client.query import check_one_select
from client.table import BATCH_ROWS, TextColumn, collect
from common import errors
from common.errors import ConsiliumError
from common.keystore import read_passphrase

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_FORBIDDEN = frozenset({"0A000", "25001", "25006", "42501"})
"""SQLSTATEs of what only reading rules out: among them a cursor over what writes, and a right that is missing."""
_WORDS_OF_SQL = frozenset({"0A", "25", "28", "3D", "42"})
"""Classes of SQLSTATE whose messages quote the query and names. Others quote values: what could not be converted."""
_SQLITE_SPEAKS_OF_SQL = ("no such ", "near ", "ambiguous column", "incomplete input", "wrong number of arguments")
_MAY_READ = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE})
_SECONDS_TO_CONNECT = 30
_Batch = Sequence[Sequence[object]]

_password = functools.cache(read_passphrase)
"""An environment variable is there once, and a daemon reads its records for every study."""


def run_query(
    sql: str,
    url: str,
    wanted: Mapping[str, str],
    numbers: Collection[str] = (),
    *,
    password: str | None = None,
    ca: Path | None = None,
) -> dict[str, TextColumn]:
    """Return the columns wanted of a query's result; see :func:`client.table.collect`.

    url       as :class:`client.config.Data` takes it
    password  its source, see :func:`common.keystore.read_passphrase`
    ca        PEM; a server that is not on this machine is reached by TLS alone, and its certificate names it

    Raises CSL-501 for SQL that does not run, CSL-502 for what is not one SELECT that only reads, CSL-506 where the
    database cannot be reached, CSL-507 without its driver, and what collecting and the password's source raise.
    """
    # The dialect may not be DuckDB's: then the database has the word alone.
    try:
        check_one_select(sql)
    except ConsiliumError as error:
        if error.fault is not errors.DATA_QUERY:
            raise
    parsed = sa.make_url(url)
    if parsed.drivername == "sqlite":
        return _from_sqlite(sql, Path(parsed.database or ""), wanted, numbers)
    return _from_postgres(sql, parsed, wanted, numbers, password, ca)


def _from_sqlite(sql: str, path: Path, wanted: Mapping[str, str], numbers: Collection[str]) -> dict[str, TextColumn]:
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
    except sqlite3.Error as error:
        raise ConsiliumError(errors.DATA_SOURCE, f"{path}: {error}") from error
    with contextlib.closing(connection):
        connection.text_factory = _text_or_nothing
        try:
            connection.execute("BEGIN")
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        except sqlite3.Error as error:
            raise ConsiliumError(errors.DATA_SOURCE, f"{path}: {error}") from error
        connection.set_authorizer(_only_reading)
        try:
            cursor = connection.execute(sql)
            if cursor.description is None:
                raise ConsiliumError(errors.DATA_FORBIDDEN, "the query returns no rows")
            names = [str(column[0]) for column in cursor.description]
            return collect(names, iter(lambda: cursor.fetchmany(BATCH_ROWS), []), wanted, numbers)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise _sqlite_error(error) from error


def _only_reading(action: int, _one: str | None, _two: str | None, _database: str | None, _by: str | None) -> int:
    return sqlite3.SQLITE_OK if action in _MAY_READ else sqlite3.SQLITE_DENY


def _text_or_nothing(raw: bytes) -> str | None:
    """Read text; what is none contributes nothing, and does not stop the others (RULES 13)."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return None


def _sqlite_error(error: Exception) -> ConsiliumError:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:
        # Not SQLite's word but that of its module: more than one statement.
        return ConsiliumError(errors.DATA_FORBIDDEN, type(error).__name__)
    if code & 0xFF in (sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY):
        return ConsiliumError(errors.DATA_FORBIDDEN, "the query does more than read")
    if code == sqlite3.SQLITE_ERROR and str(error).startswith(_SQLITE_SPEAKS_OF_SQL):
        return ConsiliumError(errors.DATA_QUERY, str(error))
    return ConsiliumError(errors.DATA_QUERY, getattr(error, "sqlite_errorname", type(error).__name__))


class _Answer(Protocol):
    """What pg8000 returns for a statement."""

    rows: list[list[object]] | None
    columns: list[dict[str, object]] | None


class _Postgres(Protocol):
    """The two ways to speak to PostgreSQL; the second takes one statement, which the server itself enforces."""

    def execute_simple(self, statement: str) -> _Answer: ...

    def execute_unnamed(self, statement: str) -> _Answer: ...


def _from_postgres(
    sql: str, url: sa.URL, wanted: Mapping[str, str], numbers: Collection[str], password: str | None, ca: Path | None
) -> dict[str, TextColumn]:
    secret = None if password is None else _password(password).decode(errors="replace")
    local = url.host is None or url.host in _LOOPBACK
    try:
        tls = None if local and ca is None else ssl.create_default_context(cafile=ca)
        engine = sa.create_engine(
            url.set(password=secret),
            poolclass=sa.NullPool,
            hide_parameters=True,
            connect_args={"ssl_context": tls, "timeout": _SECONDS_TO_CONNECT},
        )
    except ModuleNotFoundError as error:
        raise ConsiliumError(errors.DATA_MISSING_PACKAGE, "pip install 'consilium[postgres]'") from error
    except OSError as error:
        raise ConsiliumError(errors.DATA_SOURCE, f"{ca}: {error.strerror or error}") from error
    # ValueError: a value that has no counterpart in Python, such as a date before the year 1.
    failures: tuple[type[Exception], ...] = (engine.dialect.loaded_dbapi.Error, OSError, ValueError)
    try:
        raw = engine.raw_connection()
    except failures as error:
        raise ConsiliumError(errors.DATA_SOURCE, f"{url.host or 'socket'}: {_said(error)[1]}") from error
    with contextlib.closing(raw):
        connection = cast(_Postgres, raw.driver_connection)
        try:
            connection.execute_simple("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            # From the first query on, nothing makes the transaction writable any more.
            connection.execute_simple("SELECT 1")
            connection.execute_unnamed(f"DECLARE consilium NO SCROLL CURSOR FOR {sql}")
            first = connection.execute_simple(f"FETCH FORWARD {BATCH_ROWS} FROM consilium")
            names = [_name(column) for column in first.columns or ()]
            return collect(names, _batches(connection, first), wanted, numbers)
        except failures as error:
            raise _postgres_error(error) from error
        finally:
            # The connection may be gone, and the transaction with it.
            with contextlib.suppress(*failures):
                connection.execute_simple("ROLLBACK")


def _batches(connection: _Postgres, answer: _Answer) -> Iterator[_Batch]:
    while answer.rows:
        yield answer.rows
        answer = connection.execute_simple(f"FETCH FORWARD {BATCH_ROWS} FROM consilium")


def _name(column: Mapping[str, object]) -> str:
    name = column["name"]
    return name.decode() if isinstance(name, bytes) else str(name)


def _said(error: BaseException) -> tuple[str, str]:
    """Return the SQLSTATE, if any, and what may be repeated of the message [PostgreSQL manual, appendix A]."""
    said = error.args[0] if error.args else ""
    if not isinstance(said, dict):
        # The driver's own word, or the system's: of the way to the server, not of what is in it.
        return "", str(error)
    state, seen = str(said.get("C", "")), str(said.get("M", ""))
    return state, seen if state[:2] in _WORDS_OF_SQL else f"SQLSTATE {state}; its message may quote a record"


def _postgres_error(error: Exception) -> ConsiliumError:
    if isinstance(error, ValueError):
        return ConsiliumError(errors.DATA_QUERY, "a value cannot be read here; cast it as text")
    state, seen = _said(error)
    if not state:
        return ConsiliumError(errors.DATA_SOURCE, seen)
    return ConsiliumError(errors.DATA_FORBIDDEN if state in _FORBIDDEN else errors.DATA_QUERY, seen)
