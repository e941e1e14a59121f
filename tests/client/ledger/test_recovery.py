"""Whatever was lost is charged in full, and a ledger whose both copies were put back is found by what it signed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.ledger import SqliteLedger
from client.ledger.book import Head
from client.ledger.files import default_anchor
from client.ledger.recovery import recover
from common import errors
from common.errors import ConsiliumError
from common.parts import Digest
from tests.client.ledger.test_store import UNLOCKED, change
from tests.crashes import refused
from tests.ledgers import ACCOUNT, DELTA, EPSILON, PLAN, STUDY, charge, joined, opened, with_account

OTHER = Digest("0b" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


def copies(path: Path, folder: Path, *, anchor: bool) -> None:
    """Copy a ledger, and its anchor where asked, as a backup would."""
    folder.mkdir()
    change(path)
    shutil.copy(path, folder)
    if anchor:
        shutil.copy(default_anchor(path), folder)


def put_back(folder: Path, path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    for kept in folder.iterdir():
        shutil.copy(kept, path.parent)


def in_full(ledger: SqliteLedger, *studies: Digest) -> None:
    """The studies named are committed and can be charged no more."""
    (balance,) = ledger.balances()
    found = {study.study: study for study in balance.studies}
    assert set(studies) == {digest for digest, study in found.items() if study.exhausted}
    for digest in studies:
        with pytest.raises(ConsiliumError) as caught:
            ledger.charge(charge(77, study=digest))
        assert caught.value.fault is errors.LEDGER_SPENT


def test_a_sound_ledger_is_left_alone(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
    before = path.read_bytes()
    assert recover(path).reason == ""
    assert path.read_bytes() == before


def test_where_there_is_nothing_there_is_nothing_to_recover(path: Path) -> None:
    refused(errors.LEDGER_BEHIND, lambda: recover(path))


def test_after_an_old_backup_what_the_anchor_knows_is_charged_in_full(path: Path, tmp_path: Path) -> None:
    """The study joined after the backup is known to the anchor alone; the account keeps what neither touched."""
    with opened(path) as ledger:
        joined(ledger)
    copies(path, tmp_path / "backup", anchor=False)
    with opened(path) as ledger:
        ledger.charge(charge(1))
        ledger.join(ACCOUNT, OTHER, PLAN)
        ledger.charge(charge(1, study=OTHER))
    put_back(tmp_path / "backup", path)
    refused(errors.LEDGER_BEHIND, lambda: opened(path))
    assert "the anchor knows entry 6" in recover(path).reason
    with opened(path) as ledger:
        in_full(ledger, STUDY.digest, OTHER)
        (balance,) = ledger.balances()
        assert balance.epsilon_committed == pytest.approx(2 * PLAN.epsilon())
        ledger.join(ACCOUNT, Digest("0c" * 32), PLAN)


def test_an_account_that_only_the_anchor_knows_comes_back(path: Path, tmp_path: Path) -> None:
    opened(path).close_file()
    copies(path, tmp_path / "backup", anchor=False)
    with opened(path) as ledger:
        joined(ledger)
    put_back(tmp_path / "backup", path)
    recover(path)
    with opened(path) as ledger:
        in_full(ledger, STUDY.digest)
        with pytest.raises(ConsiliumError):
            with_account(ledger)


def test_a_lost_database_is_made_anew_from_the_anchor(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
    path.unlink()
    assert "the ledger is missing" in recover(path).reason
    with opened(path) as ledger:
        in_full(ledger, STUDY.digest)


@pytest.mark.parametrize("anchor", ["missing", "changed"])
def test_without_an_anchor_to_believe_all_of_every_account_is_charged(path: Path, anchor: str) -> None:
    """What was joined after a backup cannot be known, so it may have been everything."""
    with opened(path) as ledger:
        joined(ledger)
    where = default_anchor(path)
    where.unlink() if anchor == "missing" else where.write_bytes(b"0" * 64 + b"\n{}")
    refused(errors.LEDGER_BEHIND if anchor == "missing" else errors.LEDGER_DAMAGED, lambda: opened(path))
    recover(path)
    with opened(path) as ledger:
        (balance,) = ledger.balances()
        assert (balance.epsilon_remaining, balance.delta_remaining) == (0.0, 0.0)
        refused(errors.LEDGER_SPENT, lambda: ledger.join(ACCOUNT, OTHER, PLAN))


def test_the_longest_part_that_verifies_is_kept_and_the_old_file_too(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
        for instance in (1, 2, 3):
            ledger.charge(charge(instance))
    change(path, *UNLOCKED, "UPDATE entry SET body = x'7b7d' WHERE number = 5")
    before = path.read_bytes()
    found = recover(path)
    assert len(found.links) == 4
    assert path.with_name("ledger.sqlite.set-aside-1").read_bytes() == before
    with opened(path) as ledger:
        assert ledger.charges(STUDY.digest) == (charge(1),)
        in_full(ledger, STUDY.digest)


def test_an_account_that_was_spent_by_a_recovery_stays_so_when_the_database_is_lost(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
    default_anchor(path).unlink()
    recover(path)
    path.unlink()
    recover(path)
    with opened(path) as ledger:
        assert ledger.balances()[0].exhausted


def test_a_study_closed_unused_is_charged_by_a_recovery_all_the_same(path: Path, tmp_path: Path) -> None:
    """After the backup it may have been charged: an open study in the old copy, or one that was closed in a forgery."""
    with opened(path) as ledger:
        joined(ledger)
        ledger.close(ACCOUNT, STUDY.digest)
    default_anchor(path).unlink()
    recover(path)
    with opened(path) as ledger:
        assert ledger.balances()[0].epsilon_committed >= PLAN.epsilon()


def test_both_copies_put_back_are_found_by_what_the_site_signed(path: Path, tmp_path: Path) -> None:
    """The operator's witness stops the site; the recovery then believes no anchor, and charges all of the account."""
    with opened(path) as ledger:
        joined(ledger)
    copies(path, tmp_path / "backup", anchor=True)
    with opened(path) as ledger:
        ledger.charge(charge(1))
        signed = ledger.head()
    put_back(tmp_path / "backup", path)
    with opened(path) as ledger:
        refused(errors.LEDGER_BEHIND, lambda: ledger.vouch(signed))
        refused(errors.LEDGER_BEHIND, lambda: ledger.charge(charge(2)))
    with opened(path) as ledger:
        refused(errors.LEDGER_BEHIND, lambda: ledger.join(ACCOUNT, OTHER, PLAN))
    recover(path)
    with opened(path) as ledger:
        ledger.vouch(signed)
        (balance,) = ledger.balances()
        assert balance.epsilon_remaining == 0.0


def test_after_a_recovery_only_what_it_covered_is_vouched_for(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
        ledger.charge(charge(1))
        ledger.charge(charge(2))
        covered = ledger.head()
    change(path, *UNLOCKED, "DELETE FROM entry WHERE number > 3")
    recover(path)
    beyond = Head(covered.era, covered.number + 1, Digest("ee" * 32))
    ahead = Head(covered.era + 1, 2, Digest("ef" * 32))
    with opened(path) as ledger:
        assert ledger.head().era == 1
        ledger.vouch(covered)
        ledger.vouch(ledger.head())
        refused(errors.LEDGER_BEHIND, lambda: ledger.vouch(ahead))
    recover(path)
    with opened(path) as ledger:
        ledger.vouch(covered)
        ledger.vouch(ahead)
        refused(errors.LEDGER_BEHIND, lambda: ledger.vouch(beyond))


def test_nothing_missing_is_written_down_twice_and_the_furthest_is_kept(path: Path, tmp_path: Path) -> None:
    """An operator that shows old heads again and again neither fills the file nor makes the loss look smaller."""
    with opened(path) as ledger:
        joined(ledger)
    copies(path, tmp_path / "backup", anchor=True)
    with opened(path) as ledger:
        heads = []
        for instance in range(1, 4):
            ledger.charge(charge(instance))
            heads.append(ledger.head())
    put_back(tmp_path / "backup", path)
    with opened(path) as ledger:
        held = ledger.head()
        shown: Head | None
        for shown in (heads[1], *([heads[0], heads[1]] * 20), heads[2], heads[1]):
            refused(errors.LEDGER_BEHIND, lambda shown=shown: ledger.vouch(shown))  # type: ignore[misc]
        assert ledger.head().number == held.number + 2
        for shown in (None, held, ledger.head()):
            refused(errors.LEDGER_BEHIND, lambda shown=shown: ledger.vouch(shown))  # type: ignore[misc]
        assert ledger.head().number == held.number + 2
    recover(path)
    with opened(path) as ledger:
        for shown in (None, *heads):
            ledger.vouch(shown)


def test_recoveries_of_recoveries_never_give_back(path: Path, tmp_path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
    copies(path, tmp_path / "first", anchor=False)
    spent = (0.0, 0.0)
    for number in range(4):
        with opened(path) as ledger:
            if ledger.balances()[0].epsilon_remaining > PLAN.epsilon():
                ledger.join(ACCOUNT, Digest(f"{number + 1:064x}"), PLAN)
        put_back(tmp_path / "first", path)
        recover(path)
        with opened(path) as ledger:
            (balance,) = ledger.balances()
            assert balance.epsilon_committed >= spent[0]
            assert balance.delta_committed >= spent[1]
            spent = balance.epsilon_committed, balance.delta_committed
    assert 2 * PLAN.epsilon() < spent[0] <= EPSILON
    assert 2 * PLAN.delta < spent[1] <= DELTA
