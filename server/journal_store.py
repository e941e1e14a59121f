"""Where the operator's journal lies: an SQLite file or a PostgreSQL database, held by one process, read by any.

The two differ in how they are reached, held and made durable, and in what their errors mean; that is all here. An
address is never printed, since it may hold a password: places are named by file, or by database.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import ssl
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from common import errors
from common.errors import ConsiliumError, Fault
from common.sqlite_files import FileFaults, create_private

SCHEMA = "0001"
_FAULTS = FileFaults(errors.OPERATOR_LOCKED, errors.OPERATOR_UNWRITABLE, errors.OPERATOR_DAMAGED)
_SQLITE = "sqlite:///"
_ADVISORY_LOCK = int.from_bytes(b"journal\x00", "big")
_SETTINGS = {
    "synchronous_commit": "on",
    # The server may need a moment to notice that the process which held the journal is gone, or its machine.
    "lock_timeout": "5s",
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Store:
    """One journal's database, whose every change is one durable transaction.

    url  ``sqlite:///path`` or ``postgresql+pg8000://user:password@host/database``, or with ``?unix_sock=path`` for host

    Raises CSL-630 if another process holds it, CSL-632 for another schema, CSL-633 if it cannot be reached or written,
    CSL-634 for another address; the same for every call, and CSL-631 for what is not as it was written.
    """

    def __init__(self, url: str) -> None:
        self._lock = threading.RLock()
        self._place = _place(url)
        with self._place.coded():
            self._place.hold_file()
        try:
            self._connect()
        except BaseException:
            self._place.release_file()
            raise

    def _connect(self) -> None:
        with self._place.coded():
            self._connection = self._place.engine.connect()
            driver = self._connection.connection.dbapi_connection
            assert driver is not None
            self._driver = driver
        try:
            with self.transaction() as connection:
                self._place.take(connection)
            with self.transaction() as connection:
                self._migrate(connection)
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let go of the database; nothing can be read or written afterwards."""
        with self._lock:
            try:
                self._connection.close()
            finally:
                self._place.release_file()

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection]:
        """Make one transaction of what is inside: all of it is durable afterwards, or none happened.

        A connection that was lost is never made anew, since the lock was lost with it. Then a transaction that raised
        while it was ending may have happened after all: opening the journal again tells.
        """
        with self._lock, self._place.coded():
            if self._connection.closed or self._connection.invalidated:
                raise ConsiliumError(errors.OPERATOR_UNWRITABLE, f"{self._place}: the connection is gone: start again")
            try:
                with self._connection.begin():
                    yield self._connection
            except BaseException:
                self._undo()
                raise

    def damaged(self, seen: str) -> ConsiliumError:
        """Return the error for something that is not what was written."""
        return ConsiliumError(errors.OPERATOR_DAMAGED, f"{self._place}: {seen}")

    def _undo(self) -> None:
        """Roll back even after a commit that failed, which SQLAlchemy does not; else let the connection go."""
        if self._connection.closed or self._connection.invalidated:
            return
        try:
            self._driver.rollback()
        except (self._place.engine.dialect.loaded_dbapi.Error, OSError):
            self._connection.invalidate()

    def _migrate(self, connection: sa.Connection) -> None:
        """Bring a database to the schema known here; raises CSL-632 for what is not a journal, or a later one's."""
        tables, version = sa.inspect(connection).get_table_names(), None
        if "alembic_version" in tables:
            version = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
        elif tables:
            raise ConsiliumError(errors.OPERATOR_FOREIGN, f"{self._place}: it holds the table {tables[0]}")
        if version == SCHEMA:
            return
        # Imported here since a database needs it once in its life.
        from alembic.command import upgrade
        from alembic.config import Config
        from alembic.util import CommandError

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
        config.attributes["connection"] = connection
        try:
            upgrade(config, SCHEMA)
        except CommandError as error:
            raise ConsiliumError(errors.OPERATOR_FOREIGN, f"{self._place}: schema {version}") from error


class ReadStore:
    """One journal's database for whoever only looks: no lock is taken, and no byte changes in any of its files.

    url  as of :class:`Store`, which may hold it in another process meanwhile

    Raises CSL-634 for another address; every call CSL-632 for another schema and CSL-633 if it cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._place = _place(url)

    @contextmanager
    def transaction(self) -> Iterator[sa.Connection | None]:
        """Show the database as it is at one moment; None where no journal was begun."""
        with self._place.coded():
            engine = self._place.reading()
            if engine is None:
                yield None
                return
            with engine.connect() as connection, connection.begin():
                tables = sa.inspect(connection).get_table_names()
                if not tables:
                    yield None
                    return
                version = None
                if "alembic_version" in tables:
                    version = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
                if version != SCHEMA:
                    raise ConsiliumError(errors.OPERATOR_FOREIGN, f"{self._place}: schema {version}")
                yield connection

    def damaged(self, seen: str) -> ConsiliumError:
        """Return the error for something that is not what was written."""
        return ConsiliumError(errors.OPERATOR_DAMAGED, f"{self._place}: {seen}")


class _Place(ABC):
    """What one kind of database has of its own. Its ``str`` is how people know it, without a secret."""

    engine: sa.Engine

    @abstractmethod
    def coded(self) -> AbstractContextManager[None]:
        """Turn what is raised inside into coded errors."""

    @abstractmethod
    def hold_file(self) -> None:
        """Keep every other process out before anything is opened; raises CSL-630."""

    @abstractmethod
    def release_file(self) -> None:
        """Let others in."""

    @abstractmethod
    def take(self, connection: sa.Connection) -> None:
        """Keep others out for as long as this connection lives, and look that it keeps what it is given."""

    @abstractmethod
    def reading(self) -> sa.Engine | None:
        """Return an engine that can change nothing and whose transactions each see one moment; None for no place."""


class _SqliteFile(_Place):
    """A file with mode 0600 and a log beside it, held by a lock on a third. Readers do not stop the writer."""

    def __init__(self, path: Path) -> None:
        # What is put in place of a link would else have a lock of its own.
        self._path = Path(os.path.realpath(path))
        self._held: int | None = None
        self.engine = sa.create_engine("sqlite://", creator=self._open, poolclass=sa.NullPool, hide_parameters=True)

        @sa.event.listens_for(self.engine, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    def __str__(self) -> str:
        return str(self._path)

    @contextmanager
    def coded(self) -> Iterator[None]:
        with _FAULTS.coded(self._path):
            try:
                yield
            except DBAPIError as error:
                if isinstance(error.orig, sqlite3.Error):
                    raise error.orig from error
                raise

    def hold_file(self) -> None:
        if self._path.is_dir():
            raise ConsiliumError(errors.OPERATOR_UNWRITABLE, f"{self._path} is a folder")
        lock = self._path.with_name(self._path.name + ".lock")
        handle = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            create_private(self._path)
        except BlockingIOError as error:
            os.close(handle)
            raise ConsiliumError(errors.OPERATOR_LOCKED, str(self._path)) from error
        except BaseException:
            os.close(handle)
            raise
        self._held = handle

    def release_file(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def take(self, connection: sa.Connection) -> None:
        state = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
        if state != "ok":
            raise ConsiliumError(errors.OPERATOR_DAMAGED, f"{self._path}: {state}")

    def reading(self) -> sa.Engine | None:
        if not self._path.exists():
            return None
        made = sa.create_engine("sqlite://", creator=self._open_to_read, poolclass=sa.NullPool, hide_parameters=True)

        @sa.event.listens_for(made, "begin")
        def begin(connection: sa.Connection) -> None:
            connection.exec_driver_sql("BEGIN")

        return made

    def _open_to_read(self) -> sqlite3.Connection:
        # Where no log lies beside it, nobody has it open; SQLite would make one, in the name of whoever looks. Beside a
        # log it reads the index that the writer, or a killed one, has left. [SQLite, "URI filenames" and "WAL mode"]
        beside = self._path.with_name(self._path.name + "-wal").exists()
        how = "readonly_shm=1" if beside else "immutable=1"
        where = f"file:{quote(str(self._path))}?mode=ro&{how}"
        return sqlite3.connect(where, uri=True, isolation_level=None, check_same_thread=False)

    def _open(self) -> sqlite3.Connection:
        made = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        try:
            made.execute("PRAGMA journal_mode = WAL")
            made.execute("PRAGMA synchronous = FULL")
        except BaseException:
            made.close()
            raise
        return made


class _PostgresDatabase(_Place):
    """A database that holds nothing else, held by an advisory lock of its session."""

    def __init__(self, url: sa.URL) -> None:
        self._name = f"PostgreSQL database {url.database}"
        local = url.host is None or url.host in _LOOPBACK
        self.engine = sa.create_engine(
            url,
            poolclass=sa.NullPool,
            hide_parameters=True,
            connect_args={
                "startup_params": dict(_SETTINGS),
                # Nothing crosses a network in clear, or to a server whose certificate does not name its host.
                "ssl_context": None if local else ssl.create_default_context(),
            },
        )

    def __str__(self) -> str:
        return self._name

    @contextmanager
    def coded(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            fault, seen = _postgres_fault(error.orig)
            raise ConsiliumError(fault, f"{self}: {seen}") from error
        except OSError as error:
            raise ConsiliumError(errors.OPERATOR_UNWRITABLE, f"{self}: {error}") from error

    def hold_file(self) -> None:
        return

    def release_file(self) -> None:
        return

    def take(self, connection: sa.Connection) -> None:
        connection.execute(sa.select(sa.func.pg_advisory_lock(_ADVISORY_LOCK)))
        for setting in ("fsync", "full_page_writes"):
            if connection.scalar(sa.select(sa.func.current_setting(setting))) != "on":
                raise ConsiliumError(
                    errors.OPERATOR_UNWRITABLE, f"{self}: {setting} is off, so that a crash may lose it"
                )

    def reading(self) -> sa.Engine | None:
        return self.engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _place(url: str) -> _Place:
    """Read an address; raises CSL-634, which repeats nothing of it."""
    if url.startswith(_SQLITE) and url.isprintable() and (path := url.removeprefix(_SQLITE)) not in ("", ":memory:"):
        return _SqliteFile(Path(path))
    try:
        parsed = sa.make_url(url)
    except (ArgumentError, ValueError):
        # Not chained: what could not be read may be a password.
        raise ConsiliumError(errors.OPERATOR_URL) from None
    socket = parsed.query.get("unix_sock")
    somewhere = not parsed.query if parsed.host else len(parsed.query) == 1 and isinstance(socket, str)
    # With an @ too many, or none between a user and a host, what was read as a host may be of a password.
    whole = url.count("@") == 1 and parsed.username and parsed.database
    if parsed.drivername != "postgresql+pg8000" or not (somewhere and whole):
        raise ConsiliumError(errors.OPERATOR_URL)
    try:
        return _PostgresDatabase(parsed)
    except ModuleNotFoundError as error:
        raise ConsiliumError(errors.OPERATOR_URL, "it needs pip install 'consilium[postgres]'") from error


def _postgres_fault(error: BaseException | None) -> tuple[Fault, str]:
    """Return the fault for what a server or the way to it says, and that in a line [PostgreSQL manual, appendix A]."""
    said = error.args[0] if error is not None and error.args else ""
    if not isinstance(said, dict):
        return errors.OPERATOR_UNWRITABLE, str(said)
    state, seen = str(said.get("C", "")), str(said.get("M", ""))
    if state == "55P03":
        return errors.OPERATOR_LOCKED, seen
    # What is missing, misshapen or torn was written otherwise. Not so a right that is missing.
    damaged = state[:2] in _DAMAGED and state != "42501"
    return errors.OPERATOR_DAMAGED if damaged else errors.OPERATOR_UNWRITABLE, seen


_DAMAGED = frozenset({"22", "23", "42", "XX"})
