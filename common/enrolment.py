"""How a hospital joins a consortium: three small files that go back and forth, each safe to be read by anybody.

The operator hands out a consortium file. A hospital answers with a join request, signed by its identity, which holds
public keys and a certificate request. The operator's admission holds the certificate. Private keys never move, and what
makes a file genuine is the fingerprint that people compare by telephone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import rfc8785
from pydantic import Field, StringConstraints, ValidationError

from common import errors
from common.errors import ConsiliumError
from common.identity import Domain, Identity, PublicKey, parse_public_key, verify
from common.parts import Hex32, Line, Name, Part, describe

Pem = Annotated[str, StringConstraints(min_length=1, max_length=20_000)]
Host = Annotated[str, StringConstraints(pattern=r"^[^\s/]{1,255}:[0-9]{1,5}$")]
P = TypeVar("P", bound=Part)
_MOST_BYTES = 200_000


class ConsortiumFile(Part):
    """What an operator hands to hospitals.

    server  host:port
    ca      the certificate by which the server is known
    """

    format: Literal["consilium-consortium-1"] = "consilium-consortium-1"
    name: Line
    operator: Hex32
    server: Host
    ca: Pem


class JoinRequest(Part):
    """What a hospital answers.

    band      its public size: about how many patients or records, rounded
    node      public node key
    request   PKCS#10, for the certificate with which it opens connections
    """

    format: Literal["consilium-join-1"] = "consilium-join-1"
    site: Name
    operator: Hex32
    identity: Hex32
    band: int = Field(ge=1, le=100_000_000)
    node: Pem
    request: Pem


class Admission(Part):
    """What an operator gives back."""

    format: Literal["consilium-admission-1"] = "consilium-admission-1"
    site: Name
    operator: Hex32
    identity: Hex32
    certificate: Pem
    ca: Pem


class _Sealed(Part):
    body: dict[str, object]
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]


def write_consortium(path: Path, consortium: ConsortiumFile) -> None:
    """Write a consortium file; raises CSL-142 where there is one, CSL-143."""
    _write(path, consortium.model_dump(mode="json"))


def read_consortium(path: Path) -> ConsortiumFile:
    """Read a consortium file; raises CSL-140."""
    return _validated(ConsortiumFile, _read(path), path)


def write_request(path: Path, request: JoinRequest, identity: Identity) -> None:
    """Sign and write a join request; raises CSL-142 where there is one, CSL-143."""
    _write_signed(path, request, Domain.JOIN, identity)


def read_request(path: Path, operator: PublicKey) -> JoinRequest:
    """Read a join request that its own identity key signed; raises CSL-140, CSL-121, CSL-141 for another operator."""
    request = _read_signed(path, JoinRequest, Domain.JOIN, lambda found: parse_public_key(found.identity))
    if parse_public_key(request.operator) != operator:
        raise ConsiliumError(errors.ENROLMENT_FOREIGN, f"{path.name} is for another operator")
    return request


def write_admission(path: Path, admission: Admission, operator: Identity) -> None:
    """Sign and write an admission, in place of an older one; raises CSL-143."""
    path.unlink(missing_ok=True)
    _write_signed(path, admission, Domain.ADMISSION, operator)


def read_admission(path: Path, operator: PublicKey, site: str, identity: PublicKey) -> Admission:
    """Read an admission signed by the operator that is known here; raises CSL-140, CSL-121, CSL-141 if not for us."""
    admission = _read_signed(path, Admission, Domain.ADMISSION, lambda _found: operator)
    if admission.site != site or parse_public_key(admission.identity) != identity:
        raise ConsiliumError(errors.ENROLMENT_FOREIGN, f"{path.name} admits {admission.site}")
    return admission


def backbone_table(package: str | None, folder: Path | None) -> str:
    """Return the ``[backbone]`` table of a new home's file, TOML; empty where neither is named."""
    if package is not None:
        return f'[backbone]\npackage = "{package}"\n'
    return "" if folder is None else f'[backbone]\nfolder = "{folder.resolve()}"\n'


def check_empty(folder: Path) -> None:
    """Raise CSL-142 for a folder that holds something."""
    if folder.exists() and any(folder.iterdir()):
        raise ConsiliumError(errors.ENROLMENT_THERE, str(folder))


@contextmanager
def written(place: Path) -> Iterator[None]:
    """Turn what the disk refuses inside into CSL-143, which names a place."""
    try:
        yield
    except OSError as error:
        raise ConsiliumError(errors.ENROLMENT_UNWRITABLE, f"{place}: {error.strerror}") from error


def _write_signed(path: Path, body: Part, domain: Domain, identity: Identity) -> None:
    fields = body.model_dump(mode="json")
    _write(path, {"body": fields, "signature": identity.sign(domain, rfc8785.dumps(fields)).hex()})


def _read_signed(path: Path, kind: type[P], domain: Domain, key_of: Callable[[P], PublicKey]) -> P:
    sealed = _validated(_Sealed, _read(path), path)
    body = _validated(kind, sealed.body, path)
    # What was signed is what the fields say, whatever the file's white space.
    verify(key_of(body), domain, rfc8785.dumps(body.model_dump(mode="json")), bytes.fromhex(sealed.signature))
    return body


def _write(path: Path, fields: dict[str, object]) -> None:
    try:
        with path.open("x", encoding="utf-8") as stream:
            stream.write(json.dumps(fields, indent=1, sort_keys=True) + "\n")
    except FileExistsError as error:
        raise ConsiliumError(errors.ENROLMENT_THERE, str(path)) from error
    except OSError as error:
        raise ConsiliumError(errors.ENROLMENT_UNWRITABLE, f"{path}: {error.strerror}") from error


def _read(path: Path) -> dict[str, object]:
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MOST_BYTES + 1)
        found = json.loads(raw) if len(raw) <= _MOST_BYTES else None
    except OSError as error:
        raise ConsiliumError(errors.ENROLMENT_INVALID, f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConsiliumError(errors.ENROLMENT_INVALID, f"{path}: it is not JSON") from error
    if not isinstance(found, dict):
        raise ConsiliumError(errors.ENROLMENT_INVALID, f"{path}: not a file of Consilium's")
    return found


def _validated(kind: type[P], fields: dict[str, object], path: Path) -> P:
    try:
        return kind.model_validate_json(json.dumps(fields))
    except (ValidationError, ValueError) as error:
        seen = describe(error) if isinstance(error, ValidationError) else type(error).__name__
        raise ConsiliumError(errors.ENROLMENT_INVALID, f"{path}: {seen}") from error
