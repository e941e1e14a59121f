"""A disk is full at a hospital or at the operator: it is said by name, nothing leaves unwritten, and then it goes on.

The disk is a small file system in memory of its own, which takes the right to mount one.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from server.journal import State
from tests.e2e.deaths import held, let_go, operator_waits
from tests.e2e.network import names_of, network, until

VICTIM = names_of(5)[2]
BALLAST = "ballast"


def may_mount(folder: Path) -> bool:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        return False
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True)
    return mounted.returncode == 0 and subprocess.run(["umount", folder], check=True).returncode == 0


@pytest.fixture(autouse=True)
def needs_mounts(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.mkdir()
    if not may_mount(probe):
        pytest.skip("a file system of a few megabytes can be mounted by root only")


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Put what is in a folder on a disk of four megabytes, mounted there."""
    kept = folder.with_name(f"{folder.name}.kept")
    folder.rename(kept)
    folder.mkdir(mode=0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m,mode=700", "tmpfs", folder], check=True)
    try:
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        yield
    finally:
        # A copy stays for whoever looks after a test that failed.
        shutil.copytree(folder, kept, dirs_exist_ok=True, ignore=shutil.ignore_patterns(BALLAST))
        subprocess.run(["umount", "-l", folder], check=True)
        folder.rmdir()
        kept.rename(folder)


def fill(folder: Path) -> None:
    """Write until nothing more fits."""
    with (folder / BALLAST).open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


def test_a_site_whose_disk_is_full_sends_nothing_says_so_and_joins_again_when_there_is_space(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with network(tmp_path, rounds=4, deadline=60.0, dimension=100) as net:
        state = net.place(VICTIM) / "state"
        with small_disk(state):
            net.faults["operator"] = partial(operator_waits, frozenset({0, 1}), marks)
            net.start()
            until(lambda: held(marks, 0), "the first round")
            fill(state)
            before = (state / "egress.jsonl").stat().st_size
            let_go(marks, 0)
            until(lambda: held(marks, 1), "a round without the site")
            # The ledger's disk or the egress log's, whichever was asked first.
            assert {"CSL-214", "CSL-603", "CSL-623"} & set(re.findall(r"CSL-\d+", net.log(VICTIM)))
            # What cannot be written down is not sent.
            assert (state / "egress.jsonl").stat().st_size - before < 4096
            full = (state / "egress.jsonl").stat().st_size
            (state / BALLAST).unlink()
            # It tries again after ten seconds at most, and writes down that it does.
            until(lambda: (state / "egress.jsonl").stat().st_size > full + 1000, "the site back")
            let_go(marks, 1)
            net.finish()
            net.end()
            net.check_release()
            assert [VICTIM in record.survivors for record in net.rounds()] == [True, False, True, True]


def test_an_operator_whose_disk_is_full_stops_by_name_and_goes_on_when_it_is_started_with_space(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    with network(tmp_path, rounds=4, deadline=60.0, dimension=100) as net:
        state = net.place("operator") / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        with small_disk(state):
            net.faults["operator"] = partial(operator_waits, frozenset({0}), marks)
            net.start()
            until(lambda: held(marks, 0), "the first round")
            fill(state)
            let_go(marks, 0)
            until(lambda: net.operator.exitcode is not None, "the operator ends")
            assert net.operator.exitcode != 0
            assert "CSL-633" in net.codes("operator")
            assert not (state / "releases").exists()
            net.check_books()
            (state / BALLAST).unlink()
            assert net.state() is State.RUNNING
            net.start("operator")
            net.finish()
            net.end()
            net.check_release()
            assert {record.attempt for record in net.rounds()} == {0}
