"""A PostgreSQL server of a test run's own: Debian's binaries, a folder that goes with it, and loopback alone."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

USER, PASSWORD = "operator", "p@ss/word?"
_WRITTEN = "operator:p%40ss%2Fword%3F"


def binaries() -> Path | None:
    """Return the folder of the newest server that Debian's packages installed; None where there is none."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    return max(found, key=lambda folder: float(folder.parent.name), default=None)


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    port: int
    folder: Path

    def url(self, database: str, host: str = "127.0.0.1") -> str:
        return f"postgresql+pg8000://{_WRITTEN}@{host}:{self.port}/{database}"

    def socket_url(self, database: str) -> str:
        return f"postgresql+pg8000://{_WRITTEN}@/{database}?unix_sock={self.folder}/.s.PGSQL.{self.port}"

    def run(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """Run one statement outside any transaction."""
        engine = sa.create_engine(self.url(database), poolclass=sa.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            result = connection.exec_driver_sql(statement)
            return [tuple(row) for row in result] if result.returns_rows else []

    def new_database(self) -> str:
        name = f"journal_{os.urandom(6).hex()}"
        self.run(f"CREATE DATABASE {name}")
        return name

    def end_sessions(self) -> None:
        """Break every connection but the one that says so."""
        others = "datname IS NOT NULL AND pid <> pg_backend_pid()"
        self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")  # noqa: S608 - our own words


@contextmanager
def server() -> Iterator[Server]:
    """Run a server; as the user ``postgres`` where the tests run as root, which PostgreSQL refuses to be."""
    folder, programs = Path(tempfile.mkdtemp(prefix="consilium-postgres-")), binaries()
    assert programs is not None
    account = "postgres" if os.geteuid() == 0 else None
    data, secret = folder / "data", folder / "password"
    secret.write_text(PASSWORD)
    if account:
        for path in (folder, secret):
            shutil.chown(path, account, account)

    def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [programs / program, "-D", data, *arguments],
            user=account,
            group=account,
            extra_groups=[] if account else None,
            cwd=folder,
            env={"LC_ALL": "C", "PATH": os.defpath},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    try:
        with start("initdb", "-U", USER, "-E", "UTF8", "--auth=scram-sha-256", f"--pwfile={secret}") as made:
            _, said = made.communicate()
            assert made.returncode == 0, said
        port = _free_port()
        with start("postgres", "-h", "127.0.0.1,127.0.0.2", "-p", str(port), "-k", str(folder)) as process:
            try:
                assert process.stderr is not None
                assert any(b"ready to accept connections" in line for line in process.stderr)
                # What it goes on to say must not fill the pipe.
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield Server(port, folder)
            finally:
                # A fast shutdown: it ends the sessions that are left.
                process.send_signal(signal.SIGINT)
                process.wait()
    finally:
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
