"""The audit log keeps every line, also when its file is rotated by renaming it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from common.errors import ConsiliumError
from server.audit import AuditLog
from server.guard import Call


def call(number: int) -> Call:
    return Call(at=float(number), peer="p", path="/", node=number, status=200, received=1, sent=1, seconds=0.1)


def nodes(path: Path) -> list[int]:
    return [json.loads(line)["node"] for line in path.read_text().splitlines()]


def test_a_renamed_log_is_followed_by_a_new_one_and_no_line_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as log:
        log(call(1))
        path.rename(tmp_path / "audit.jsonl.1")
        log(call(2))
        log(call(3))
        path.unlink()
        log(call(4))
        assert log.lost == 0
    assert nodes(tmp_path / "audit.jsonl.1") == [1]
    assert nodes(path) == [4]
    assert path.stat().st_mode & 0o777 == 0o600


def test_lines_of_several_threads_survive_rotation(tmp_path: Path) -> None:
    path, each = tmp_path / "audit.jsonl", 200
    with AuditLog(path) as log:

        def write(first: int) -> None:
            for number in range(first, first + each):
                log(call(number))

        threads = [threading.Thread(target=write, args=(first,)) for first in (0, each, 2 * each)]
        for thread in threads:
            thread.start()
        turns = 0
        while any(thread.is_alive() for thread in threads):
            if path.exists():
                path.rename(tmp_path / f"audit.jsonl.{turns}")
                turns += 1
        for thread in threads:
            thread.join()
    found = [node for kept in tmp_path.iterdir() for node in nodes(kept)]
    assert sorted(found) == list(range(3 * each))


def test_where_no_new_file_can_be_made_the_old_one_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    with AuditLog(folder / "audit.jsonl") as log:
        log(call(1))
        folder.rename(tmp_path / "moved")
        log(call(2))
        assert log.lost == 0
    assert nodes(tmp_path / "moved" / "audit.jsonl") == [1, 2]


def test_a_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="CSL-633"):
        AuditLog(tmp_path / "no" / "audit.jsonl")


def test_a_line_after_the_end_is_counted_as_lost(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl") as log:
        log(call(1))
    log(call(2))
    assert log.lost == 1
    assert nodes(tmp_path / "audit.jsonl") == [1]
