"""One hospital's home with an offer in it, for tests of what people decide and of what its daemon then does."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import cast

import numpy as np
from flwr.app import Message
from flwr.clientapp import ClientApp

from client.config import SiteConfig
from client.daemon import Daemon
from client.egress import EgressEntry
from client.ledger import SqliteLedger
from common import agreement as agreements
from common.identity import SiteId, fingerprint
from common.keystore import write_identity
from common.link.inprocess import OPERATOR_NODE, InProcessGrid
from common.link.records import to_records
from common.messages import ANYONE, OPERATOR, Envelope, Stage, seal
from common.study import Kind, Unit
from tests.federations import DIMENSION, KnownWorkload
from tests.policies import OPEN
from tests.sitefile import opening
from tests.studies import NOW, Signed, signed_study

SITE = SiteId("site-000")
PASSPHRASE = "of a test"
VARIABLE = "CONSILIUM_TEST_PASSPHRASE"
EPSILON = 10.0
NODE = OPERATOR_NODE + 1
WORKED: dict[str, object] = {"kind": "deployment", "expires": "2099-01-01T00:00:00Z"}
"""What a study needs to be approved on any day."""


@dataclass
class Hospital:
    """One site of a study, its folders below ``home``; ``made`` counts the workloads that its daemon made."""

    home: Path
    signed: Signed
    site: SiteId = SITE
    made: list[SiteId] = field(default_factory=list)
    left: list[EgressEntry] = field(default_factory=list)

    @property
    def config(self) -> SiteConfig:
        return SiteConfig.load(self.home / "site.toml")

    def offer(self, signed: Signed) -> Path:
        folder = self.home / "offers" / signed.study.digest[:16]
        agreements.write(folder, signed.signed, ())
        return folder

    def agree(self, signed: Signed) -> Path:
        folder = self.home / "studies" / signed.study.digest[:16]
        agreements.write(folder, signed.signed, signed.approvals)
        return folder

    def policy(self, old: str, new: str) -> None:
        """Change the text of the site's file."""
        path = self.home / "site.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def daemon(self, *, now: datetime = NOW, kind: Kind = Kind.DEPLOYMENT) -> Daemon:
        def make(_: object) -> KnownWorkload:
            self.made.append(self.site)
            return KnownWorkload(np.zeros(DIMENSION, dtype=np.float32), np.array([3, 2], dtype=np.int64))

        ledger = SqliteLedger(self.config.ledger_file)
        return Daemon(
            self.config,
            self.signed.sites[self.site],
            make,
            ledger,
            record=self.left.append,
            kind=kind,
            clock=lambda: now,
        )

    def spent(self) -> float:
        with SqliteLedger(self.config.ledger_file) as ledger:
            return ledger.balances()[0].epsilon_committed


def hospital(home: Path, signed: Signed | None = None, *, policy: str = OPEN, site: SiteId = SITE) -> Hospital:
    """Make the home of a study's site, with an open account and every peer verified; nothing is offered yet."""
    signed = signed or signed_study(4, **WORKED)
    peers = "\n".join(
        f'"{peer}" = "{fingerprint(identity.public_key)}"' for peer, identity in signed.sites.items() if peer != site
    )
    home.mkdir(parents=True, exist_ok=True)
    (home / "site.toml").write_text(f"""{opening(site, signed.operator.public_key.hex(), f"env:{VARIABLE}")}[data]
folder = "data"
query = "SELECT 1"
columns = {{ text = "t", label = "l" }}
{policy}
[verified]
{peers}
""")
    write_identity(home / "identity.pem", signed.sites[site], PASSPHRASE.encode())
    (home / "state").mkdir()
    with SqliteLedger(home / "state" / "ledger.sqlite") as ledger:
        ledger.open_account("default", population="p", unit=Unit.RECORD, epsilon=EPSILON, delta=1e-4)
    return Hospital(home, signed, site)


def ask(daemon: Daemon, signed: Signed) -> Message:
    """Ask a daemon who it is, under a study: the first request of every study."""
    request = Envelope(signed.study.digest, Stage.IDENTIFY, 0, 0, OPERATOR, ANYONE, {"nonce": bytes(32)})
    grid = InProcessGrid({NODE: cast(ClientApp, daemon)})
    message = grid.create_message(to_records(seal(request, signed.operator)), Stage.IDENTIFY.value, NODE, "1")
    (reply,) = grid.send_and_receive([message])
    return reply
