"""Keys at rest: what opens is the key that was written, for the owner with the passphrase, and nothing is replaced."""

from __future__ import annotations

import os
import random
import stat
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from common import errors
from common.errors import ConsiliumError, Fault
from common.identity import Identity
from common.keystore import (
    MAX_PASSPHRASE_BYTES,
    generate_node_key,
    read_identity,
    read_node_key,
    read_passphrase,
    write_identity,
    write_node_key,
)
from tests.crashes import full_disk, in_a_process, refused

PASSPHRASE = b"correct horse \x00 battery staple \xff"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "key.pem"


def descriptor_of(content: bytes) -> int:
    reader, writer = os.pipe()
    with open(writer, "wb") as file:
        file.write(content)
    return reader


def test_an_identity_comes_back_by_its_passphrase(path: Path) -> None:
    identity = Identity.generate()
    write_identity(path, identity, PASSPHRASE)
    assert read_identity(path, PASSPHRASE).private_bytes() == identity.private_bytes()


def test_a_node_key_comes_back_by_its_passphrase_and_is_on_p256(path: Path) -> None:
    key = generate_node_key()
    write_node_key(path, key, PASSPHRASE)
    found = read_node_key(path, PASSPHRASE)
    assert found.private_numbers() == key.private_numbers()
    assert isinstance(found.curve, ec.SECP256R1)


def test_other_programs_open_the_file_by_the_same_passphrase(path: Path) -> None:
    identity = Identity.generate()
    write_identity(path, identity, PASSPHRASE)
    key = load_pem_private_key(path.read_bytes(), PASSPHRASE)
    assert isinstance(key, Ed25519PrivateKey)
    assert key.private_bytes_raw() == identity.private_bytes()


def test_the_file_is_the_owners_alone_even_under_a_loose_umask_and_nothing_else_is_left(path: Path) -> None:
    before = os.umask(0)
    try:
        write_identity(path, Identity.generate(), PASSPHRASE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]
    assert b"BEGIN ENCRYPTED PRIVATE KEY" in path.read_bytes()


@pytest.mark.parametrize("wrong", [b"correct horse", PASSPHRASE + b"\n", b""])
def test_no_other_passphrase_opens_it_and_none_is_shown(path: Path, wrong: bytes) -> None:
    write_identity(path, Identity.generate(), PASSPHRASE)
    error = refused(errors.KEY_UNREADABLE, lambda: read_identity(path, wrong))
    assert "horse" not in str(error)


def test_a_flipped_bit_anywhere_never_gives_another_key(path: Path) -> None:
    identity = Identity.generate()
    write_identity(path, identity, PASSPHRASE)
    whole, dice = path.read_bytes(), random.Random(4)
    opened, faults = 0, set[Fault]()
    for place in range(len(whole)):
        changed = bytearray(whole)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            assert read_identity(path, PASSPHRASE).private_bytes() == identity.private_bytes()
            opened += 1
        except ConsiliumError as error:
            faults.add(error.fault)
    assert faults == {errors.KEY_UNREADABLE}
    # What may change is how the block is laid out, such as the last newline.
    assert opened < len(whole) // 20


@pytest.mark.parametrize("length", [0, 1, 100, 250])
def test_a_file_that_was_cut_short_is_refused(path: Path, length: int) -> None:
    write_identity(path, Identity.generate(), PASSPHRASE)
    path.write_bytes(path.read_bytes()[:length])
    refused(errors.KEY_UNREADABLE, lambda: read_identity(path, PASSPHRASE))


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    identity, node, rest = tmp_path / "identity.pem", tmp_path / "node.pem", tmp_path / "rest.pem"
    write_identity(identity, Identity.generate(), PASSPHRASE)
    write_node_key(node, generate_node_key(), PASSPHRASE)
    refused(errors.KEY_UNREADABLE, lambda: read_node_key(identity, PASSPHRASE))
    refused(errors.KEY_UNREADABLE, lambda: read_identity(node, PASSPHRASE))
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    rest.touch(0o600)
    rest.write_bytes(stranger.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(PASSPHRASE)))
    refused(errors.KEY_UNREADABLE, lambda: read_identity(rest, PASSPHRASE))


def test_a_key_on_another_curve_is_refused(path: Path) -> None:
    write_node_key(path, ec.generate_private_key(ec.SECP384R1()), PASSPHRASE)
    refused(errors.KEY_UNREADABLE, lambda: read_node_key(path, PASSPHRASE))


def test_a_key_that_is_not_encrypted_is_refused(path: Path) -> None:
    path.touch(0o600)
    path.write_bytes(Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    refused(errors.KEY_UNREADABLE, lambda: read_identity(path, PASSPHRASE))


@pytest.mark.parametrize("there", ["a key", "an empty file", "a folder", "a link to nowhere"])
def test_what_is_there_is_never_overwritten(path: Path, there: str) -> None:
    if there == "a key":
        write_identity(path, Identity.generate(), PASSPHRASE)
    elif there == "an empty file":
        path.touch()
    elif there == "a folder":
        path.mkdir()
    else:
        path.symlink_to(path.parent / "nowhere")
    before = path.read_bytes() if path.is_file() else None
    refused(errors.KEY_EXISTS, lambda: write_identity(path, Identity.generate(), PASSPHRASE))
    assert (path.read_bytes() if path.is_file() else None) == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_key_that_others_may_touch_is_refused(path: Path, mode: int) -> None:
    write_identity(path, Identity.generate(), PASSPHRASE)
    path.chmod(mode)
    refused(errors.KEY_EXPOSED, lambda: read_identity(path, PASSPHRASE))


def test_where_no_key_is_that_is_said(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("absent.pem", ".", "pipe", "absent/key.pem"):
        refused(errors.KEY_MISSING, partial(read_identity, tmp_path / name, PASSPHRASE))


def test_where_no_key_can_be_written_that_is_said(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "key.pem"
    refused(errors.KEY_UNWRITABLE, lambda: write_identity(absent, Identity.generate(), PASSPHRASE))


def test_a_full_disk_leaves_no_part_of_a_key(path: Path) -> None:
    def fill() -> None:
        with full_disk(100):
            refused(errors.KEY_UNWRITABLE, lambda: write_identity(path, Identity.generate(), PASSPHRASE))

    in_a_process(fill)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("passphrase", [b"", b"x" * (MAX_PASSPHRASE_BYTES + 1)])
def test_no_key_is_written_under_an_empty_or_too_long_passphrase(path: Path, passphrase: bytes) -> None:
    refused(errors.PASSPHRASE_SOURCE, lambda: write_identity(path, Identity.generate(), passphrase))
    assert not path.exists()


@pytest.mark.parametrize(
    ("content", "passphrase"), [(b"p w\n", b"p w"), (b"pw", b"pw"), (b"pw\n\n", b"pw\n"), (b"\npw", b"\npw")]
)
def test_a_descriptor_is_read_to_its_end_and_closed(content: bytes, passphrase: bytes) -> None:
    descriptor = descriptor_of(content)
    assert read_passphrase(f"fd:{descriptor}") == passphrase
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_a_variable_is_taken_out_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSILIUM_TEST_PASSPHRASE", "grüße")
    assert read_passphrase("env:CONSILIUM_TEST_PASSPHRASE") == "grüße".encode()
    assert "CONSILIUM_TEST_PASSPHRASE" not in os.environ
    refused(errors.PASSPHRASE_SOURCE, lambda: read_passphrase("env:CONSILIUM_TEST_PASSPHRASE"))


def test_a_credential_is_a_file_in_the_credentials_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "credentials"
    folder.mkdir()
    (folder / "consilium").write_bytes(b"pw\n")
    (tmp_path / "outside").write_bytes(b"pw")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder))
    assert read_passphrase("credential:consilium") == b"pw"
    for name in ("../outside", "..", ".", "", str(tmp_path / "outside"), "absent", "a\x00b"):
        refused(errors.PASSPHRASE_SOURCE, partial(read_passphrase, f"credential:{name}"))
    monkeypatch.delenv("CREDENTIALS_DIRECTORY")
    refused(errors.PASSPHRASE_SOURCE, lambda: read_passphrase("credential:consilium"))


@pytest.mark.parametrize(
    "source", ["", "hunter2", "fd:", "fd:-1", "fd:x", "fd:٣", "fd:999999", "env:", "env:A=B", "pass:hunter2", "FD:0"]
)
def test_any_other_source_is_refused_without_saying_what_it_was(source: str) -> None:
    assert "hunter2" not in str(refused(errors.PASSPHRASE_SOURCE, lambda: read_passphrase(source)))


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * (MAX_PASSPHRASE_BYTES + 1), b"x" * 10_000])
def test_a_passphrase_that_no_key_can_have_is_refused(content: bytes) -> None:
    descriptor = descriptor_of(content)
    refused(errors.PASSPHRASE_SOURCE, lambda: read_passphrase(f"fd:{descriptor}"))


def test_the_longest_passphrase_is_taken(path: Path) -> None:
    identity = Identity.generate()
    longest = b"x" * MAX_PASSPHRASE_BYTES
    descriptor = descriptor_of(longest + b"\n")
    write_identity(path, identity, read_passphrase(f"fd:{descriptor}"))
    assert read_identity(path, longest).public_key == identity.public_key
