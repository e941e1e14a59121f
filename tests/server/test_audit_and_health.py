"""The operator's audit log, its metrics and its board tell what happened, and nothing of why a site is not there."""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from common import errors
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import Stage
from server.attendance import Deadline, Everyone
from server.audit import AuditLog
from server.board import Board, Standing
from server.guard import Call
from server.health import Metrics, health_app

NORTH, SOUTH = SiteId("north"), SiteId("south")


def call(path: str = "/v1/fleet/pull-messages", status: int = 200) -> Call:
    return Call(1.23456, "10.0.0.1", path, 7, status, 12, 34, 0.56789)


def test_each_call_is_one_line_that_only_the_owner_reads(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    with AuditLog(path) as audit:
        audit(call())
        audit(call('/"\n\x00\u2028', 404))
    with AuditLog(path) as audit:
        audit(call())
    lines = path.read_bytes().splitlines()
    assert len(lines) == 3
    first, second = json.loads(lines[0]), json.loads(lines[1])
    assert (first["at"], first["node"], first["seconds"]) == (1.235, 7, 0.5679)
    assert second["path"] == '/"\n\x00\u2028'
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_cannot_be_opened_is_said_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError) as raised:
        AuditLog(tmp_path / "none" / "audit.jsonl")
    assert raised.value.fault is errors.OPERATOR_UNWRITABLE


def test_a_line_that_a_full_disk_refuses_is_counted_and_stops_nothing() -> None:
    with AuditLog(Path("/dev/full")) as audit:
        audit(call())
        audit(call())
        assert audit.lost == 2


def test_a_line_after_the_end_goes_into_no_other_file(tmp_path: Path) -> None:
    with AuditLog(tmp_path / "audit.jsonl") as audit:
        pass
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_WRONLY)
    audit(call())
    os.close(other)
    assert (tmp_path / "other").read_bytes() == b""
    assert audit.lost == 1


def test_the_board_keeps_since_when_a_site_stands_where_it_stands() -> None:
    times = iter(datetime(2026, 1, day, tzinfo=UTC) for day in range(1, 10))
    board = Board(clock=lambda: next(times))
    board.begin([SOUTH, NORTH])
    board.set(NORTH, Standing.ONLINE)
    board.set(NORTH, Standing.ONLINE)
    board.set(NORTH, Standing.WORKING)
    shown = board.sites()
    assert list(shown) == [NORTH, SOUTH]
    assert (shown[NORTH].standing, shown[NORTH].since.day) == (Standing.WORKING, 4)
    board.begin([SOUTH])
    assert list(board.sites()) == [SOUTH]


def test_health_metrics_and_status_are_read_and_nothing_else_is_there() -> None:
    metrics, board = Metrics(), Board()
    board.begin([NORTH, SOUTH])
    board.set(NORTH, Standing.UNAVAILABLE)
    metrics.call(call())
    metrics.call(call("/v1/fleet/" + "x" * 50, 404))
    metrics.call(call("/etc/passwd", 404))
    with TestClient(health_app(metrics, board, lambda: {"study": None})) as client:
        assert client.get("/healthz").json() == {"healthy": True}
        shown = client.get("/status").json()
        text = client.get("/metrics").text
        assert client.get("/sites").status_code == 404
        assert client.post("/status").status_code == 405
    assert shown["study"] is None
    assert {site: told["standing"] for site, told in shown["sites"].items()} == {
        "north": "unavailable",
        "south": "approved",
    }
    assert 'consilium_requests_total{call="pull-messages",status="200"} 1.0' in text
    # Whoever asks for paths of its own makes no series of its own.
    assert 'consilium_requests_total{call="other",status="404"} 2.0' in text
    assert 'consilium_sites{standing="unavailable"} 1.0' in text


def test_a_round_is_divided_among_its_stages_and_none_waits_for_ever() -> None:
    deadline = Deadline(100.0)
    shares = {stage: deadline.of(stage) or 0.0 for stage in Stage}
    assert shares[Stage.FIT] == shares[Stage.COUNTS] == 60.0
    assert deadline.patience == shares[Stage.KEYS] == 8.0
    opening = [Stage.IDENTIFY, Stage.KEYS, Stage.PREPARE, Stage.ACKNOWLEDGE]
    assert sum(shares[stage] for stage in [*opening, Stage.FIT]) <= 100.0
    assert Deadline().of(Stage.FIT) is None
    assert Everyone().connection(1) is not None
    assert not Everyone().wait(1.0)
