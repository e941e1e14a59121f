"""A folder of sealed files under a budget of bytes, shared by processes; the file that was used longest ago goes first.

A file is written under another name, as large from the start as it will be, and gets its own once it is whole and
synced: a crash leaves nothing that is ever read. Every name is a keyed hash, so it tells nobody whose data a file was
made from. How large the files are, and when they were used, whoever can list the folder sees: that is about how many
tokens a site has.

A lock on the folder is held while files are looked for and deleted, one on each file for as long as somebody writes
(exclusive) or reads it (shared). What is in use is never deleted, and counts.
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from client.training.sealed import Layout, SealedFile, SealedWriter, refused_by_disk
from common import errors
from common.errors import ConsiliumError

KEY_BYTES = 32
_WHOLE, _PART = ".sealed", ".part"
_log = logging.getLogger("consilium.features")


class SealedFolder:
    """Sealed files that are found by what they were made from, or made.

    path        the folder; made with mode 0700 where there is none
    key         32 bytes of this site alone, such as ``identity.derive_key("consilium/v1/features")``
    most_bytes  all files here together, those of other keys too; whatever else is in the folder is left alone
    """

    def __init__(self, path: Path, key: bytes, most_bytes: int) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        self._path, self._most_bytes = path, most_bytes
        self._naming_key, self._sealing_key = (
            HKDF(hashes.SHA256(), KEY_BYTES, salt=b"consilium/v1/folder", info=purpose).derive(key)
            for purpose in (b"name", b"seal")
        )

    def obtain(self, fingerprint: bytes, sizes: NDArray[np.int64], fill: Callable[[SealedWriter], None]) -> SealedFile:
        """Return the file that was made from this, or make it.

        fingerprint  of all that decides its content
        sizes        (n,) int64, bytes of each record
        fill         writes every record; what it raises is passed on, and no file is left

        A file that is not what was written is deleted, reported (CSL-340), and made anew. While another process makes
        the same file it is waited for. Raises CSL-341 where budget or disk do not allow the file.
        """
        layout = Layout.of(hmac.digest(self._naming_key, fingerprint, "sha256"), sizes)
        if layout.file_bytes > self._most_bytes:
            raise ConsiliumError(errors.FEATURES_NOT_KEPT, "larger than all that the folder may hold")
        name = layout.name.hex()
        whole, part = self._path / f"{name}{_WHOLE}", self._path / f"{name}{_PART}"
        while True:
            written = None
            with self._exclusive():
                with suppress(FileNotFoundError):
                    os.utime(whole)
                self._make_room(0)
                found = _opened(whole, fcntl.LOCK_SH, os.O_RDONLY)
                if found is None:
                    written = _opened(part, fcntl.LOCK_EX, os.O_RDWR | os.O_CREAT)
                if written is not None:
                    self._reserve(written, part, layout.file_bytes)
            if found is not None:
                try:
                    return SealedFile.opened(found, self._sealing_key, layout)
                except ConsiliumError as fault:
                    if fault.fault is not errors.FEATURES_DAMAGED:
                        raise
                    _log.warning("%s", fault)
                    with self._exclusive():
                        whole.unlink(missing_ok=True)
                finally:
                    os.close(found)
            elif written is not None:
                return self._made(written, part, whole, SealedWriter(written, self._sealing_key, layout), fill)
            else:
                _await(part)

    def _made(
        self, written: int, part: Path, whole: Path, writer: SealedWriter, fill: Callable[[SealedWriter], None]
    ) -> SealedFile:
        try:
            fill(writer)
            made = writer.finish()
            with self._exclusive():
                # Its name need not be synced: without it the file is computed again.
                part.replace(whole)
                fcntl.flock(written, fcntl.LOCK_SH)
            return made
        except BaseException:
            with self._exclusive():
                part.unlink(missing_ok=True)
            raise
        finally:
            os.close(written)

    def _reserve(self, written: int, part: Path, size: int) -> None:
        """Make room for a file and give it all its bytes, so that nobody else counts on them."""
        try:
            os.ftruncate(written, 0)
            self._make_room(size)
            os.posix_fallocate(written, 0, size)
        except BaseException:
            part.unlink(missing_ok=True)
            os.close(written)
            raise

    def _make_room(self, size: int) -> None:
        """Delete what a crash left, then files that nobody uses until ``size`` more bytes fit; raises CSL-341."""
        kept = 0
        idle: list[tuple[int, int, Path]] = []
        for path in self._path.iterdir():
            if path.suffix == _PART and _deleted(path):
                continue
            if path.suffix in (_PART, _WHOLE):
                about = path.stat()
                kept += about.st_size
                if path.suffix == _WHOLE:
                    idle.append((about.st_mtime_ns, about.st_size, path))
        for _, freed, path in sorted(idle):
            if kept + size <= self._most_bytes:
                return
            if _deleted(path):
                kept -= freed
        if size and kept + size > self._most_bytes:
            raise ConsiliumError(errors.FEATURES_NOT_KEPT, "files that are in use leave no room in the folder")

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the folder, and turn what the disk says into CSL-341."""
        with refused_by_disk():
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)


def _opened(path: Path, lock: int, flags: int) -> int | None:
    """Return a descriptor that holds a lock on a file; None where there is no file, or another has it."""
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if isinstance(error, BlockingIOError):
            return None
        raise
    return descriptor


def _deleted(path: Path) -> bool:
    """Delete a file unless somebody uses it; returns whether that was done."""
    descriptor = _opened(path, fcntl.LOCK_EX, os.O_RDONLY)
    if descriptor is None:
        return False
    try:
        path.unlink()
    finally:
        os.close(descriptor)
    return True


def _await(part: Path) -> None:
    """Wait until nobody writes a file any more, whether it was finished or not."""
    with refused_by_disk():
        try:
            descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)
