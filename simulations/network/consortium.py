"""Lays out a consortium in a folder: an operator and some hospitals, each with keys, certificates and its own file.

Everything is as it would be on separate machines, except that one hand draws all keys: a folder made here is for trying
things out, and no hospital's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from client.ledger import SqliteLedger
from common import agreement as agreements
from common.agreement import countersign, sign, verify_study
from common.identity import Identity, SiteId
from common.keystore import generate_node_key, write_identity, write_node_key
from common.study import Study, Unit
from server.authority import Authority
from simulations.authoring import Consortium

PASSPHRASE_VARIABLE = "CONSILIUM_PASSPHRASE"  # noqa: S105  the name of a variable
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Account:
    """What each hospital lets studies spend."""

    unit: Unit
    epsilon: float
    delta: float


@dataclass(frozen=True, slots=True)
class LaidOut:
    """A consortium's folder.

    server  the operator's file
    sites   each hospital's file
    """

    folder: Path
    server: Path
    sites: Mapping[SiteId, Path]
    keys: Consortium
    authority: Authority


def lay_out(
    folder: Path,
    sites: Sequence[SiteId],
    *,
    port: int,
    health: int | None,
    passphrase: str,
    account: Account,
    deadline: float,
    data: Mapping[SiteId, str],
    backbone: str,
    through: Mapping[SiteId, str] | None = None,
    fetching: Collection[SiteId] = (),
) -> LaidOut:
    """Make the folder of a consortium that has no study yet.

    port, health  of the operator's two listeners on loopback; no health listener where None
    deadline      of a round, seconds
    data          each site's ``[data]`` table, TOML
    backbone      the ``[backbone]`` table of all, TOML; empty for none
    through       the address that a site connects to, where it is not the operator's own
    fetching      sites that have the backbone's bytes from the operator instead
    """
    operator, authority = Identity.generate(), Authority("Consilium on this machine")
    identities = {site: Identity.generate() for site in sites}
    secret = passphrase.encode()
    home = folder / "operator"
    for made in (home / "studies", home / "sites", home / "tls", home / "keys"):
        made.mkdir(parents=True)
    (home / "tls" / "ca.pem").write_bytes(authority.certificate)
    authority.server(HOST, "localhost").write(home / "tls" / "server.pem", home / "tls" / "server.key")
    write_identity(home / "keys" / "identity.pem", operator, secret)
    files = {}
    for site in sites:
        place = folder / site
        for made in (place / "studies", place / "tls", place / "keys", place / "data", place / "state"):
            made.mkdir(parents=True)
        (place / "state").chmod(0o700)
        (place / "tls" / "ca.pem").write_bytes(authority.certificate)
        authority.site(site).write(place / "tls" / "site.pem", place / "tls" / "site.key")
        write_identity(place / "keys" / "identity.pem", identities[site], secret)
        node = generate_node_key()
        write_node_key(place / "keys" / "node.pem", node, secret)
        public = node.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (home / "sites" / f"{site}.pem").write_bytes(public)
        with SqliteLedger(place / "state" / "ledger.sqlite") as ledger:
            ledger.open_account(
                "default",
                population=f"the patients of {site}",
                unit=account.unit,
                epsilon=account.epsilon,
                delta=account.delta,
            )
        address = (through or {}).get(site, f"{HOST}:{port}")
        files[site] = place / "site.toml"
        files[site].write_text(
            _SITE.format(
                site=site,
                operator=operator.public_key.hex(),
                verified=json.dumps(sorted(other for other in sites if other != site)),
                address=address,
                passphrase=PASSPHRASE_VARIABLE,
                data=data[site],
                backbone=_FROM_OPERATOR if site in fetching else backbone,
            )
        )
    server = home / "server.toml"
    server.write_text(
        _SERVER.format(
            host=HOST,
            port=port,
            health="" if health is None else f'health = "{HOST}:{health}"\n',
            deadline=deadline,
            passphrase=PASSPHRASE_VARIABLE,
            backbone=backbone,
        )
    )
    return LaidOut(folder, server, files, Consortium(operator, identities), authority)


def publish(laid: LaidOut, study: Study, name: str = "study") -> None:
    """Sign a study as its operator, have every site of the roster approve it, and put it into everybody's folder."""
    signed = sign(study, laid.keys.operator)
    verified = verify_study(signed, laid.keys.operator.public_key)
    digest = verified.digest
    members = [member.site_id for member in verified.roster]
    approvals = tuple(countersign(verified, digest, site, laid.keys.sites[site]) for site in members)
    for place in (laid.server.parent, *(laid.sites[site].parent for site in members)):
        # Whole or not at all: a daemon may be looking.
        made = place / f".{name}"
        agreements.write(made, signed, approvals)
        os.rename(made, place / "studies" / name)


_FROM_OPERATOR = "[backbone]\nfrom_operator = true\n"

_SITE = """\
site = "{site}"
operator = "{operator}"
state = "state"
studies = "studies"
verified = {verified}

[link]
server = "{address}"
ca = "tls/ca.pem"
certificate = "tls/site.pem"
key = "tls/site.key"

[keys]
identity = "keys/identity.pem"
node = "keys/node.pem"
passphrase = "env:{passphrase}"

{data}
{backbone}"""

_SERVER = """\
state = "state"
studies = "studies"
sites = "sites"
listen = "{host}:{port}"
{health}deadline = {deadline}

[tls]
certificate = "tls/server.pem"
key = "tls/server.key"
client_ca = "tls/ca.pem"

[keys]
identity = "keys/identity.pem"
passphrase = "env:{passphrase}"

{backbone}"""
