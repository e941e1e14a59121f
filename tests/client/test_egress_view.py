"""What left is summed up by day, read on where the last look ended, and believed only as far as the chain holds."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.egress import EgressEntry
from client.egress_log import EgressLog, read
from client.egress_view import EgressView
from common.errors import ConsiliumError
from common.messages import OPERATOR, Stage
from common.parts import Digest

ONE, TWO = Digest("a" * 64), Digest("b" * 64)
DAYS = (datetime(2026, 12, 1, 8, tzinfo=UTC), datetime(2026, 12, 2, 8, tzinfo=UTC))


def write(path: Path, day: int, *stages: Stage, study: Digest = ONE) -> None:
    with EgressLog(path, clock=lambda: DAYS[day]) as log:
        for number, stage in enumerate(stages):
            log.payload(EgressEntry(number, study, OPERATOR, stage, 1, 0, {"secagg": 100}, 400, "c" * 64, "as agreed"))
            log.control("push-messages", 900, "server:443")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "egress.jsonl"


def test_a_day_is_summed_up_by_study_and_stage_with_the_links_own_calls_last(path: Path) -> None:
    write(path, 0, Stage.FIT, Stage.FIT, Stage.UNMASK)
    write(path, 1, Stage.FIT, study=TWO)
    seen = EgressView(path).look()
    assert [(line.day, line.study[:1], line.what, line.times, line.total_bytes) for line in seen.days] == [
        ("2026-12-02", "b", "train.fit", 1, 400),
        ("2026-12-02", "", "push-messages", 1, 900),
        ("2026-12-01", "a", "train.fit", 2, 800),
        ("2026-12-01", "a", "train.unmask", 1, 400),
        ("2026-12-01", "", "push-messages", 3, 2700),
    ]
    assert (seen.entries, seen.replies, seen.reply_bytes, seen.link_bytes) == (8, 4, 1600, 3600)
    assert [entry.time[:10] for entry in seen.last] == ["2026-12-02", *["2026-12-01"] * 3]


def test_a_second_look_takes_in_what_came_since_and_ends_where_a_fresh_one_does(path: Path) -> None:
    write(path, 0, Stage.FIT)
    view = EgressView(path)
    view.look()
    write(path, 1, Stage.FIT, Stage.COUNTS)
    assert view.look() == EgressView(path).look()
    assert view.look().entries == len(read(path))


def test_what_was_verified_is_not_read_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, 0, Stage.FIT, Stage.FIT)
    view = EgressView(path)
    view.look()
    from client import egress_view

    seen = []

    def noted(path: Path, last: object, end: int) -> object:
        seen.append(end)
        return iter(())

    monkeypatch.setattr(egress_view, "read_on", noted)
    view.look()
    assert seen == [path.stat().st_size]


def test_a_line_that_is_being_written_is_no_entry_yet(path: Path) -> None:
    write(path, 0, Stage.FIT)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    view = EgressView(path)
    assert view.look().entries == 1
    path.write_bytes(whole)
    assert view.look().entries == 2


def test_a_file_in_the_place_of_the_one_that_was_read_is_read_from_its_beginning(path: Path, tmp_path: Path) -> None:
    write(path, 0, Stage.FIT)
    view = EgressView(path)
    view.look()
    other = tmp_path / "other.jsonl"
    write(other, 1, Stage.COUNTS, Stage.COUNTS)
    os.replace(other, path)
    assert view.look() == EgressView(path).look()


def test_a_change_is_refused_at_every_look(path: Path) -> None:
    write(path, 0, Stage.FIT, Stage.FIT)
    path.write_bytes(path.read_bytes().replace(b'"total_bytes":400', b'"total_bytes":300', 1))
    view = EgressView(path)
    for _ in range(2):
        with pytest.raises(ConsiliumError, match="CSL-603"):
            view.look()


def test_where_nothing_was_written_nothing_has_left(path: Path) -> None:
    seen = EgressView(path).look()
    assert (seen.entries, seen.days, seen.last) == (0, (), ())
    assert not path.exists()
