"""A chain that was put back and went on is another branch: no recovery of it answers for what the lost one signed.

In each of these OTHER was joined on a branch that is not here any more. Either it is among the studies charged in full,
or the account has nothing left.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client.ledger import SqliteLedger
from client.ledger.anchor import read_anchor
from client.ledger.book import Head
from client.ledger.files import default_anchor
from client.ledger.recovery import inspect, recover
from common import errors
from common.errors import ConsiliumError
from common.parts import Digest
from tests.client.ledger.test_recovery import copies, put_back
from tests.client.ledger.test_store import UNLOCKED, change
from tests.crashes import refused
from tests.ledgers import ACCOUNT, PLAN, charge, joined, opened, with_account

OTHER, THIRD = Digest("0b" * 32), Digest("0c" * 32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def lost(path: Path, tmp_path: Path) -> tuple[Head, ...]:
    """Heads of a branch on which OTHER was joined and charged; the ledger and its anchor were put back to before."""
    with opened(path) as ledger:
        joined(ledger)
    copies(path, tmp_path / "backup", anchor=True)
    heads = []
    with opened(path) as ledger:
        ledger.join(ACCOUNT, OTHER, PLAN)
        heads.append(ledger.head())
        for instance in range(1, 5):
            ledger.charge(charge(instance, study=OTHER))
            heads.append(ledger.head())
    put_back(tmp_path / "backup", path)
    return tuple(heads)


def rot(path: Path, number: str = "(SELECT max(number) FROM entry)") -> None:
    """Damage a row, the last if no other is named."""
    change(path, *UNLOCKED, f"UPDATE entry SET body = x'7b7d' WHERE number = {number}")  # noqa: S608 - our own text


def behind(path: Path, *heads: Head) -> None:
    """Each of the heads is found to be missing, and after the recovery nothing is left of the account."""
    for head in heads:
        with opened(path) as ledger:
            refused(errors.LEDGER_BEHIND, lambda ledger=ledger, head=head: ledger.vouch(head))  # type: ignore[misc]
    recover(path)
    spent(path)
    with opened(path) as ledger:
        for head in heads:
            ledger.vouch(head)


def spent(path: Path) -> None:
    with opened(path) as ledger:
        assert all((one.epsilon_remaining, one.delta_remaining) == (0.0, 0.0) for one in ledger.balances())
        refused(errors.LEDGER_SPENT, lambda: ledger.join(ACCOUNT, Digest("0d" * 32), PLAN))


def test_a_recovery_of_one_branch_answers_for_no_head_of_another(path: Path, lost: tuple[Head, ...]) -> None:
    """Bit rot in the new branch's last row is mended with its own anchor; the lost branch stays lost."""
    with opened(path) as ledger:
        for instance in range(1, 5):
            ledger.charge(charge(instance))
        assert ledger.head().number == lost[3].number
    rot(path)
    recover(path)
    behind(path, lost[0], lost[2], lost[3], lost[4])


def test_later_recoveries_answer_for_no_more_of_earlier_eras(path: Path, lost: tuple[Head, ...]) -> None:
    for number in range(3):
        rot(path)
        recover(path)
        with opened(path) as ledger:
            with_account(ledger, account=f"other-{number}")
            with_account(ledger, account=f"more-{number}")
    with opened(path) as ledger:
        assert ledger.head().number > lost[-1].number
    behind(path, *lost)


def test_what_one_recovery_lost_and_the_anchor_knew_is_answered_for(path: Path) -> None:
    """The control: the same branch, whose end is lost; the operator's older heads of it stop nobody."""
    with opened(path) as ledger:
        joined(ledger)
        heads = []
        for instance in range(1, 5):
            ledger.charge(charge(instance))
            heads.append(ledger.head())
    change(path, *UNLOCKED, "DELETE FROM entry WHERE number > 4")
    recover(path)
    with opened(path) as ledger:
        for head in heads:
            ledger.vouch(head)
        assert ledger.balances()[0].epsilon_remaining > 0.0
        ends = [head.number for head in heads][-1]
        for foreign in (3, ends, ends + 1):
            head = Head(0, foreign, Digest("ee" * 32))
            refused(errors.LEDGER_BEHIND, lambda head=head: ledger.vouch(head))  # type: ignore[misc]


def test_what_was_found_behind_is_not_forgotten_with_the_row_that_says_so(
    path: Path, lost: tuple[Head, ...], tmp_path: Path
) -> None:
    """The database is put back once more after the operator's head was refused; the anchor remembers it."""
    with opened(path) as ledger:
        refused(errors.LEDGER_BEHIND, lambda: ledger.vouch(lost[-1]))
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.copy(tmp_path / "backup" / path.name, path)
    refused(errors.LEDGER_BEHIND, lambda: opened(path))
    assert f"entry {lost[-1].number} was signed" in recover(path).reason
    spent(path)
    with opened(path) as ledger:
        ledger.vouch(lost[-1])
    kept = read_anchor(default_anchor(path))
    assert kept is not None
    assert kept.behind is None


def test_an_anchor_older_than_the_rows_of_the_file_is_not_believed(path: Path) -> None:
    with opened(path) as ledger:
        joined(ledger)
    old = default_anchor(path).read_bytes()
    with opened(path) as ledger:
        ledger.join(ACCOUNT, OTHER, PLAN)
        ledger.charge(charge(1, study=OTHER))
        signed = ledger.head()
    rot(path, "4")
    default_anchor(path).write_bytes(old)
    recover(path)
    spent(path)
    with opened(path) as ledger:
        ledger.vouch(signed)


def test_an_anchor_of_a_lost_branch_is_not_believed(path: Path, lost: tuple[Head, ...], tmp_path: Path) -> None:
    """It ends with an entry of which the new branch has another: it knows nothing of that branch's end."""
    with opened(path) as ledger:
        ledger.join(ACCOUNT, THIRD, PLAN)
        ledger.charge(charge(1, study=THIRD))
    copies(path, tmp_path / "new", anchor=False)
    put_back(tmp_path / "backup", path)
    with opened(path) as ledger:
        ledger.join(ACCOUNT, OTHER, PLAN)
    put_back(tmp_path / "new", path)
    assert inspect(path).reason
    recover(path)
    spent(path)
    with opened(path) as ledger:
        refused(errors.LEDGER_BEHIND, lambda: ledger.vouch(lost[-1]))


def test_every_head_that_led_to_a_recovery_is_answered_for_by_it(path: Path, lost: tuple[Head, ...]) -> None:
    """Else a site would have to be recovered again each time it meets the same operator."""
    for head in (lost[-1], lost[0]):
        with opened(path) as ledger:
            if not holds(ledger, head):
                recover(path)
        with SqliteLedger(path) as ledger:
            assert holds(ledger, head)


def holds(ledger: SqliteLedger, head: Head) -> bool:
    try:
        ledger.vouch(head)
    except ConsiliumError:
        return False
    return True
