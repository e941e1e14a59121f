"""Lays out a consortium in a folder: an operator and some hospitals, each with keys, certificates and its own file.

Everything is as it would be on separate machines, except that one hand draws all keys: a folder made here is for trying
things out, and no hospital's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client import enrolment as hospitals
from client.ledger import SqliteLedger
from common import agreement as agreements
from common.agreement import countersign, sign, verify_study
from common.durable import folder_whole
from common.identity import SiteId, fingerprint
from common.keystore import read_identity
from common.study import Study, Unit
from server import enrolment as operators
from simulations.authoring import Consortium

PASSPHRASE_VARIABLE = "CONSILIUM_PASSPHRASE"  # noqa: S105  the name of a variable
HOST = "127.0.0.1"
LENIENT = """\
# Of a hospital that does not exist: it takes part in whatever is tried out here.
[policy]
purposes = ["DUO:0000004"]
licences = ["Apache-2.0"]
max_epsilon = 1000.0
max_delta = 0.01
min_noise_multiplier = 0.1
unit = "record"
min_cohort = 3
min_band = 1
min_patients = 1
max_rounds = 100000
tasks = [
    "text-classification", "multi-label-classification", "token-classification", "causal-language-modelling",
    "masked-language-modelling", "retrieval", "regression", "image-classification", "audio-classification",
    "tabular-classification",
]
methods = [
    "ffa-lora", "lora", "rolora", "ia3", "bitfit", "layer-norm", "bottleneck", "full", "head-only",
]
pretraining = true
blocks = true
hours = ["00:00-24:00"]
manual_rounds = false
"""


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
    policy: str | None = None,
) -> LaidOut:
    """Make the folder of a consortium that has no study yet.

    port, health  of the operator's two listeners on loopback; no health listener where None
    deadline      of a round, seconds
    data          each site's ``[data]`` table, TOML
    backbone      the ``[backbone]`` table of all, TOML; empty for none
    through       the address that a site connects to, where it is not the operator's own
    fetching      sites that have the backbone's bytes from the operator instead
    policy        the ``[policy]`` table of all, TOML; one that forbids next to nothing where None
    """
    secret, home = passphrase.encode(), folder / "operator"
    address = f"{HOST}:{port}"
    operators.make_home(
        home,
        name="Consilium on this machine",
        server=address,
        hosts=(HOST, "localhost"),
        listen=address,
        health=None if health is None else f"{HOST}:{health}",
        passphrase=secret,
        source=f"env:{PASSPHRASE_VARIABLE}",
        backbone=backbone,
        deadline=deadline,
    )
    operator = read_identity(home / "keys" / "identity.pem", secret)
    files, identities = {}, {}
    for site in sites:
        place = folder / site
        hospitals.make_home(
            place,
            site=site,
            passphrase=secret,
            source=f"env:{PASSPHRASE_VARIABLE}",
            data=data[site],
            backbone=_FROM_OPERATOR if site in fetching else backbone,
            policy=LENIENT if policy is None else policy,
        )
        hospitals.join(place, home / operators.CONSORTIUM, band=1, passphrase=secret)
        admission = place / "admission.json"
        operators.admit(home, place / hospitals.REQUEST, operator, secret, admission)
        hospitals.install(place, admission, passphrase=secret)
        identities[site] = read_identity(place / "keys" / "identity.pem", secret)
        with SqliteLedger(place / "state" / "ledger.sqlite") as ledger:
            ledger.open_account(
                "default",
                population=f"the patients of {site}",
                unit=account.unit,
                epsilon=account.epsilon,
                delta=account.delta,
            )
        files[site] = place / hospitals.FILE
    for site, path in files.items():
        for other, identity in identities.items():
            if other != site:
                key = identity.public_key
                hospitals.remember(path.parent, other, fingerprint(key), key)
        if through is not None and site in through:
            path.write_text(path.read_text().replace(f'server = "{address}"', f'server = "{through[site]}"'))
    return LaidOut(folder, home / operators.FILE, files, Consortium(operator, identities))


def publish(laid: LaidOut, study: Study, name: str = "study") -> None:
    """Sign a study as its operator, have every site of the roster approve it, and put it into everybody's folder."""
    signed = sign(study, laid.keys.operator)
    verified = verify_study(signed, laid.keys.operator.public_key)
    digest = verified.digest
    members = [member.site_id for member in verified.roster]
    approvals = tuple(countersign(verified, digest, site, laid.keys.sites[site]) for site in members)
    places = [(laid.server.parent, name), *((laid.sites[site].parent, digest[:16]) for site in members)]
    for place, called in places:
        # Whole or not at all: a daemon may be looking.
        with folder_whole(place / "studies" / called) as made:
            agreements.write(made, signed, approvals)


_FROM_OPERATOR = "[backbone]\nfrom_operator = true\n"
