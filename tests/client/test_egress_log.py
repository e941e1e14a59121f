"""The log of what left: written before it leaves, whole after a crash, and changed by nobody unseen."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from client.egress import Egress, EgressEntry
from client.egress_log import Control, Entry, Payload, Torn, read
from client.egress_log import EgressLog as Log
from common.chain import START, extend
from common.errors import ConsiliumError
from common.identity import SiteId
from common.messages import OPERATOR, Envelope, Stage
from common.payloads import LEDGER_BYTES
from tests.crashes import full_disk, in_a_process, said_until_killed
from tests.studies import signed_study

NOW = datetime(2026, 12, 1, 8, 30, tzinfo=UTC)
PEER = "consilium.example:9092"
ENTRY = EgressEntry(
    number=1,
    study=signed_study().study.digest,
    recipient=OPERATOR,
    stage=Stage.FIT,
    instance=3,
    attempt=0,
    part_bytes={"secagg": 100, "ledger": 7},
    total_bytes=407,
    sha256="ab" * 32,
    guarantee="differentially private update, masked",
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "egress.jsonl"


def opened(path: Path) -> Log:
    return Log(path, clock=lambda: NOW)


def refused(act: Callable[[], object]) -> str:
    with pytest.raises(ConsiliumError) as raised:
        act()
    assert raised.value.code == "CSL-603"
    return raised.value.detail


def calls(path: Path, count: int, first: int = 0) -> None:
    with opened(path) as log:
        for number in range(first, first + count):
            log.control("PullMessages", number, PEER)


def sizes(entries: tuple[Entry, ...]) -> list[int]:
    return [entry.sent for entry in entries if isinstance(entry, Control)]


def test_what_was_written_is_read_with_its_time(path: Path) -> None:
    with opened(path) as log:
        log.payload(ENTRY)
        log.control("Heartbeat", 12, PEER)
    payload, control = read(path)
    assert isinstance(payload, Payload)
    assert payload.time == "2026-12-01T08:30:00.000Z"
    assert payload.model_dump(exclude={"kind", "time"}) == {
        name: getattr(ENTRY, name) for name in EgressEntry.__dataclass_fields__
    }
    assert control == Control(time=payload.time, method="Heartbeat", sent=12, peer=PEER)


def test_each_line_is_json_that_other_programs_read(path: Path) -> None:
    calls(path, 3)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["number"] for line in lines] == [1, 2, 3]
    assert {line["body"]["kind"] for line in lines} == {"control"}


def test_it_goes_on_where_the_file_ends(path: Path) -> None:
    for first in (0, 4, 8):
        calls(path, 4, first)
    assert sizes(read(path)) == list(range(12))


def test_no_line_that_a_name_could_fake(path: Path) -> None:
    with opened(path) as log:
        log.control('x"}\n{"body":{},"digest":"', 1, "\u2028\x00")
    (entry,) = read(path)
    assert isinstance(entry, Control)
    assert (entry.method, entry.peer) == ('x"}\n{"body":{},"digest":"', "\u2028\x00")


def test_only_the_owner_may_read_it(path: Path) -> None:
    path.touch(0o666)
    path.chmod(0o666)
    calls(path, 1)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_process_writes_at_a_time_and_others_may_read(path: Path) -> None:
    with opened(path) as log:
        log.control("Heartbeat", 1, PEER)
        assert "another process" in refused(lambda: opened(path))
        assert len(read(path)) == 1
    opened(path).close()


def test_a_line_is_one_write_and_is_synced_before_the_call_returns(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    write, sync = os.pwrite, os.fdatasync

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        seen.append(f"write {data.count(10)}")
        return write(descriptor, data, offset)

    def fdatasync(descriptor: int) -> None:
        seen.append("sync")
        sync(descriptor)

    with opened(path) as log:
        monkeypatch.setattr(os, "pwrite", pwrite)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        log.payload(ENTRY)
    assert seen == ["write 1", "sync"]


def test_many_threads_write_whole_lines(path: Path) -> None:
    with opened(path) as log, ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda number: log.control("Heartbeat", number, PEER), range(200)))
    assert sorted(sizes(read(path))) == list(range(200))


def test_a_flipped_bit_anywhere_is_found(path: Path) -> None:
    calls(path, 4)
    whole, dice = path.read_bytes(), random.Random(1)
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        if place == len(whole) - 1:
            # Without the last newline, the last line was never finished.
            assert sizes(read(path)) == [0, 1, 2]
            continue
        refused(lambda: read(path))
        refused(lambda: opened(path))


@pytest.mark.parametrize("change", ["removed", "swapped", "repeated", "put in"])
def test_lines_that_were_moved_are_found(path: Path, change: str) -> None:
    calls(path, 4)
    a, b, c, d = path.read_bytes().splitlines(keepends=True)
    calls(path.with_name("other"), 3, first=7)
    other = path.with_name("other").read_bytes().splitlines(keepends=True)[1]
    lines = {"removed": [a, c, d], "swapped": [a, c, b, d], "repeated": [a, b, b, c, d], "put in": [a, other, c, d]}
    path.write_bytes(b"".join(lines[change]))
    assert "line 2 " in refused(lambda: read(path)) or change == "repeated"
    refused(lambda: opened(path))


def test_a_chained_line_that_is_no_entry_is_refused(path: Path) -> None:
    link = extend(START, b'{"kind":"other"}')
    path.write_bytes(b'{"body":%b,"digest":"%b","number":1}\n' % (link.body, link.digest.encode()))
    assert "line 1 " in refused(lambda: read(path))


@pytest.mark.parametrize("kept", ["all but its end", "half", "one byte"])
def test_a_line_cut_short_is_noted_in_its_place_with_what_was_found(path: Path, kept: str) -> None:
    calls(path, 3)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    end = {"all but its end": len(whole) - 1, "half": (start + len(whole)) // 2, "one byte": start + 1}[kept]
    path.write_bytes(whole[:end])
    assert sizes(read(path)) == [0, 1]
    calls(path, 2, first=5)
    entries = read(path)
    assert sizes(entries) == [0, 1, 5, 6]
    torn = entries[2]
    assert isinstance(torn, Torn)
    assert (torn.size, torn.found.encode()) == (end - start, whole[start:end])


def test_what_is_no_text_is_noted_too_and_a_long_rest_leaves_nothing_behind(path: Path) -> None:
    calls(path, 1)
    with path.open("ab") as file:
        file.write(bytes(4096) + b"\xff")
    opened(path).close()
    torn = read(path)[1]
    assert isinstance(torn, Torn)
    assert torn.size == 4097
    assert torn.found.endswith("\\xff")
    assert len(read(path)) == 2


def test_a_crash_while_mending_is_mended_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls(path, 1)
    with path.open("ab") as file:
        file.write(b'{"body":')
    write = os.pwrite

    def dies(descriptor: int, data: bytes, offset: int) -> int:
        write(descriptor, data[:20], offset)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "pwrite", dies)
    with pytest.raises(KeyboardInterrupt):
        opened(path)
    monkeypatch.undo()
    opened(path).close()
    assert [entry.kind for entry in read(path)] == ["control", "torn"]


def test_a_full_disk_lets_nothing_out_and_harms_nothing(path: Path) -> None:
    study = signed_study()
    site = SiteId("site-000")

    def fill() -> None:
        log = opened(path)
        door = Egress(
            study.study,
            site,
            study.sites[site],
            dimension=100,
            cells=2,
            witness=lambda: bytes(LEDGER_BYTES),
            write=log.payload,
        )
        request = Envelope(study.study.digest, Stage.KEYS, 0, 0, OPERATOR, site, {})
        door.release(request, {"secagg": b"x"})
        # The next line has place for a part of it.
        most = path.stat().st_size + 100
        with full_disk(most):
            for _ in range(2):
                refused(lambda: door.release(request, {"secagg": b"x"}))
            assert len(read(path)) == 1
            assert path.stat().st_size == most - 100
        door.release(request, {"secagg": b"x"})

    in_a_process(fill)
    assert [entry.kind for entry in read(path)] == ["payload", "payload"]


def test_a_full_disk_while_mending_keeps_what_was_found(path: Path) -> None:
    calls(path, 1)
    with path.open("ab") as file:
        file.write(b'{"body":')
    whole = path.read_bytes()

    def fill() -> None:
        with full_disk(len(whole) + 20):
            refused(lambda: opened(path))

    in_a_process(fill)
    assert path.read_bytes() == whole


def test_a_sync_that_fails_lets_nothing_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with opened(path) as log:
        monkeypatch.setattr(os, "fdatasync", fails)
        refused(lambda: log.payload(ENTRY))
        monkeypatch.undo()
        assert read(path) == ()
        log.payload(ENTRY)
    assert len(read(path)) == 1


def test_nothing_is_written_behind_what_another_wrote(path: Path) -> None:
    with opened(path) as log:
        log.payload(ENTRY)
        with path.open("ab") as file:
            file.write(b"a stranger's\n")
        refused(lambda: log.payload(ENTRY))


def test_a_log_that_was_closed_or_cannot_be_made_says_so(path: Path) -> None:
    log = opened(path)
    log.close()
    log.close()
    refused(lambda: log.payload(ENTRY))
    refused(lambda: opened(path.parent / "absent" / "egress.jsonl"))
    refused(lambda: read(path.parent / "absent"))


def work(path: Path, first: int, say: Callable[[int], None]) -> None:
    with opened(path) as log:
        for number in range(first, 1 << 30):
            log.control("Heartbeat", number, PEER)
            say(number)


def test_a_kill_loses_no_line_whose_bytes_may_have_left(path: Path) -> None:
    dice, first = random.Random(5), 0
    for _ in range(5):
        said = said_until_killed(partial(work, path, first), dice.randrange(1, 40))
        found = sizes(read(path))
        assert found == list(range(len(found)))
        assert len(found) in (said[-1] + 1, said[-1] + 2)
        first = len(found)
