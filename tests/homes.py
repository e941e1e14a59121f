"""An operator's and hospitals' homes, made by the product's own enrolment."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from client import enrolment as hospitals
from client.config import SiteConfig
from common.identity import Identity, SiteId, fingerprint
from common.keystore import read_identity
from server import enrolment as operators

PASSPHRASE = b"of homes that live for a test"
DATA = """\
[data]
folder = "data"
query = "SELECT 'a' || i AS text, 'no' AS label FROM range(40) t(i)"

[data.columns]
text = "text"
label = "label"
"""


@dataclass
class Homes:
    """Everybody's folders."""

    operator: Path
    sites: dict[SiteId, Path] = field(default_factory=dict)

    @property
    def operator_identity(self) -> Identity:
        return read_identity(self.operator / "keys" / "identity.pem", PASSPHRASE)

    def identity(self, site: SiteId) -> Identity:
        return read_identity(self.sites[site] / "keys" / "identity.pem", PASSPHRASE)

    def config(self, site: SiteId) -> SiteConfig:
        return SiteConfig.load(self.sites[site] / hospitals.FILE)

    def add(self, name: str, *, band: int = 100) -> Path:
        """Make a hospital's home and have it ask to join; returns the home."""
        home = self.operator.parent / name
        hospitals.make_home(home, site=name, passphrase=PASSPHRASE, source="env:NOBODY", data=DATA, backbone="")
        hospitals.join(home, self.operator / operators.CONSORTIUM, band=band, passphrase=PASSPHRASE)
        return home

    def admit(self, name: str) -> Path:
        """Make a hospital's home and take it all the way in."""
        home = self.add(name)
        self.let_in(home)
        self.sites[SiteId(name)] = home
        return home

    def let_in(self, home: Path) -> Path:
        """Admit whoever asks in a home, and install what comes back; returns the admission."""
        out = home / "admission.json"
        operators.admit(self.operator, home / hospitals.REQUEST, self.operator_identity, PASSPHRASE, out)
        hospitals.install(home, out, passphrase=PASSPHRASE)
        return out

    def introduce(self) -> None:
        """Have everybody verify everybody."""
        keys = {site: self.identity(site).public_key for site in self.sites}
        for site, home in self.sites.items():
            for other, key in keys.items():
                if other != site:
                    hospitals.remember(home, other, fingerprint(key), key)


def homes(folder: Path, sites: int = 0, *, port: int = 9443) -> Homes:
    """Make an operator's home and some hospitals', all admitted and verified."""
    made = Homes(folder / "operator")
    operators.make_home(
        made.operator,
        name="tests",
        server=f"127.0.0.1:{port}",
        hosts=("127.0.0.1",),
        listen=f"127.0.0.1:{port}",
        health=None,
        passphrase=PASSPHRASE,
        source="env:NOBODY",
        backbone="",
        deadline=60.0,
    )
    for number in range(sites):
        made.admit(f"site-{number:02d}")
    made.introduce()
    return made
