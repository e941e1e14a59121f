"""`server.toml`: what an operator says of the server, once, in one file that holds no secret.

Strict and frozen; relative paths are below the file's own folder. What a study is, the study says. Loads without torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from common import errors
from common.parts import Part
from common.settings import Place, read_settings
from server.listener import Address


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) >= 1 << 16:
        raise ValueError("write host:port")
    return Address(host.strip("[]"), int(port))


class Tls(Part):
    """The listener's certificate; with ``client_ca``, whoever has no certificate of that CA cannot even speak."""

    certificate: Place
    key: Place
    client_ca: Place | None = None


class Keys(Part):
    """Where the operator's encrypted signing key is, and where its passphrase comes from."""

    identity: Place
    passphrase: Annotated[str, StringConstraints(pattern=r"^(fd|env|credential):[A-Za-z0-9_.@-]+$")]


class Backbone(Part):
    """Who supplies the backbone's bytes; the study's digests decide whether they are right."""

    folder: Place | None = None
    package: Annotated[str, StringConstraints(min_length=1, max_length=100)] | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.folder is None) == (self.package is None):
            raise ValueError("give either folder or package")
        return self


class ServerConfig(Part):
    """An operator's `server.toml`.

    state     folder for what the server writes: journal, witnesses, releases, audit log
    studies   folder with one folder a study that is signed and approved; they run in order of their names
    sites     folder with one file a site that may connect: NAME.pem, its public node key
    listen    host:port of the sites' listener, TLS
    health    host:port of health and metrics, on a loopback address
    journal   postgresql+pg8000://... for a journal in PostgreSQL; an SQLite file below ``state`` where not given
    deadline  seconds that a round may take
    quorum    connected sites to begin with, if more than the study's smallest cohort
    """

    state: Place
    studies: Place
    sites: Place
    listen: str
    health: str | None = None
    journal: Annotated[str, StringConstraints(min_length=1, max_length=2000)] | None = None
    deadline: float = Field(default=600.0, ge=5.0, le=7 * 24 * 3600.0)
    quorum: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1, le=1024)
    tls: Tls
    keys: Keys
    backbone: Backbone | None = None

    @field_validator("listen", "health")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None:
            _address(value)
        return value

    @field_validator("health")
    @classmethod
    def _on_loopback(cls, value: str | None) -> str | None:
        if value is not None and _address(value).host not in ("127.0.0.1", "::1", "localhost"):
            raise ValueError("health and metrics are served on a loopback address only")
        return value

    @classmethod
    def load(cls, path: Path) -> ServerConfig:
        """Read a file; raises CSL-540 where it cannot be read as TOML, CSL-541 with the name of the wrong field."""
        return read_settings(cls, path, unreadable=errors.SERVER_FILE_UNREADABLE, invalid=errors.SERVER_FILE_INVALID)

    @property
    def listen_address(self) -> Address:
        """Where sites connect."""
        return _address(self.listen)

    @property
    def health_address(self) -> Address | None:
        """Where health and metrics are."""
        return None if self.health is None else _address(self.health)

    @property
    def offers(self) -> Path:
        """Where studies wait for their sites' approvals, beside those that run."""
        return self.studies.parent / "offers"

    @property
    def journal_url(self) -> str:
        """The journal's address, which may hold a password: never to be logged."""
        return self.journal or f"sqlite:///{self.state / 'journal.sqlite'}"
