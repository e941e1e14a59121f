"""One encrypted file that holds a folder: what `backup` writes and `restore` reads on either side.

A line that says whose it is, a salt, then a tar stream in chunks under AES-256-GCM. The key comes from the passphrase
by scrypt (RFC 7914) with a salt of its own, so that no two files share a key. A chunk's nonce is its number and whether
it is the last: chunks cannot be exchanged, left out, or missing at the end [STREAM, Hoang et al. 2015].
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common import errors
from common.enrolment import check_empty
from common.errors import ConsiliumError
from common.sqlite_files import sync_folder

Side = Literal["client", "server"]
Member = tuple[PurePosixPath, Path | None]
"""Where it will lie below the folder, and the file that holds its bytes now; None for a folder."""
_CHUNK, _TAG, _SALT = 1 << 16, 16, 16
_COST = 1 << 17  # 128 MiB and about half a second for each passphrase that is tried


def seal(out: Path, side: Side, passphrase: bytes, members: Iterable[Member]) -> None:
    """Write an archive, mode 0600, synced; there is a whole one under its name or none.

    members  in the order in which they are to be restored; one that is gone when it is read is left out, and one that
             grows is taken as long as it is when its turn comes
    Raises CSL-142 where the name is taken, CSL-171.
    """
    fresh = out.with_name(f".{out.name}.new")
    with _coded(out):
        if out.exists():
            raise ConsiliumError(errors.ENROLMENT_THERE, str(out))
        try:
            with open(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as file:
                sealing = _Sealing(file, _header(side), passphrase)
                with tarfile.open(fileobj=cast(BinaryIO, sealing), mode="w|", format=tarfile.PAX_FORMAT) as tar:
                    for name, source in members:
                        _add(tar, name, source)
                sealing.finish()
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, never replaces what is there.
            os.link(fresh, out)
        finally:
            with suppress(OSError):
                fresh.unlink()
        sync_folder(out.parent)


def name_below(home: Path, place: Path) -> PurePosixPath | None:
    """Return where a place is below a home, which is its name in an archive; None where it is not."""
    inside, folder = Path(os.path.abspath(place)), Path(os.path.abspath(home))
    return PurePosixPath(inside.relative_to(folder)) if inside.is_relative_to(folder) else None


def unseal(archive: Path, side: Side, passphrase: bytes, folder: Path) -> None:
    """Put an archive's members into an empty folder, for their owner alone: files 0600, folders 0700.

    All of it is verified before the first byte is written. Raises CSL-142 for a folder that holds something, CSL-170,
    CSL-171.
    """
    with _coded(archive):
        check_empty(folder)
        with archive.open("rb") as file:
            opening = _Opening(file, _header(side), passphrase)
            while opening.read(_CHUNK):
                pass
            opening.rewind()
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tarfile.open(fileobj=cast(BinaryIO, opening), mode="r|") as tar:
                for member in tar:
                    _extract(tar, member, folder)
        sync_folder(folder)


def walk(folder: Path, keep: Callable[[PurePosixPath], bool]) -> Iterator[Member]:
    """Yield what lies below a folder, in order of names; links are passed over, temporary names begin with a dot.

    keep  whether something is wanted; asked for folders before what is in them
    """
    for path in sorted(folder.rglob("*")):
        name = PurePosixPath(path.relative_to(folder))
        wanted = all(keep(part) for part in (*reversed(name.parents[:-1]), name))
        if not wanted or path.is_symlink() or any(one.is_symlink() for one in _between(path, folder)):
            continue
        if path.is_dir():
            yield name, None
        elif path.is_file() and not name.name.startswith("."):
            yield name, path


def _between(path: Path, folder: Path) -> Iterator[Path]:
    return (parent for parent in path.parents if folder in parent.parents)


def _header(side: Side) -> bytes:
    return b"consilium-backup/1 %b\n" % side.encode()


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])


def _cipher(passphrase: bytes, salt: bytes) -> AESGCM:
    return AESGCM(Scrypt(salt=salt, length=32, n=_COST, r=8, p=1).derive(passphrase))


class _Sealing:
    """Takes a stream and writes its chunks."""

    def __init__(self, file: BinaryIO, header: bytes, passphrase: bytes) -> None:
        salt = os.urandom(_SALT)
        self._file, self._about, self._number, self._held = file, header + salt, 0, bytearray()
        self._cipher = _cipher(passphrase, salt)
        file.write(self._about)

    def write(self, data: bytes) -> int:
        self._held += data
        while len(self._held) > _CHUNK:
            self._put(bytes(self._held[:_CHUNK]), last=False)
            del self._held[:_CHUNK]
        return len(data)

    def finish(self) -> None:
        self._put(bytes(self._held), last=True)

    def _put(self, chunk: bytes, *, last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, last), chunk, self._about))
        self._number += 1


class _Opening:
    """Gives the stream back; raises CSL-170 for a chunk that is not what was written where it stands."""

    def __init__(self, file: BinaryIO, header: bytes, passphrase: bytes) -> None:
        self._file, self._about = file, file.read(len(header) + _SALT)
        if self._about[: len(header)] != header:
            raise ConsiliumError(errors.BACKUP_INVALID, f"it does not begin with {header.decode().strip()!r}")
        self._cipher = _cipher(passphrase, self._about[len(header) :])
        self.rewind()

    def rewind(self) -> None:
        self._file.seek(len(self._about))
        self._number, self._held = 0, b""
        self._next = self._file.read(_CHUNK + _TAG)

    def read(self, size: int) -> bytes:
        while len(self._held) < size and self._next:
            sealed, self._next = self._next, self._file.read(_CHUNK + _TAG)
            try:
                self._held += self._cipher.decrypt(_nonce(self._number, not self._next), sealed, self._about)
            except (InvalidTag, ValueError) as error:
                raise ConsiliumError(errors.BACKUP_INVALID, f"chunk {self._number + 1}") from error
            self._number += 1
        if not self._number:
            raise ConsiliumError(errors.BACKUP_INVALID, "it is cut short")
        found, self._held = self._held[:size], self._held[size:]
        return found


def _add(tar: tarfile.TarFile, name: PurePosixPath, source: Path | None) -> None:
    about = tarfile.TarInfo(str(name))
    if source is None:
        about.type = tarfile.DIRTYPE
        tar.addfile(about)
        return
    with suppress(FileNotFoundError), source.open("rb") as file:
        found = os.fstat(file.fileno())
        about.size, about.mtime = found.st_size, int(found.st_mtime)
        tar.addfile(about, file)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    name = PurePosixPath(member.name)
    content = tar.extractfile(member) if member.isreg() else None
    if name.is_absolute() or ".." in name.parts or not (content or member.isdir()):
        raise ConsiliumError(errors.BACKUP_INVALID, f"{member.name} is not a file or folder below its own")
    place = folder / name
    for made in (*reversed(place.parents), *((place,) if content is None else ())):
        if not made.exists():
            made.mkdir(mode=0o700)
    if content is None:
        return
    with open(os.open(place, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        while block := content.read(_CHUNK):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    os.utime(place, (member.mtime, member.mtime))


@contextmanager
def _coded(path: Path) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise ConsiliumError(errors.BACKUP_INVALID, f"{path}: {error}") from error
    except OSError as error:
        raise ConsiliumError(errors.BACKUP_UNWRITABLE, f"{path}: {error.strerror or error}") from error
