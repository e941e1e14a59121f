"""Where the operator's journal may lie, and what a file and a server each have of their own."""

from __future__ import annotations

import random
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from common import errors
from common.errors import ConsiliumError, Fault
from server.journal import SqlJournal
from server.journal_store import Store
from tests.crashes import full_disk, in_a_process, refused
from tests.server.journals import ONE, begun, of, records, same, step, vector
from tests.server.postgres import PASSWORD, Server


@pytest.mark.parametrize(
    "address",
    [
        "",
        "journal.sqlite",
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/path",
        "sqlite:///with\x00zero",
        "mysql://operator:hunter2@host/journal",
        "postgresql://operator:hunter2@host/journal",
        "postgresql+psycopg://operator:hunter2@host/journal",
        "postgresql+pg8000://host/journal",
        "postgresql+pg8000://operator:hunter2@host",
        "postgresql+pg8000://operator:hunter2@/journal",
        "postgresql+pg8000://operator:hunter2@host:port/journal",
        "postgresql+pg8000://operator:hunter2@/journal?unix_sock=/run/one&unix_sock=/run/two",
        "postgresql+pg8000://operator:hunter2@host/journal?unix_sock=/run/socket",
        "postgresql+pg8000://operator@host/journal?password=hunter2",
        "postgresql+pg8000://operator:p@hunter2@host/journal",
        "postgresql+pg8000://operator/x:hunter2@host/journal",
    ],
)
def test_another_address_is_refused_and_not_repeated(address: str) -> None:
    error = refused(errors.OPERATOR_URL, lambda: SqlJournal(address))
    assert error.detail == ""
    assert error.__cause__ is None


@given(password=st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=5, max_size=12))
@settings(max_examples=200, deadline=None)
def test_no_part_of_a_password_is_ever_said_however_it_is_written(password: str) -> None:
    word = f"h4X{password}h4X"
    # Nothing listens on port 1: what is understood at all is told to be unreachable.
    error = refused_any(lambda: SqlJournal(f"postgresql+pg8000://operator:{word}@127.0.0.1:1/journal"))
    while error is not None:
        assert "h4X" not in f"{error!s} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refused_any(act: Callable[[], object]) -> BaseException | None:
    with pytest.raises(ConsiliumError) as raised:
        act()
    assert raised.value.fault in (errors.OPERATOR_URL, errors.OPERATOR_UNWRITABLE)
    return raised.value


class TestSqlite:
    """What a file has of its own."""

    def test_only_the_owner_may_read_it(self, path: Path) -> None:
        path.touch(0o666)
        path.chmod(0o666)
        with SqlJournal(of(path)) as journal:
            begun(journal, 2)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert set(modes) == {path.name + end for end in ("", "-wal", "-shm", ".lock")}
        assert set(modes.values()) == {0o600}

    def test_commits_are_synced(self, path: Path) -> None:
        store = Store(of(path))
        with store.transaction() as connection:
            pragmas = [
                connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
            ]
        store.close()
        assert pragmas == ["wal", 2]

    def test_a_link_to_it_is_held_with_it(self, path: Path) -> None:
        link = path.with_name("link.sqlite")
        link.symlink_to(path)
        with SqlJournal(of(path)):
            refused(errors.OPERATOR_LOCKED, lambda: SqlJournal(of(link)))

    def test_what_cannot_be_made_is_said_and_a_folder_keeps_its_mode(self, tmp_path: Path) -> None:
        refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(of(tmp_path / "absent" / "journal.sqlite")))
        mode = tmp_path.stat().st_mode
        refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(of(tmp_path)))
        assert tmp_path.stat().st_mode == mode

    def test_a_reader_does_not_stop_the_writer(self, path: Path) -> None:
        with SqlJournal(of(path)) as journal:
            study = begun(journal, 1)
            reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
            reader.execute("BEGIN")
            assert reader.execute("SELECT rounds FROM standing").fetchall() == [(0,)]
            study.keep(*step(1))
            assert reader.execute("SELECT rounds FROM standing").fetchall() == [(0,)]
            reader.close()

    def test_a_flipped_byte_is_found_or_changes_nothing(self, path: Path) -> None:
        with SqlJournal(of(path)) as journal:
            begun(journal, 4)
        whole, dice = path.read_bytes(), random.Random(3)
        written = (step(3)[0].session, vector(2).tobytes(), ONE.signed.canonical, b'"kind":"round"')
        inside = [whole.index(one) + dice.randrange(len(one)) for one in written]
        faults = dict[int, Fault]()
        for place in [*inside, *dice.sample(range(len(whole)), 200)]:
            changed = bytearray(whole)
            changed[place] ^= 1 << dice.randrange(8)
            path.write_bytes(changed)
            try:
                with SqlJournal(of(path)) as journal:
                    study = journal.of(ONE.study.digest)
                    assert same(study.progress(), step(3)[0])
                    assert study.rounds() == records(4)
                    assert journal.agreement(ONE.study.digest) == (ONE.signed, ONE.approvals)
            except ConsiliumError as error:
                faults[place] = error.fault
        assert {faults.get(place) for place in inside} == {errors.OPERATOR_DAMAGED}
        assert errors.OPERATOR_LOCKED not in faults.values()

    @pytest.mark.parametrize("size", [100, 200_000, 4 << 20])
    def test_a_full_disk_is_said_and_loses_nothing(self, path: Path, size: int) -> None:
        """Small pages meet the end of the disk at the commit, many of them before it."""

        def fill() -> None:
            with SqlJournal(of(path)) as journal:
                study = begun(journal, 3)
                log = path.with_name(path.name + "-wal").stat().st_size
                progress, record = step(3)
                large = replace(progress, session=bytes(size))
                with full_disk(log):
                    for _ in range(2):
                        refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(large, record))
                        assert same(study.progress(), step(2)[0])
                        assert study.rounds() == records(3)
                study.keep(progress, record)

        in_a_process(fill)
        with SqlJournal(of(path)) as journal:
            study = journal.of(ONE.study.digest)
            assert same(study.progress(), step(3)[0])
            assert study.rounds() == records(4)


@pytest.mark.slow
class TestPostgres:
    """What a server has of its own."""

    def test_a_socket_leads_to_it_too(self, postgres: Server) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.socket_url(database)) as journal:
            begun(journal, 2)
        with SqlJournal(postgres.url(database)) as journal:
            assert journal.of(ONE.study.digest).rounds() == records(2)

    def test_another_host_is_reached_by_tls_or_not_at_all(self, postgres: Server) -> None:
        database = postgres.new_database()
        error = refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(postgres.url(database, "127.0.0.2")))
        assert "SSL" in error.detail

    def test_a_server_that_refuses_us_is_said_without_the_password(self, postgres: Server) -> None:
        for url in (postgres.url("absent"), postgres.url("postgres").replace("operator:", "stranger:")):
            error = refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(url))  # noqa: B023
            assert not any(PASSWORD in str(one) for one in (error, error.__cause__))

    def test_commits_wait_for_the_disk_whatever_the_database_is_set_to(self, postgres: Server) -> None:
        database = postgres.new_database()
        postgres.run(f"ALTER DATABASE {database} SET synchronous_commit = off")
        store = Store(postgres.url(database))
        with store.transaction() as connection:
            assert connection.scalar(sa.text("SHOW synchronous_commit")) == "on"
        store.close()

    def test_a_server_that_does_not_sync_is_refused(self, postgres: Server) -> None:
        database = postgres.new_database()

        def reload(value: str) -> None:
            postgres.run(f"ALTER SYSTEM SET fsync = {value}")
            postgres.run("SELECT pg_reload_conf()")
            while postgres.run("SHOW fsync") != [(value,)]:
                pass

        reload("off")
        try:
            assert "fsync" in refused(errors.OPERATOR_UNWRITABLE, lambda: SqlJournal(postgres.url(database))).detail
        finally:
            reload("on")
        SqlJournal(postgres.url(database)).close()

    def test_a_journal_whose_connection_was_lost_keeps_nothing_more_and_a_new_one_goes_on(
        self, postgres: Server
    ) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.url(database)) as journal:
            study = begun(journal, 2)
            postgres.end_sessions()
            refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
            with SqlJournal(postgres.url(database)) as other:
                assert same(other.of(ONE.study.digest).progress(), step(1)[0])
                other.of(ONE.study.digest).keep(*step(2))
                refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
            refused(errors.OPERATOR_UNWRITABLE, study.progress)

    def test_a_database_that_may_not_be_written_is_said(self, postgres: Server) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.url(database)) as journal:
            begun(journal, 2)
        postgres.run(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
        with SqlJournal(postgres.url(database)) as journal:
            study = journal.of(ONE.study.digest)
            refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
            assert same(study.progress(), step(1)[0])

    def test_a_commit_that_fails_is_said_and_loses_nothing(self, postgres: Server) -> None:
        database = postgres.new_database()
        with SqlJournal(postgres.url(database)) as journal:
            study = begun(journal, 2)
            postgres.run(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'No space left on device' USING ERRCODE = '53100'; END $$",
                database,
            )
            postgres.run(
                "CREATE CONSTRAINT TRIGGER full_disk AFTER INSERT ON progress DEFERRABLE INITIALLY DEFERRED "
                "FOR EACH ROW EXECUTE FUNCTION full_disk()",
                database,
            )
            for _ in range(2):
                refused(errors.OPERATOR_UNWRITABLE, lambda: study.keep(*step(2)))
                assert same(study.progress(), step(1)[0])
            postgres.run("DROP TRIGGER full_disk ON progress", database)
            study.keep(*step(2))
            assert same(study.progress(), step(2)[0])
