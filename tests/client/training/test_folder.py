"""A folder of sealed files keeps its budget, between processes too, and no half-written file is ever read."""

from __future__ import annotations

import errno
import logging
import os
import signal
import stat
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from client.training import folder as folder_module
from client.training.folder import SealedFolder
from client.training.sealed import SealedFile, SealedWriter
from common.errors import ConsiliumError
from tests.crashes import FORK

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
SIZES = np.array([100, 0, 300], dtype=np.int64)
FILE_BYTES = 56 + 400 + 3 * 16


class Filling:
    """Writes the records of one fingerprint, and counts how often it is asked to."""

    def __init__(self, fingerprint: bytes) -> None:
        self.fingerprint, self.times = fingerprint, 0

    def __call__(self, writer: SealedWriter) -> None:
        self.times += 1
        for index, size in enumerate(SIZES):
            writer.write(index, self.record(index, int(size)))

    def record(self, index: int, size: int) -> bytes:
        return bytes((self.fingerprint[0] + index + place) % 256 for place in range(size))

    def check(self, file: SealedFile) -> None:
        for index, size in enumerate(SIZES):
            assert file.read(index) == self.record(index, int(size))


def obtain(folder: SealedFolder, number: int) -> tuple[SealedFile, int]:
    """Return the file of a number, checked, and how often it had to be written."""
    filling = Filling(bytes([number]) * 32)
    file = folder.obtain(filling.fingerprint, SIZES, filling)
    filling.check(file)
    return file, filling.times


def was_written(folder: SealedFolder, number: int) -> bool:
    return obtain(folder, number)[1] == 1


def listed(path: Path) -> list[str]:
    return sorted(file.name for file in path.iterdir() if file.name != "lock")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "features"


def roomy(path: Path, key: bytes = KEY, files: float = 100) -> SealedFolder:
    return SealedFolder(path, key, int(files * FILE_BYTES))


def test_a_file_is_made_once_and_found_by_whoever_starts_later(path: Path) -> None:
    assert was_written(roomy(path), 1)
    assert not was_written(roomy(path), 1)
    assert was_written(roomy(path), 2)
    assert not was_written(roomy(path), 1)


def test_files_are_for_their_owner_alone(path: Path) -> None:
    obtain(roomy(path), 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_a_name_tells_only_the_key_s_owner_what_a_file_was_made_from(path: Path) -> None:
    obtain(roomy(path), 1)
    (mine,) = listed(path)
    assert (b"\x01" * 32).hex() not in mine
    assert was_written(roomy(path, OTHER_KEY), 1)
    assert len(listed(path)) == 2


def test_a_file_of_another_owner_under_this_name_is_made_anew(path: Path, tmp_path: Path) -> None:
    obtain(roomy(path), 1)
    obtain(roomy(tmp_path / "other", OTHER_KEY), 1)
    (mine,), (other,) = listed(path), listed(tmp_path / "other")
    (tmp_path / "other" / other).replace(path / mine)
    assert was_written(roomy(path), 1)
    assert not was_written(roomy(path), 1)


@pytest.mark.parametrize("keep", [0, 10, 56, FILE_BYTES - 1])
def test_a_damaged_file_is_reported_and_made_anew(path: Path, keep: int, caplog: pytest.LogCaptureFixture) -> None:
    obtain(roomy(path), 1)
    (name,) = listed(path)
    os.truncate(path / name, keep)
    with caplog.at_level(logging.WARNING):
        assert was_written(roomy(path), 1)
    assert [record.getMessage()[:7] for record in caplog.records] == ["CSL-340"]
    assert not was_written(roomy(path), 1)


def test_the_file_that_was_used_longest_ago_goes_first(path: Path) -> None:
    folder = roomy(path, files=3)
    for number in (1, 2, 3):
        before = set(listed(path)) if path.exists() else set()
        obtain(folder, number)
        (made,) = set(listed(path)) - before
        os.utime(path / made, ns=(number, number))
    assert not was_written(folder, 1)
    assert was_written(folder, 4)
    assert len(listed(path)) == 3
    assert [was_written(folder, number) for number in (1, 3, 4)] == [False] * 3
    assert was_written(folder, 2)


def test_what_is_in_use_is_never_deleted(path: Path) -> None:
    folder = roomy(path, files=2)
    held = [obtain(folder, 1)[0], obtain(folder, 2)[0]]
    with pytest.raises(ConsiliumError, match=r"CSL-341.*in use"):
        obtain(folder, 3)
    assert len(listed(path)) == 2
    for number, file in zip((1, 2), held, strict=True):
        Filling(bytes([number])).check(file)
    assert not was_written(folder, 2)
    del held, file
    assert was_written(folder, 3)


def test_a_budget_that_was_lowered_holds_at_the_next_look(path: Path) -> None:
    for number in (1, 2, 3):
        obtain(roomy(path), number)
    assert not was_written(roomy(path, files=1), 3)
    assert len(listed(path)) == 1


def test_a_file_larger_than_the_budget_is_not_begun(path: Path) -> None:
    with pytest.raises(ConsiliumError, match="CSL-341"):
        obtain(roomy(path, files=0.9), 1)
    assert not path.exists()


def test_other_files_in_the_folder_are_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").write_bytes(b"x" * 10 * FILE_BYTES)
    folder = roomy(path, files=1)
    assert was_written(folder, 1)
    assert was_written(folder, 2)
    assert len(listed(path)) == 2
    assert (path / "notes.txt").exists()


@pytest.mark.parametrize("error", [KeyError("of the model"), KeyboardInterrupt()])
@pytest.mark.parametrize("after", [0, 2])
def test_writing_that_breaks_off_leaves_nothing(path: Path, after: int, error: BaseException) -> None:
    def breaking(writer: SealedWriter) -> None:
        for index in range(after):
            writer.write(index, bytes(int(SIZES[index])))
        raise error

    with pytest.raises(type(error)):
        roomy(path).obtain(b"\x01" * 32, SIZES, breaking)
    assert listed(path) == []
    assert was_written(roomy(path), 1)


@pytest.mark.parametrize("call", ["pwrite", "fsync", "posix_fallocate", "ftruncate"])
def test_a_full_disk_leaves_nothing(path: Path, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, refused)
        with pytest.raises(ConsiliumError, match=r"CSL-341.*No space left"):
            obtain(roomy(path), 1)
    assert listed(path) == []
    assert was_written(roomy(path), 1)


def test_a_folder_that_cannot_be_made_is_a_coded_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConsiliumError, match="CSL-341"):
        obtain(roomy(tmp_path / "file" / "features"), 1)


def test_a_link_in_place_of_a_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    obtain(roomy(path), 1)
    (name,) = listed(path)
    (path / name).replace(tmp_path / "elsewhere")
    (path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConsiliumError, match="CSL-341"):
        obtain(roomy(path), 1)


def test_a_key_of_another_length_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        SealedFolder(path, b"short", 1000)


def _begin(path: Path, pipe: Connection) -> None:
    """Make file 1 in a process of its own, stopping in the middle until something is said."""

    class Stopping(Filling):
        def __call__(self, writer: SealedWriter) -> None:
            writer.write(0, self.record(0, 100))
            pipe.send("begun")
            pipe.recv()
            for index in (1, 2):
                writer.write(index, self.record(index, int(SIZES[index])))

    filling = Stopping(b"\x01" * 32)
    filling.check(roomy(path).obtain(filling.fingerprint, SIZES, filling))
    pipe.send("done")
    os._exit(0)


def test_a_process_killed_in_the_middle_leaves_nothing_that_is_read_and_its_bytes_are_freed(path: Path) -> None:
    mine, theirs = FORK.Pipe()
    process = FORK.Process(target=_begin, args=(path, theirs))
    process.start()
    assert mine.recv() == "begun"
    assert [Path(name).suffix for name in listed(path)] == [".part"]
    with pytest.raises(ConsiliumError, match=r"CSL-341.*in use"):
        obtain(roomy(path, files=1), 2)
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    assert [Path(name).suffix for name in listed(path)] == [".part"]
    assert was_written(roomy(path, files=1), 2)
    assert [Path(name).suffix for name in listed(path)] == [".sealed"]
    assert was_written(roomy(path), 1)


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_waits_for_the_first_and_takes_over_if_it_dies(
    path: Path, killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, theirs = FORK.Pipe()
    process = FORK.Process(target=_begin, args=(path, theirs))
    process.start()
    assert mine.recv() == "begun"
    wait, waited = folder_module._await, []

    def goes_on(part: Path) -> None:
        waited.append(part)
        if killed:
            os.kill(process.pid or 0, signal.SIGKILL)
        else:
            mine.send("go on")
        wait(part)

    monkeypatch.setattr(folder_module, "_await", goes_on)
    assert was_written(roomy(path), 1) == killed
    assert len(waited) == 1
    process.join()
    assert [Path(name).suffix for name in listed(path)] == [".sealed"]
