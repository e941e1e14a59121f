"""How a hospital comes into being: keys made here, a join request for the operator, the admission that comes back.

Private keys are drawn on this machine, encrypted before they are on its disk, and never leave. Renewing draws a new key
for connections beside the one in use, which works until the new certificate is installed.
"""

from __future__ import annotations

import re
import tomllib
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from client.config import SiteConfig
from common import errors
from common.durable import write_whole
from common.enrolment import (
    ConsortiumFile,
    JoinRequest,
    check_empty,
    read_admission,
    read_consortium,
    write_request,
    written,
)
from common.errors import ConsiliumError
from common.identity import Identity, PublicKey, fingerprint, parse_public_key
from common.keystore import (
    generate_node_key,
    read_identity,
    read_node_key,
    write_identity,
    write_node_key,
)
from common.sqlite_files import sync_folder

FILE = "site.toml"
REQUEST = "join-request.json"
_FOLDERS = ("keys", "tls", "studies", "offers", "data", "state")
_NEW_KEY = "site.new.key"


def make_home(
    folder: Path, *, site: str, passphrase: bytes, source: str, data: str, backbone: str, policy: str = ""
) -> tuple[str, str]:
    """Make a hospital's home in an empty folder: keys, folders and a commented file.

    source    where the daemon will read the passphrase from
    data      the ``[data]`` table, TOML; an example in comments where empty
    backbone  the ``[backbone]`` table, TOML
    policy    the ``[policy]`` table, TOML; a narrow one with comments where empty
    returns   the identity's fingerprint and the file's name

    Raises CSL-142 for a folder that holds something, CSL-143, CSL-15x.
    """
    check_empty(folder)
    with written(folder):
        for made in _FOLDERS:
            (folder / made).mkdir(mode=0o700, parents=True)
    identity = Identity.generate()
    write_identity(folder / "keys" / "identity.pem", identity, passphrase)
    write_node_key(folder / "keys" / "node.pem", generate_node_key(), passphrase)
    write_node_key(folder / "tls" / "site.key", generate_node_key(), passphrase)
    with written(folder):
        text = _FILE.format(site=site, source=source, data=data or _DATA, backbone=backbone, policy=policy or _POLICY)
        (folder / FILE).write_text(text, encoding="utf-8")
    return fingerprint(identity.public_key), FILE


def join(home: Path, consortium_file: Path, *, band: int, passphrase: bytes) -> ConsortiumFile:
    """Take up a consortium file and write the join request; raises CSL-140 to CSL-143, CSL-15x, CSL-531.

    band   the site's public size, which rosters state
    """
    consortium = read_consortium(consortium_file)
    operator = parse_public_key(consortium.operator)
    fields = _fields(home)
    if fields.get("operator") not in (None, consortium.operator):
        raise ConsiliumError(errors.ENROLMENT_FOREIGN, "this home has joined another operator")
    identity = read_identity(home / "keys" / "identity.pem", passphrase)
    _request(home, identity, operator, str(fields.get("site")), band, passphrase, "site.key")
    with written(home):
        (home / "tls" / "ca.pem").write_text(consortium.ca, encoding="ascii")
        text = (home / FILE).read_text(encoding="utf-8")
        text = text.replace(_OPERATOR_LATER, f'operator = "{consortium.operator}"', 1)
        text = text.replace(_SERVER_LATER, f'server = "{consortium.server}"', 1)
        write_whole(home / FILE, text.encode())
    return consortium


def install(home: Path, admission_file: Path, *, passphrase: bytes) -> datetime:
    """Take up an admission, the first or a renewed one; returns until when its certificate holds.

    Raises CSL-140, CSL-121, CSL-141 for one that is not this hospital's, or is for no key that is here.
    """
    config = SiteConfig.load(home / FILE)
    identity = read_identity(config.keys.identity, passphrase)
    admission = read_admission(admission_file, config.operator_key, config.site, identity.public_key)
    try:
        certificate = x509.load_pem_x509_certificate(admission.certificate.encode())
        certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(admission.ca.encode()))
    except Exception as error:
        raise ConsiliumError(errors.ENROLMENT_INVALID, "its certificate") from error
    wanted = certificate.public_key()
    tls = home / "tls"
    for name in (_NEW_KEY, "site.key"):
        path = tls / name
        if path.is_file() and read_node_key(path, passphrase).public_key() == wanted:
            break
    else:
        raise ConsiliumError(errors.ENROLMENT_FOREIGN, "its certificate is for no key of this hospital")
    with written(home):
        write_whole(tls / "ca.pem", admission.ca.encode())
        write_whole(tls / "site.pem", admission.certificate.encode())
        if path.name == _NEW_KEY:
            path.replace(tls / "site.key")
            sync_folder(tls)
    return certificate.not_valid_after_utc


def renew(home: Path, *, passphrase: bytes) -> Path:
    """Draw a new key for connections and write a request for its certificate; returns where."""
    config = SiteConfig.load(home / FILE)
    identity = read_identity(config.keys.identity, passphrase)
    fresh = home / "tls" / _NEW_KEY
    with written(home):
        fresh.unlink(missing_ok=True)
        (home / REQUEST).unlink(missing_ok=True)
    write_node_key(fresh, generate_node_key(), passphrase)
    _request(home, identity, config.operator_key, config.site, _band(home), passphrase, _NEW_KEY)
    return home / REQUEST


def remember(home: Path, peer: str, said: str, key: PublicKey) -> None:
    """Note a peer whose fingerprint was heard by telephone; raises CSL-144 where its key has another.

    said  the fingerprint as the peer read it out
    key   the peer's key in the study's roster
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", peer) or said.strip().lower() != fingerprint(key):
        raise ConsiliumError(errors.PEER_MISMATCH, peer)
    text = (home / FILE).read_text(encoding="utf-8")
    line = f'"{peer}" = "{fingerprint(key)}"'
    lines = [old for old in text.splitlines() if not re.match(rf'\s*"?{re.escape(peer)}"?\s*=\s*"[0-9a-f-]+"', old)]
    if "[verified]" not in lines:
        lines += ["", "[verified]"]
    lines.insert(lines.index("[verified]") + 1, line)
    changed = "\n".join(lines) + "\n"
    if tomllib.loads(changed).get("verified", {}).get(peer) != fingerprint(key):
        raise ConsiliumError(errors.SITE_FILE_INVALID, "write [verified] as a table of its own")
    with written(home):
        write_whole(home / FILE, changed.encode())


def _request(
    home: Path, identity: Identity, operator: PublicKey, site: str, band: int, passphrase: bytes, key_file: str
) -> None:
    node = read_node_key(home / "keys" / "node.pem", passphrase).public_key()
    key = read_node_key(home / "tls" / key_file, passphrase)
    request = JoinRequest(
        site=site,
        operator=operator.hex(),
        identity=identity.public_key.hex(),
        band=band,
        node=node.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode(),
        request=_certificate_request(key, site).decode(),
    )
    write_request(home / REQUEST, request, identity)
    with written(home):
        write_whole(home / "state" / "band", str(band).encode())


def _certificate_request(key: ec.EllipticCurvePrivateKey, site: str) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, site[:64])])
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(subject)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def _band(home: Path) -> int:
    try:
        return int((home / "state" / "band").read_text())
    except (OSError, ValueError) as error:
        raise ConsiliumError(errors.ENROLMENT_INVALID, "join the consortium first") from error


def _fields(home: Path) -> dict[str, object]:
    try:
        return tomllib.loads((home / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConsiliumError(errors.SITE_FILE_UNREADABLE, f"{home / FILE}: {error}") from error


_OPERATOR_LATER = '# operator = "consilium-client join writes it here"'
_SERVER_LATER = '# server = "consilium-client join writes it here"'
_DATA = """\
[data]
folder = "data"                  # the query sees the files below it, and nothing else
query = "SELECT text, label, patient FROM 'records.csv'"

[data.columns]
text = "text"
label = "label"
unit = "patient"
"""
_POLICY = """\
# What a study must be for this hospital to take part. Without this table nothing is allowed; every line is needed.
[policy]
purposes = ["DUO:0000007", "DUO:0000018", "DUO:0000021"]   # DUO codes of the consent: DS, NPUNCU, IRB
licences = ["Apache-2.0", "MIT", "BSD-3-Clause"]           # SPDX, of the backbone
max_epsilon = 1.0                # of one study; what all may spend, the ledger's account says
max_delta = 1e-6
min_noise_multiplier = 1.0       # in each step, and in each evaluation
unit = "patient"                 # whom a study must hide; "record" admits both
min_cohort = 4                   # fewest sites whose sum may be opened
min_band = 100                   # smallest public size of another site
min_patients = 100               # smallest public size of this one
max_rounds = 200
tasks = ["text-classification"]  # what records may be used for; docs/hospitals.md has all names
methods = ["ffa-lora", "lora", "head-only"]
pretraining = false              # learning first from records without their labels, unlabelled ones too
blocks = false                   # coordinates to which only some sites contribute
hours = ["20:00-06:00"]          # local time; ["00:00-24:00"] is always
manual_rounds = false            # true: each round waits for consilium-client study allow
"""
_FILE = """\
# This hospital. Paths are below this file's folder. No secret stands here.
site = "{site}"
# operator = "consilium-client join writes it here"
state = "state"                  # ledger, journals, egress log, computed features
studies = "studies"              # approved studies
account = "default"              # the patient population whose budget pays
# threads = 1

[link]
# server = "consilium-client join writes it here"
ca = "tls/ca.pem"
certificate = "tls/site.pem"
key = "tls/site.key"
# proxy = "http://proxy:3128"
# reply_slots = 5.0              # seconds: replies leave on a time grid

[keys]
identity = "keys/identity.pem"
node = "keys/node.pem"
passphrase = "{source}"          # fd:N, env:NAME or credential:NAME

# [ledger]
# anchor = "/elsewhere/ledger.anchor"   # on another disk than the ledger

{data}
{backbone}
{policy}
# Peers whose fingerprints were compared by telephone: consilium-client verify writes here.
[verified]
"""
