"""The audit log is summed up from its end: the last day, whatever stands in it, and never more than a bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.errors import ConsiliumError
from server.audit import AuditLog
from server.calls import CallLine, Calls, calls
from server.guard import Call

PULL, PUSH = "/v1/fleet/pull-messages", "/v1/fleet/push-messages"


def log(path: Path, *made: tuple[float, str, int]) -> None:
    with AuditLog(path) as audit:
        for at, name, status in made:
            audit(Call(at, "192.0.2.1", name, 0, status, 10, 3, 0.01))


def test_calls_are_counted_by_name_and_status_since_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log(path, (1.0, PULL, 200), (50.0, PULL, 200), (60.0, PULL, 401), (70.0, PUSH, 200), (80.0, PULL, 200))
    found = calls(path, 50.0)
    assert found.lines == (
        CallLine("pull-messages", 200, 2, 20, 6),
        CallLine("pull-messages", 401, 1, 10, 3),
        CallLine("push-messages", 200, 1, 10, 3),
    )
    assert (found.total, found.refused, found.since, found.is_whole, found.unreadable) == (4, 1, 50.0, True, 0)


def test_a_path_that_is_no_call_is_never_repeated(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log(path, (1.0, "/<script>", 404), (2.0, "/v1/fleet/../x", 404), (3.0, PULL, 404))
    assert calls(path, 0.0).lines == (CallLine("other", 404, 3, 30, 9),)


def test_of_a_long_log_the_end_is_read_and_that_is_said(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log(path, *((float(number), PULL, 200) for number in range(100)))
    length = len(path.read_bytes()) // 100
    found = calls(path, 0.0, most_bytes=10 * length)
    assert (found.total, found.is_whole) in ((9, False), (10, False))
    assert found.unreadable == 0
    assert calls(path, 95.0, most_bytes=10 * length).is_whole


@pytest.mark.parametrize("stray", [b'{"at":', b"null", b"[]", b'{"at":"x"}', b"\xff\xfe", b"[" * 5000])
def test_a_line_that_is_none_is_counted_and_passed_over(tmp_path: Path, stray: bytes) -> None:
    path = tmp_path / "audit.jsonl"
    log(path, (1.0, PULL, 200))
    with path.open("ab") as file:
        file.write(stray)
    found = calls(path, 0.0)
    assert (found.total, found.unreadable) == (1, 1)


def test_a_log_that_is_not_there_yet_holds_no_call(tmp_path: Path) -> None:
    assert calls(tmp_path / "audit.jsonl", 0.0) == Calls((), True, None, 0)


def test_a_log_that_cannot_be_read_is_a_coded_error(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError, match="CSL-633"):
        calls(tmp_path, 0.0)
