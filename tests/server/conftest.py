"""Places for the operator's journal: an SQLite file and, for the slow tests, a database of a real PostgreSQL server."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.journals import of
from tests.server.postgres import Server, binaries, server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    if binaries() is None:
        pytest.skip("no PostgreSQL server here (Debian: apt-get install postgresql)")
    with server() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def fresh(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], str]:
    """Return what makes the address of a place in which no journal is yet."""
    if request.param == "sqlite":
        return lambda: of(tmp_path / f"{os.urandom(6).hex()}.sqlite")
    running: Server = request.getfixturevalue("postgres")
    return lambda: running.url(running.new_database())


@pytest.fixture
def url(fresh: Callable[[], str]) -> str:
    return fresh()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"
