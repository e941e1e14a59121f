"""An archive gives back what was put in, for its owner alone, or nothing at all."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import pytest

from common import archive
from common.archive import seal, unseal, walk
from common.errors import ConsiliumError

PASSPHRASE = b"a passphrase"
LONG = bytes(range(256)) * 1024


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a second a passphrase is for guessers, not for tests."""
    monkeypatch.setattr(archive, "_COST", 1 << 4)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    (folder / "keys" / "empty").mkdir(parents=True)
    (folder / "keys" / "a.pem").write_bytes(b"short")
    (folder / "b.log").write_bytes(LONG)
    (folder / ".c.new").write_bytes(b"being written")
    (folder / "link").symlink_to(folder / "b.log")
    return folder


@pytest.fixture
def sealed(home: Path, tmp_path: Path) -> Path:
    out = tmp_path / "archive"
    seal(out, "client", PASSPHRASE, walk(home, lambda name: True))
    return out


def refused(code: str, call: Callable[[], object]) -> None:
    with pytest.raises(ConsiliumError, match=code):
        call()


def test_what_was_put_in_comes_out_for_its_owner_alone(sealed: Path, tmp_path: Path) -> None:
    unseal(sealed, "client", PASSPHRASE, tmp_path / "out")
    found = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*")}
    assert sorted(found) == ["b.log", "keys", "keys/a.pem", "keys/empty"]
    assert (found["b.log"].read_bytes(), found["keys/a.pem"].read_bytes()) == (LONG, b"short")
    assert {path.stat().st_mode & 0o777 for path in found.values() if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in found.values() if path.is_dir()} == {0o700}
    assert sealed.stat().st_mode & 0o777 == 0o600


def test_nothing_of_it_can_be_read_without_the_passphrase(sealed: Path, tmp_path: Path) -> None:
    content = sealed.read_bytes()
    assert b"a.pem" not in content
    assert LONG[:64] not in content
    refused("CSL-170", lambda: unseal(sealed, "client", b"another", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_other_sides_archive_is_refused(sealed: Path, tmp_path: Path) -> None:
    refused("CSL-170", lambda: unseal(sealed, "server", PASSPHRASE, tmp_path / "out"))


def _changed(content: bytes) -> dict[str, bytes]:
    head, chunk = len(b"consilium-backup/1 client\n") + 16, (1 << 16) + 16
    first, second = content[head : head + chunk], content[head + chunk : head + 2 * chunk]
    assert len(content) > head + 3 * chunk
    return {
        "a bit": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "the salt": content[: head - 1] + bytes([content[head - 1] ^ 1]) + content[head:],
        "cut within a chunk": content[:-1],
        "cut between chunks": content[: head + 2 * chunk],
        "no chunk": content[:head],
        "half a head": content[:30],
        "more at the end": content + b"\0",
        "chunks exchanged": content[:head] + second + first + content[head + 2 * chunk :],
        "a chunk left out": content[:head] + second + content[head + 2 * chunk :],
        "empty": b"",
    }


def test_whatever_was_changed_is_found_before_a_byte_is_written(sealed: Path, tmp_path: Path) -> None:
    for what, content in _changed(sealed.read_bytes()).items():
        sealed.write_bytes(content)
        refused("CSL-170", lambda: unseal(sealed, "client", PASSPHRASE, tmp_path / "out"))
        assert not (tmp_path / "out").exists(), what


def test_no_file_is_overwritten_on_either_way(home: Path, sealed: Path) -> None:
    before = sealed.read_bytes()
    refused("CSL-142", lambda: seal(sealed, "client", PASSPHRASE, walk(home, lambda name: True)))
    refused("CSL-142", lambda: unseal(sealed, "client", PASSPHRASE, home))
    assert sealed.read_bytes() == before


def test_a_name_that_leads_out_of_the_folder_is_refused(home: Path, tmp_path: Path) -> None:
    for name in ("../stray", "/stray", "keys/../../stray"):
        out = tmp_path / f"archive-{len(name)}"
        seal(out, "client", PASSPHRASE, [(PurePosixPath(name), home / "b.log")])
        refused("CSL-170", lambda: unseal(out, "client", PASSPHRASE, tmp_path / "out" / out.name))  # noqa: B023
    assert not (tmp_path / "stray").exists()


def test_a_link_in_it_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "archive"
    with out.open("wb") as file:
        sealing = archive._Sealing(file, archive._header("client"), PASSPHRASE)
        with tarfile.open(fileobj=cast(BinaryIO, sealing), mode="w|") as tar:
            link = tarfile.TarInfo("link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(link)
        sealing.finish()
    refused("CSL-170", lambda: unseal(out, "client", PASSPHRASE, tmp_path / "out"))


def test_a_file_that_is_gone_when_its_turn_comes_is_left_out(home: Path, tmp_path: Path) -> None:
    members = list(walk(home, lambda name: True))
    (home / "keys" / "a.pem").unlink()
    seal(tmp_path / "archive", "client", PASSPHRASE, members)
    unseal(tmp_path / "archive", "client", PASSPHRASE, tmp_path / "out")
    assert not (tmp_path / "out" / "keys" / "a.pem").exists()
    assert (tmp_path / "out" / "b.log").read_bytes() == LONG


def test_what_cannot_be_read_or_written_is_said(home: Path, tmp_path: Path) -> None:
    refused("CSL-171", lambda: seal(tmp_path / "no" / "archive", "client", PASSPHRASE, []))
    refused("CSL-171", lambda: unseal(tmp_path / "no", "client", PASSPHRASE, tmp_path / "out"))


def test_two_archives_of_one_folder_share_no_chunk(home: Path, sealed: Path, tmp_path: Path) -> None:
    seal(tmp_path / "second", "client", PASSPHRASE, walk(home, lambda name: True))
    assert sealed.read_bytes()[26:] != (tmp_path / "second").read_bytes()[26:]
    assert sealed.read_bytes()[-200:] != (tmp_path / "second").read_bytes()[-200:]
