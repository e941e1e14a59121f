"""Who may connect: the operator's home folder, its consortium file, and the sites that were admitted.

A site is two files in ``sites/``: its public node key, which the running server looks for, and its join request, from
which rosters are written. Removing them dismisses the site; no other site notices.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from common import agreement as agreements
from common import errors
from common.agreement import verify_study
from common.durable import write_whole
from common.enrolment import (
    Admission,
    ConsortiumFile,
    JoinRequest,
    check_empty,
    read_consortium,
    read_request,
    write_admission,
    write_consortium,
    written,
)
from common.errors import ConsiliumError
from common.identity import Identity, PublicKey, fingerprint, parse_public_key
from common.keystore import generate_node_key, read_node_key, write_identity, write_node_key
from common.sqlite_files import sync_folder
from server.authority import Authority, requested_key

FILE = "server.toml"
CONSORTIUM = "consortium.json"
_FOLDERS = ("keys", "tls", "sites", "studies", "state")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A site that may connect."""

    site: str
    identity: str
    fingerprint: str
    band: int
    certificate_until: datetime | None


def make_home(
    folder: Path,
    *,
    name: str,
    server: str,
    hosts: tuple[str, ...],
    listen: str,
    health: str | None,
    passphrase: bytes,
    source: str,
    backbone: str,
    deadline: float,
) -> ConsortiumFile:
    """Make an operator's home in an empty folder; returns what hospitals are given, which is in it too.

    server      host:port under which hospitals reach it
    hosts       names and addresses that its certificate holds, the host of ``server`` among them
    listen      host:port to listen on; ``health`` another, on loopback, or None
    passphrase  of every private key in it, and the ``source`` from which the daemon will read it
    backbone    the ``[backbone]`` table, TOML; empty for none
    Raises CSL-142 for a folder that holds something, CSL-143, CSL-15x.
    """
    check_empty(folder)
    with written(folder):
        for made in _FOLDERS:
            (folder / made).mkdir(mode=0o700, parents=True)
    identity = Identity.generate()
    write_identity(folder / "keys" / "identity.pem", identity, passphrase)
    authority, key = Authority.create(name)
    write_node_key(folder / "keys" / "authority.pem", key, passphrase)
    server_key = generate_node_key()
    write_node_key(folder / "tls" / "server.key", server_key, passphrase)
    consortium = ConsortiumFile(
        name=name, operator=identity.public_key.hex(), server=server, ca=authority.certificate.decode()
    )
    with written(folder):
        (folder / "tls" / "ca.pem").write_bytes(authority.certificate)
        (folder / "tls" / "server.pem").write_bytes(authority.server(server_key.public_key(), *hosts))
        text = _FILE.format(listen=listen, health=_health(health), source=source, backbone=backbone, deadline=deadline)
        (folder / FILE).write_text(text, encoding="utf-8")
    write_consortium(folder / CONSORTIUM, consortium)
    return consortium


def admit(home: Path, request_file: Path, identity: Identity, passphrase: bytes, out: Path) -> JoinRequest:
    """Admit a site, or renew its certificate or node key, and write its admission; a running server sees it at once.

    Raises CSL-140, CSL-121, CSL-141 for a request that is not right, CSL-122 where another key has the site's name.
    """
    request = read_request(request_file, identity.public_key)
    known = _request_of(home, request.site)
    if known is not None and known.identity != request.identity:
        raise ConsiliumError(errors.IDENTITY_UNKNOWN, f"{request.site} is {_print(known.identity)}: remove it first")
    authority = _authority(home, passphrase)
    certificate = authority.site(requested_key(request.request.encode()), request.site)
    admission = Admission(
        site=request.site,
        operator=request.operator,
        identity=request.identity,
        certificate=certificate.decode(),
        ca=authority.certificate.decode(),
    )
    write_admission(out, admission, identity)
    with written(home):
        write_whole(home / "sites" / f"{request.site}.json", request_file.read_bytes())
        write_whole(home / "sites" / f"{request.site}.crt", certificate)
        # Last: this is what lets it in.
        write_whole(home / "sites" / f"{request.site}.pem", request.node.encode())
    return request


def renew_server(home: Path, passphrase: bytes) -> datetime:
    """Issue the server's certificate anew, for the same names and key; returns until when it holds.

    A server that runs takes it up when it is started again. Raises CSL-15x, CSL-143.
    """
    old = x509.load_pem_x509_certificate((home / "tls" / "server.pem").read_bytes())
    names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    hosts = [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]
    key = read_node_key(home / "tls" / "server.key", passphrase)
    made = _authority(home, passphrase).server(key.public_key(), *hosts)
    with written(home):
        write_whole(home / "tls" / "server.pem", made)
    return x509.load_pem_x509_certificate(made).not_valid_after_utc


def remove(home: Path, site: str) -> None:
    """Dismiss a site; raises CSL-122 for one that was not admitted."""
    if _request_of(home, site) is None:
        raise ConsiliumError(errors.IDENTITY_UNKNOWN, site)
    with written(home):
        for kind in ("pem", "json", "crt"):
            (home / "sites" / f"{site}.{kind}").unlink(missing_ok=True)
        sync_folder(home / "sites")


def admitted(home: Path) -> tuple[Admitted, ...]:
    """Return every admitted site, in order of names."""
    found = []
    for path in sorted((home / "sites").glob("*.json")):
        request = _request_of(home, path.stem)
        assert request is not None
        certificate = home / "sites" / f"{request.site}.crt"
        until = None
        if certificate.is_file():
            until = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
        found.append(Admitted(request.site, request.identity, _print(request.identity), request.band, until))
    return tuple(found)


def hand_out(home: Path, study: str, out: Path) -> None:
    """Copy a study's release into a new folder; raises CSL-610 where there is none, CSL-142 for a folder that is there.

    study   its name, or the first digits of its digest
    """
    named = home / "studies" / study
    digest = study
    if (named / "study.json").is_file():
        signed, _ = agreements.read(named)
        digest = verify_study(signed, operator_of(home)).digest
    found = sorted((home / "state" / "releases").glob(f"{digest[:16]}*")) if len(digest) >= 8 else []
    if len(found) != 1:
        raise ConsiliumError(errors.RELEASE_INVALID, f"{study} is not released")
    if out.exists():
        raise ConsiliumError(errors.ENROLMENT_THERE, str(out))
    with written(out.parent):
        shutil.copytree(found[0], out)


def _authority(home: Path, passphrase: bytes) -> Authority:
    key = read_node_key(home / "keys" / "authority.pem", passphrase)
    return Authority(key, (home / "tls" / "ca.pem").read_bytes())


def _request_of(home: Path, site: str) -> JoinRequest | None:
    """Return the request by which a site was admitted, as its identity signed it; None for no such site."""
    path = home / "sites" / f"{site}.json"
    return read_request(path, operator_of(home)) if path.is_file() else None


def operator_of(home: Path) -> PublicKey:
    """Return the public key of the operator whose home it is; raises CSL-140."""
    return parse_public_key(read_consortium(home / CONSORTIUM).operator)


def _health(address: str | None) -> str:
    said = "# /healthz, /metrics, /status; loopback only"
    return f'# health = "127.0.0.1:9444"    {said}' if address is None else f'health = "{address}"    {said}'


def _print(key: str) -> str:
    return fingerprint(parse_public_key(key))


_FILE = """\
# The operator's server. Paths are below this file's folder. No secret stands here.
state = "state"                  # journal, witnesses, audit log, releases
studies = "studies"              # one folder a study; they run in order of their names
sites = "sites"                  # who may connect: consilium-server admit and remove write here
listen = "{listen}"
{health}
deadline = {deadline}            # seconds that a round may take
# quorum = 5                     # connected sites to begin a round with, if more than the study needs
# threads = 1
# journal = "postgresql+pg8000://consilium@localhost/consilium"

[tls]
certificate = "tls/server.pem"
key = "tls/server.key"
client_ca = "tls/ca.pem"         # only who has a certificate of this authority can speak at all

[keys]
identity = "keys/identity.pem"
passphrase = "{source}"          # fd:N, env:NAME or credential:NAME

{backbone}"""
