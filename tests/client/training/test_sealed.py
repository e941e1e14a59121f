"""A sealed file gives back what was written, record by record, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.training.sealed import Layout, SealedFile, SealedWriter
from common.errors import ConsiliumError

KEY, OTHER_KEY = bytes(range(32)), bytes(range(1, 33))
NAME, OTHER_NAME = b"n" * 32, b"o" * 32
RECORDS = (b"first record", b"", b"third", b"record four!", b"x" * 5000)


def layout_of(records: tuple[bytes, ...], name: bytes = NAME) -> Layout:
    return Layout.of(name, np.array([len(record) for record in records], dtype=np.int64))


def write(path: Path, records: tuple[bytes, ...] = RECORDS, key: bytes = KEY, name: bytes = NAME) -> SealedFile:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        writer = SealedWriter(descriptor, key, layout_of(records, name))
        for index in reversed(range(len(records))):
            writer.write(index, records[index])
        return writer.finish()
    finally:
        os.close(descriptor)


def opened(path: Path, key: bytes = KEY, name: bytes = NAME, records: tuple[bytes, ...] = RECORDS) -> SealedFile:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return SealedFile.opened(descriptor, key, layout_of(records, name))
    finally:
        os.close(descriptor)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    write(file)
    return file


def test_records_come_back_in_any_order(path: Path) -> None:
    for file in (write(path), opened(path)):
        for index in (4, 0, 3, 1, 0, 2):
            assert file.read(index) == RECORDS[index]


@pytest.mark.parametrize("records", [(), (b"",), (b"", b""), (b"one",)])
def test_few_and_empty_records_are_kept_too(tmp_path: Path, records: tuple[bytes, ...]) -> None:
    write(tmp_path / "file", records)
    file = opened(tmp_path / "file", records=records)
    assert [file.read(index) for index in range(len(records))] == list(records)


def test_every_byte_counts(path: Path) -> None:
    whole = path.read_bytes()
    assert len(whole) == 56 + sum(len(record) + 16 for record in RECORDS)
    for place in (*range(300), len(whole) - 17, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ConsiliumError, match="CSL-340"):
            opened(path)
    path.write_bytes(whole)
    opened(path)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_a_file_cut_short_or_prolonged_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "file"
    write(path)
    whole = path.read_bytes()
    path.write_bytes(
        data.draw(st.one_of(st.integers(0, len(whole) - 1).map(lambda n: whole[:n]), st.just(whole + b"\0")))
    )
    with pytest.raises(ConsiliumError, match="CSL-340"):
        opened(path)


def test_two_records_of_one_size_that_changed_places_are_refused(path: Path) -> None:
    whole, layout = path.read_bytes(), layout_of(RECORDS)
    (start, end), (second, last) = layout.span(0), layout.span(3)
    assert end - start == last - second
    path.write_bytes(whole[:start] + whole[second:last] + whole[end:second] + whole[start:end] + whole[last:])
    with pytest.raises(ConsiliumError, match="CSL-340"):
        opened(path)


def test_a_record_of_another_file_is_refused(path: Path, tmp_path: Path) -> None:
    """Of the same owner, under the same name, even of the same content: each file has a key of its own."""
    write(tmp_path / "again")
    here, there = path.read_bytes(), (tmp_path / "again").read_bytes()
    start, end = layout_of(RECORDS).span(0)
    assert here[start:end] != there[start:end]
    path.write_bytes(here[:start] + there[start:end] + here[end:])
    with pytest.raises(ConsiliumError, match="CSL-340"):
        opened(path)


@pytest.mark.parametrize(("key", "name"), [(OTHER_KEY, NAME), (KEY, OTHER_NAME)])
def test_a_file_of_another_owner_or_name_is_refused(path: Path, key: bytes, name: bytes) -> None:
    with pytest.raises(ConsiliumError, match="CSL-340"):
        opened(path, key, name)


@pytest.mark.parametrize("records", [RECORDS[:-1], (*RECORDS, b""), (RECORDS[0] + b"-", *RECORDS[1:])])
def test_a_file_of_other_sizes_is_refused(path: Path, records: tuple[bytes, ...]) -> None:
    with pytest.raises(ConsiliumError, match="CSL-340"):
        opened(path, records=records)


def test_a_change_after_opening_is_noticed_when_the_record_is_read(path: Path) -> None:
    file = opened(path)
    start, _ = layout_of(RECORDS).span(2)
    with path.open("r+b") as stream:
        stream.seek(start)
        stream.write(b"\xff\x00\xff")
    with pytest.raises(ConsiliumError, match="CSL-340"):
        file.read(2)
    assert file.read(0) == RECORDS[0]


def test_a_file_cut_short_after_opening_is_noticed_and_kills_nobody(path: Path) -> None:
    """Touching a map beyond the end of its file is a SIGBUS."""
    file = opened(path)
    os.truncate(path, 10)
    with pytest.raises(ConsiliumError, match="CSL-340"):
        file.read(4)


def test_before_it_is_finished_it_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    writer = SealedWriter(descriptor, KEY, layout_of(RECORDS))
    for index, record in enumerate(RECORDS[:-1]):
        writer.write(index, record)
    with pytest.raises(ValueError, match="not written"):
        writer.finish()
    writer.write(4, RECORDS[4])
    os.fsync(descriptor)
    with pytest.raises(ConsiliumError, match="CSL-340"):
        opened(path)
    writer.finish()
    os.close(descriptor)
    opened(path)


def test_a_record_is_sealed_once_so_that_no_nonce_is_used_twice(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o600)
    writer = SealedWriter(descriptor, KEY, layout_of(RECORDS))
    writer.write(0, RECORDS[0])
    for index, record in ((0, RECORDS[0]), (2, b"longer than was foreseen")):
        with pytest.raises(ValueError, match="written once"):
            writer.write(index, record)
    os.close(descriptor)


def test_nothing_of_a_record_is_on_disk_in_clear(path: Path) -> None:
    for record in RECORDS:
        assert not record or record[:5] not in path.read_bytes()
