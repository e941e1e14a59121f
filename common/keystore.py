"""Private keys at rest, each in an encrypted PKCS#8 file of its own, and where the passphrase comes from.

A line before the PEM block names the public key: AES-CBC, which PKCS#8 has, notices no damage by itself, and what opens
must be the key that was written. Passphrases are stretched by 2,048 rounds of PBKDF2 only (what `cryptography` does for
PKCS#8), so whoever copies a file can guess fast: use random ones, such as a credential of systemd. A key is never
overwritten, and never read from a file that others may read.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from common import errors
from common.errors import ConsiliumError
from common.identity import Identity
from common.sqlite_files import sync_folder

MAX_PASSPHRASE_BYTES = 1023
"""The longest that `cryptography` takes for PKCS#8."""
_MAX_FILE_BYTES = 1 << 16
_PUBLIC = b"Public key: "


def read_passphrase(source: str) -> bytes:
    """Take a passphrase from where it is kept, 1 to 1,023 bytes; raises CSL-155, never showing what was there.

    source   ``fd:N``             read to its end, then closed
             ``env:NAME``         which child processes no longer see; the kernel still shows it to this user and root
             ``credential:NAME``  a file in the folder that $CREDENTIALS_DIRECTORY names (systemd)

    One newline at the end of a descriptor or a file is not part of it.
    """
    kind, _, name = source.partition(":")
    if kind == "fd" and re.fullmatch(r"[0-9]{1,9}", name):
        found = _stripped(_read_descriptor(int(name)))
    elif kind == "env" and re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        found = os.fsencode(os.environ.pop(name, ""))
    elif kind == "credential" and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.@-]*", name):
        found = _stripped(_read_credential(name))
    else:
        raise ConsiliumError(errors.PASSPHRASE_SOURCE, "write fd:N, env:NAME or credential:NAME")
    _check_passphrase(found, f"{kind}:{name}")
    return found


def write_identity(path: Path, identity: Identity, passphrase: bytes) -> None:
    """Write a site's or an operator's key into a new file, mode 0600, durably.

    Raises CSL-153 if there is a file already, CSL-154 if it cannot be written, CSL-155 for a passphrase out of range.
    """
    _write(path, Ed25519PrivateKey.from_private_bytes(identity.private_bytes()), passphrase)


def read_identity(path: Path, passphrase: bytes) -> Identity:
    """Read a key that :func:`write_identity` wrote.

    Raises CSL-150 if there is none that can be read, CSL-151 for a wrong passphrase, a damaged file or another kind of
    key, CSL-152 if others may read it.
    """
    key = _read(path, passphrase)
    if not isinstance(key, Ed25519PrivateKey):
        raise ConsiliumError(errors.KEY_UNREADABLE, f"{path}: not an Ed25519 key")
    return Identity.from_private_bytes(key.private_bytes_raw())


def generate_node_key() -> ec.EllipticCurvePrivateKey:
    """Draw a key for a site's node, on P-256: Flower takes any curve, and every call of the link is signed."""
    return ec.generate_private_key(ec.SECP256R1())


def write_node_key(path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes) -> None:
    """Write a node's key into a new file; raises as :func:`write_identity`."""
    _write(path, key, passphrase)


def read_node_key(path: Path, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a key that :func:`write_node_key` wrote; raises as :func:`read_identity`."""
    key = _read(path, passphrase)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ConsiliumError(errors.KEY_UNREADABLE, f"{path}: not a key on P-256")
    return key


def _write(path: Path, key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes) -> None:
    _check_passphrase(passphrase, "the passphrase")
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(passphrase))
    content = _PUBLIC + _public_name(key) + b"\n" + pem
    try:
        descriptor, fresh = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".new", dir=path.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            # A link, unlike a rename, never replaces what is there.
            os.link(fresh, path)
        finally:
            with suppress(OSError):
                os.unlink(fresh)
        sync_folder(path.parent)
    except FileExistsError as error:
        raise ConsiliumError(errors.KEY_EXISTS, str(path)) from error
    except OSError as error:
        raise ConsiliumError(errors.KEY_UNWRITABLE, f"{path}: {error.strerror}") from error


def _read(path: Path, passphrase: bytes) -> object:
    """Return the key in a file: one that is the file's own named public key's."""
    content = _read_private(path)
    try:
        key = load_pem_private_key(content, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # TypeError says that the passphrase is empty, or the key not encrypted.
        raise ConsiliumError(errors.KEY_UNREADABLE, str(path)) from error
    if not isinstance(key, (Ed25519PrivateKey, ec.EllipticCurvePrivateKey)):
        raise ConsiliumError(errors.KEY_UNREADABLE, f"{path}: another kind of key")
    if content.partition(b"\n")[0] != _PUBLIC + _public_name(key):
        raise ConsiliumError(errors.KEY_UNREADABLE, f"{path}: it is not the key that was written")
    return key


def _read_private(path: Path) -> bytes:
    """Return a file's content; raises CSL-150, or CSL-152 where its mode lets others at it."""
    try:
        # Not to wait for a writer where there is a pipe.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise ConsiliumError(errors.KEY_MISSING, f"{path}: not a file")
            if about.st_mode & 0o077:
                raise ConsiliumError(errors.KEY_EXPOSED, f"{path}: mode {stat.S_IMODE(about.st_mode):04o}")
            return file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConsiliumError(errors.KEY_MISSING, f"{path}: {error.strerror}") from error


def _public_name(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    """Return the public key in hex digits: the raw one of Ed25519, the compressed point of P-256."""
    if isinstance(key, Ed25519PrivateKey):
        return key.public_key().public_bytes_raw().hex().encode()
    return key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint).hex().encode()


def _check_passphrase(passphrase: bytes, where: str) -> None:
    if not passphrase:
        raise ConsiliumError(errors.PASSPHRASE_SOURCE, f"{where}: there is none")
    if len(passphrase) > MAX_PASSPHRASE_BYTES:
        raise ConsiliumError(errors.PASSPHRASE_SOURCE, f"{where}: longer than {MAX_PASSPHRASE_BYTES} bytes")


def _read_descriptor(descriptor: int) -> bytes:
    return _read_bounded(lambda: descriptor, f"fd:{descriptor}")


def _read_credential(name: str) -> bytes:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        raise ConsiliumError(errors.PASSPHRASE_SOURCE, "CREDENTIALS_DIRECTORY is not set")
    return _read_bounded(lambda: os.open(Path(folder) / name, os.O_RDONLY), f"credential:{name}")


def _read_bounded(open_: Callable[[], int], where: str) -> bytes:
    """Return all that is there and close it; a little more than a passphrase may have is enough to refuse it."""
    try:
        with open(open_(), "rb") as file:
            return file.read(MAX_PASSPHRASE_BYTES + 2)
    except (OSError, OverflowError) as error:
        raise ConsiliumError(errors.PASSPHRASE_SOURCE, f"{where}: {type(error).__name__}") from error


def _stripped(content: bytes) -> bytes:
    return content.removesuffix(b"\n")
