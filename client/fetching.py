"""A site without its backbone: it says what is missing and takes what the operator sends, until every file is right.

What is sent is of no consequence: a file is kept under its name only when its SHA-256 is the manifest's, and loading
compares once more. The one thing that leaves is a place in files that everybody knows. Loads without torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import rfc8785

from client.egress import Egress, EgressEntry
from client.ledger import Ledger
from client.ledger.witness import Witness
from client.site import proof_of_identity
from common import backbone as backbones
from common import errors
from common.agreement import Agreement
from common.chunks import CHUNK, CHUNK_BYTES, NEED, PLACE, SIZE, Place, file_digests, parse_size
from common.errors import ConsiliumError
from common.identity import Identity, SiteId, parse_public_key
from common.logs import log
from common.messages import ANYONE, OPERATOR, Sealed, Stage, unseal
from common.sqlite_files import sync_folder
from common.study import BackboneManifest

_log = log("consilium.fetching")
_TRIES = 3
"""Times that a file may come wrong before nothing more is taken; a new start of the daemon counts anew."""
_MOST_BYTES = 64 << 30
"""Longest file that is begun with: the manifest does not say how long one is."""
_RESERVE_BYTES = 1 << 30
"""Left free on the disk, whatever is sent."""


def cache_folder(backbones_folder: Path, manifest: BackboneManifest) -> Path:
    """Return where a manifest's files are kept: another manifest has another folder."""
    canonical = rfc8785.dumps(manifest.model_dump(mode="json"))
    return backbones_folder / hashlib.sha256(canonical).hexdigest()


class Cache:
    """A manifest's files in a folder, as far as they have come. For one process at a time.

    folder  made where it is not there. A file there is compared with the manifest, and thrown away if it is another

    Raises CSL-303 for a manifest with files of another kind than a backbone's, CSL-306 for the disk.
    """

    def __init__(self, folder: Path, manifest: BackboneManifest) -> None:
        backbones.check_names(manifest)
        self._folder, self._files = folder, file_digests(manifest)
        self._file = self._offset = self._wrong = 0
        with _coded(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._pass_over_whole_files()

    @property
    def need(self) -> Place | None:
        """From where on bytes are missing, by what is on disk; None where every file is here."""
        return None if self._file == len(self._files) else Place(self._file, self._offset)

    def add(self, place: Place, size: int, chunk: bytes) -> None:
        """Take a chunk of a file that has a size; on disk afterwards. One that belongs elsewhere is passed over.

        Raises CSL-130 for a chunk that does not fit its file, CSL-302 where a file came wrong too often, CSL-306.
        A call that raised has kept nothing of the chunk.
        """
        if self._wrong >= _TRIES:
            raise ConsiliumError(errors.BACKBONE_CHANGED, f"what the operator sent was wrong {_TRIES} times")
        if place != self.need:
            return
        # Without bytes, and only so, a file may end that was whole already.
        fits = place.offset + len(chunk) <= size if chunk else place.offset >= size
        if not fits or len(chunk) > CHUNK_BYTES or size > _MOST_BYTES:
            raise ConsiliumError(errors.MESSAGE_MALFORMED, f"{len(chunk)} bytes at {place.offset} of {size}")
        with _coded(self._folder):
            self._append(chunk)
            if self._offset >= size:
                self._finish()

    def _append(self, chunk: bytes) -> None:
        if shutil.disk_usage(self._folder).free < len(chunk) + _RESERVE_BYTES:
            raise ConsiliumError(errors.BACKBONE_UNWRITABLE, f"less than {_RESERVE_BYTES:,} bytes would be left free")
        descriptor = os.open(self._part, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            written = os.pwrite(descriptor, chunk, self._offset)
            os.fdatasync(descriptor)
        except OSError:
            os.ftruncate(descriptor, self._offset)
            raise
        finally:
            os.close(descriptor)
        # Where only some of it was written, the rest is what is missing next.
        self._offset += written

    def _finish(self) -> None:
        """Give a file its name if it is right, or throw it away."""
        name, digest = self._files[self._file]
        if _digest_of(self._part) != digest:
            self._part.unlink()
            self._offset, self._wrong = 0, self._wrong + 1
            _log.warning("a file came wrong", file=name, times=self._wrong)
            return
        whole = self._folder / name
        whole.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.replace(self._part, whole)
        sync_folder(whole.parent)
        _log.info("a file came", file=name, size=self._offset)
        self._file += 1
        self._pass_over_whole_files()

    def _pass_over_whole_files(self) -> None:
        """Go on to the first file that is not here."""
        while self._file < len(self._files):
            name, digest = self._files[self._file]
            whole = self._folder / name
            if not whole.is_file():
                break
            if _digest_of(whole) != digest:
                _log.warning("a file was changed", file=name)
                whole.unlink()
                break
            self._file += 1
        part = self._part
        self._offset = part.stat().st_size if self.need is not None and part.is_file() else 0

    @property
    def _part(self) -> Path:
        """Where the bytes of the file in hand are; no file of a manifest begins with a dot."""
        return self._folder / f".{self._file}.part"


class Fetching:
    """A site of one study until it has the backbone.

    folder  where the backbone's files come
    record  told of everything that leaves before it does

    Raises CSL-122 for a key that is not the roster's, and what :class:`Cache` raises.
    """

    def __init__(
        self,
        agreement: Agreement,
        site: SiteId,
        identity: Identity,
        ledger: Ledger,
        folder: Path,
        *,
        record: Callable[[EgressEntry], None],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        study = agreement.study
        if study.member(site).public_key != identity.public_key:
            raise ConsiliumError(errors.IDENTITY_UNKNOWN, f"{site} holds another key than the roster")
        self.digest = agreement.digest
        self._study, self._site, self._clock = study, site, clock
        self._operator_key = parse_public_key(study.operator)
        self._cache = Cache(folder, study.backbone)
        witness = Witness(identity, ledger.name, os.urandom)
        # No sum is taken part in from here: there is no vector yet.
        self._egress = Egress(
            study, site, identity, dimension=0, cells=0, witness=lambda: witness.seal(ledger.head()), write=record
        )

    @property
    def is_complete(self) -> bool:
        """Whether the site can be opened."""
        return self._cache.need is None

    def answer(self, stage: Stage, sealed: Sealed) -> Sealed | None:
        """Answer one request; returns None once every file is here, and the site itself is to answer it.

        Raises a coded error and lets nothing out if anything is wrong with the request.
        """
        self._study.check_valid_at(self._clock())
        if stage not in (Stage.IDENTIFY, Stage.BACKBONE):
            raise ConsiliumError(errors.BACKBONE_MISSING, "it is still coming from the operator")
        recipient = ANYONE if stage is Stage.IDENTIFY else self._site
        request = unseal(
            sealed, self._operator_key, study=self.digest, stage=stage, sender=OPERATOR, recipient=recipient
        )
        parts = dict(proof_of_identity(request)) if stage is Stage.IDENTIFY else {}
        if stage is Stage.BACKBONE:
            place = Place.parse(request.part(PLACE), self._study.backbone)
            self._cache.add(place, parse_size(request.part(SIZE)), request.part(CHUNK))
        need = self._cache.need
        if need is None:
            return None
        return self._egress.release(request, {**parts, NEED: need.dump()})


def _digest_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextlib.contextmanager
def _coded(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConsiliumError(errors.BACKBONE_UNWRITABLE, f"{folder}: {error.strerror}") from error
