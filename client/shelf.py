"""The studies that a hospital knows, in two folders: `offers/` with what is proposed, `studies/` with what may run.

A study moves by people's hands only: approved by a file beside the offer, withdrawn by taking that file and the study
away. Every study that is returned here carries the signature of the operator whose key is pinned.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import StringConstraints, ValidationError

from client.config import SiteConfig
from common import agreement as agreements
from common import errors
from common.agreement import Approval, SignedStudy, approve, verify_study
from common.durable import folder_whole, write_whole
from common.errors import ConsiliumError
from common.identity import Identity, Signature, SiteId
from common.parts import Digest, Hex32, Name, Part
from common.sqlite_files import sync_folder
from common.study import Study

APPROVAL = "approval.json"
WITHDRAWN = "withdrawn.json"
FEWEST_DIGITS = 8


class ApprovalFile(Part):
    """This site's approval of one study, beside its offer."""

    site: Name
    digest: Hex32
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


class State(StrEnum):
    """Where a study stands at this hospital."""

    OFFERED = "offered"
    APPROVED = "approved"
    RUNNING = "running here"
    WITHDRAWN = "withdrawn"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Known:
    """One study that this hospital knows.

    offer     its folder among the offers
    running   its folders among those that may run
    """

    study: Study
    digest: Digest
    signed: SignedStudy
    offer: Path | None
    running: tuple[Path, ...]

    @property
    def folder(self) -> Path:
        """Where it can be read."""
        return self.running[0] if self.running else self._offered

    @property
    def is_approved(self) -> bool:
        """Whether this site's approval lies beside the offer."""
        if self.offer is None:
            return False
        found = _approval_file(self.offer)
        return found is not None and found.digest == self.digest

    def state_at(self, now: datetime) -> State:
        """Return where it stands; ``now`` must be aware."""
        try:
            self.study.check_valid_at(now)
        except ConsiliumError:
            return State.EXPIRED
        if self.running:
            return State.RUNNING
        if self.is_approved:
            return State.APPROVED
        return State.WITHDRAWN if (self._offered / WITHDRAWN).is_file() else State.OFFERED

    @property
    def _offered(self) -> Path:
        assert self.offer is not None, "a study that is known lies somewhere"
        return self.offer


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A folder that holds no study of this operator's, and why."""

    folder: Path
    error: ConsiliumError


def known(config: SiteConfig) -> tuple[tuple[Known, ...], tuple[Unreadable, ...]]:
    """Return all studies, the newest first, and the folders that hold none that can be believed."""
    found: dict[Digest, Known] = {}
    unreadable = []
    for place, is_offer in ((config.offers, True), (config.studies, False)):
        for folder in _folders(place):
            try:
                signed, _ = agreements.read(folder)
                study = verify_study(signed, config.operator_key)
            except ConsiliumError as error:
                unreadable.append(Unreadable(folder, error))
                continue
            digest = study.digest
            before = found.get(digest) or Known(study, digest, signed, None, ())
            offer, running = (folder, before.running) if is_offer else (before.offer, (*before.running, folder))
            found[digest] = Known(study, digest, signed, offer, running)
    newest = sorted(found.values(), key=lambda one: (one.study.created, one.digest), reverse=True)
    return tuple(newest), tuple(unreadable)


def find(config: SiteConfig, named: str) -> Known:
    """Return the study whose digest begins so, or the one in the folder so named; raises CSL-163, CSL-101 to CSL-105.

    A folder elsewhere is that of a study which came by another way than the link.
    """
    studies, _ = known(config)
    found = [one for one in studies if len(named) >= FEWEST_DIGITS and one.digest.startswith(named)]
    if len(found) == 1:
        return found[0]
    if not found and (Path(named) / "study.json").is_file():
        signed, _ = agreements.read(Path(named))
        study = verify_study(signed, config.operator_key)
        digest = study.digest
        return next((one for one in studies if one.digest == digest), Known(study, digest, signed, Path(named), ()))
    said = "several begin so" if found else f"a folder, or {FEWEST_DIGITS} digits or more of a digest"
    raise ConsiliumError(errors.STUDY_UNKNOWN, f"{named!r}: {said}")


def read_approval(folder: Path, site: SiteId, digest: Digest) -> Approval | None:
    """Return the approval that lies with an offer; None where there is none, or it is for something else."""
    found = _approval_file(folder)
    if found is None or (found.site, found.digest) != (site, digest):
        return None
    return Approval(site, digest, Signature(bytes.fromhex(found.signature)))


def is_running(studies: Path, digest: Digest) -> bool:
    """Return whether a study lies among those that may run, whatever its folder is called."""
    for folder in _folders(studies):
        try:
            if hashlib.sha256((folder / "study.json").read_bytes()).hexdigest() == digest:
                return True
        except OSError:
            continue
    return False


def give_approval(config: SiteConfig, one: Known, identity: Identity) -> Approval:
    """Countersign a study's digest and leave the signature beside the offer, on disk when this returns.

    Raises CSL-104 and CSL-121 to CSL-122 where the operator's signature or this site's key is not the study's, CSL-164.
    Whether the study should be approved is not judged here.
    """
    approval = approve(one.signed, config.site_id, identity, config.operator_key)
    content = ApprovalFile(site=approval.site, digest=approval.digest, signature=approval.signature.hex())
    with _written(config.offers):
        folder = _taken_in(config, one)
        write_whole(folder / APPROVAL, content.model_dump_json().encode())
        (folder / WITHDRAWN).unlink(missing_ok=True)
    return approval


def withdraw(config: SiteConfig, one: Known, now: datetime) -> None:
    """Take back an approval, and take the study away from those that may run; raises CSL-164.

    It stays among the offers, marked, so that people see what became of it. A crash in between leaves it to be
    withdrawn again.
    """
    with _written(config.offers):
        folder = _taken_in(config, one)
        write_whole(folder / WITHDRAWN, f'{{"at":"{now:%Y-%m-%dT%H:%M:%SZ}"}}'.encode())
        (folder / APPROVAL).unlink(missing_ok=True)
        sync_folder(folder)
        for running in one.running:
            # Without this file a folder is no study any more, whatever a crash leaves of it.
            (running / "study.json").unlink()
            sync_folder(running)
            shutil.rmtree(running)


def _approval_file(folder: Path) -> ApprovalFile | None:
    try:
        return ApprovalFile.model_validate_json((folder / APPROVAL).read_bytes())
    except (OSError, ValidationError):
        return None


def _taken_in(config: SiteConfig, one: Known) -> Path:
    """Return the study's folder among the offers, made now where it lies elsewhere."""
    folder = config.offers / one.digest[:16]
    if one.offer is not None and one.offer.parent.resolve() == config.offers.resolve():
        return one.offer
    with folder_whole(folder) as made:
        agreements.write(made, one.signed, ())
    return folder


def _folders(place: Path) -> Iterator[Path]:
    """Yield the folders that hold a study; hidden ones are being written, or removed."""
    if place.is_dir():
        for folder in sorted(place.iterdir()):
            if not folder.name.startswith(".") and (folder / "study.json").is_file():
                yield folder


@contextmanager
def _written(place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConsiliumError(errors.STUDY_UNWRITABLE, f"{place}: {error.strerror}") from error
