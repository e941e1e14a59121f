"""`site.toml`: what a hospital says of itself, once, in one file that holds no secret.

Strict and frozen: an unknown key, a missing part or a value out of range is refused with the field's name. Relative
paths are below the file's own folder. Who trains on what, under which privacy, the study says; no field here weakens
it, and none says where noise comes from (RULES 15). Loads without torch.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, StringConstraints, ValidationInfo, field_validator, model_validator

from client.policy import Policy
from common import errors
from common.identity import PublicKey, SiteId, fingerprint, parse_public_key
from common.messages import ANYONE, OPERATOR
from common.parts import Hex32, Name, Part
from common.settings import Place, read_settings, resolved
from common.study import Study

_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])"
_ADDRESS = re.compile(rf"(?:{_HOST}):([0-9]{{1,5}})")

_SQLITE, _POSTGRES = "sqlite:///", "postgresql+pg8000://"
_POSTGRES_URL = re.compile(
    rf"{re.escape(_POSTGRES)}[\w.~%-]+@({_HOST}(:[0-9]{{1,5}})?/[\w.~%-]+|/[\w.~%-]+\?unix_sock=/[\w./%-]+)", re.ASCII
)


def _address(value: str) -> str:
    found = _ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found[1]) < 1 << 16:
        raise ValueError("write host:port")
    return value


def _proxy(value: str) -> str:
    try:
        _address(value.removeprefix("http://"))
    except ValueError:
        value = ""
    if not value.startswith("http://"):
        raise ValueError("write http://host:port")
    return value


def _database(value: object, info: ValidationInfo) -> object:
    """Take an address without a password, and make an SQLite file's path absolute; nothing of it is repeated."""
    if not isinstance(value, str) or not value.isprintable():
        raise ValueError("write an address")
    if value.startswith(_SQLITE):
        return f"{_SQLITE}{resolved(value.removeprefix(_SQLITE), info)}"
    if _POSTGRES_URL.fullmatch(value) is None:
        raise ValueError(f"write {_SQLITE}PATH or {_POSTGRES}USER@HOST[:PORT]/DATABASE; a password is named apart")
    return value


DatabaseUrl = Annotated[str, BeforeValidator(_database)]
"""Where a database is; the path of an SQLite file is absolute."""
Column = Annotated[str, StringConstraints(min_length=1, max_length=200)]
Fingerprint = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{4}(-[0-9a-f]{4}){4}$")]
Query = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]


class Link(Part):
    """How to reach the operator: outbound only.

    server             host:port
    ca                 certificates to trust, PEM; the system's where not given
    certificate, key   this site's own pair for TLS, where the server asks for one
    proxy              http://host:port
    reply_slots        seconds: replies leave at multiples of it on the clock, so that when one leaves tells less of how
                       long was computed; at once where not given
    """

    server: str
    ca: Place | None = None
    certificate: Place | None = None
    key: Place | None = None
    proxy: str | None = None
    reply_slots: float | None = Field(default=None, ge=0.1, le=3600.0)

    @field_validator("server")
    @classmethod
    def _server_is_an_address(cls, value: str) -> str:
        return _address(value)

    @field_validator("proxy")
    @classmethod
    def _proxy_is_plain(cls, value: str | None) -> str | None:
        return None if value is None else _proxy(value)

    @model_validator(mode="after")
    def _a_pair_or_none(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key belong together")
        return self


class Keys(Part):
    """Where the encrypted keys are, and where their passphrase comes from; see :mod:`common.keystore`."""

    identity: Place
    node: Place
    passphrase: Annotated[
        str, StringConstraints(pattern=r"^(fd:[0-9]{1,9}|env:[A-Za-z_][A-Za-z0-9_]*|credential:[A-Za-z0-9_][\w.@-]*)$")
    ]


class LedgerFiles(Part):
    """Where privacy spent is written down; keep the anchor where the backups of the other do not reach."""

    path: Place | None = None
    anchor: Place | None = None


class DataColumns(Part):
    """Which column of the query's result plays which part.

    text    the record itself, or instead:
    path    the file of an image or a recording, below the folder of files, or instead:
    fields  true: the query returns columns named as the study's fields
    label   needed where the study's task looks at labels; without a label, a record is for its pretraining alone
    unit    the patient; needed where the study hides patients
    split   train, validation or test; without it units are divided by a keyed hash
    """

    text: Column | None = None
    path: Column | None = None
    fields: bool = False
    label: Column | None = None
    unit: Column | None = None
    split: Column | None = None

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if [self.text is not None, self.path is not None, self.fields].count(True) != 1:
            raise ValueError("give one of text, path and fields = true")
        if self.fields and self.label is None:
            raise ValueError("fields need a label")
        return self


class DataSplit(Part):
    """The fraction of the units that a keyed hash puts among the test records."""

    test: float = Field(default=0.2, gt=0, lt=1)


class Data(Part):
    """The records: one SELECT, over the files below a folder or in a database.

    name      of the source, in reports
    folder    of the files; see :mod:`client.query`
    url       ``sqlite:///path`` or ``postgresql+pg8000://user@host/database``; see :mod:`client.database`
    password  where the database's comes from
    ca        certificates to trust of the database's server, PEM; the system's where not given
    files     folder of the images or recordings; ``folder`` where not given
    """

    name: Name = "records"
    folder: Place | None = None
    url: DatabaseUrl | None = None
    password: Annotated[str, StringConstraints(pattern=r"^(env:[A-Za-z_]\w*|credential:\w[\w.@-]*)$")] | None = None
    ca: Place | None = None
    files: Place | None = None
    query: Query
    columns: DataColumns
    split: DataSplit = DataSplit()

    @property
    def files_folder(self) -> Path:
        """What paths are below; only where there is a column of them."""
        folder = self.files or self.folder
        assert folder is not None, "validated"
        return folder

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.folder is None) == (self.url is None):
            raise ValueError("give one of folder and url")
        if not (self.url or "").startswith(_POSTGRES) and (self.password or self.ca):
            raise ValueError("password and ca belong to a server's url")
        if self.columns.path is None and self.files is not None:
            raise ValueError("files belongs to columns.path")
        if self.columns.path is not None and self.files is None and self.folder is None:
            raise ValueError("name the folder of the files")
        return self

    @model_validator(mode="after")
    def _divided_in_one_way(self) -> Self:
        if self.columns.split is not None and "split" in self.model_fields_set:
            raise ValueError("split and columns.split exclude each other")
        return self


class BackboneSource(Part):
    """Who supplies the backbone's bytes; the study's digests decide whether they are right.

    from_operator  the operator sends them over the link, and they are kept below ``state``
    """

    folder: Place | None = None
    package: Name | None = None
    from_operator: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if [self.folder is not None, self.package is not None, self.from_operator].count(True) != 1:
            raise ValueError("give one of folder, package and from_operator = true")
        return self


class SiteConfig(Part):
    """A hospital's `site.toml`.

    site      this site's name in rosters
    operator  the operator's public key, as compared by telephone
    state     folder for what this site writes
    studies   folder with one folder an approved study
    verified  the fingerprints of peers' keys that were compared out of band, by name (RULES 3)
    account   the patient population that the ledger charges
    threads   of the arithmetic
    policy    what a study must be for this site to take part; without it nothing is allowed
    """

    site: Name
    operator: Hex32
    state: Place
    studies: Place
    verified: dict[Name, Fingerprint] = Field(default_factory=dict)
    account: Name = "default"
    threads: int = Field(default=1, ge=1, le=1024)
    link: Link
    keys: Keys
    ledger: LedgerFiles = LedgerFiles()
    data: Data
    backbone: BackboneSource | None = None
    policy: Policy | None = None

    @field_validator("site")
    @classmethod
    def _not_a_reserved_name(cls, value: str) -> str:
        if value in (OPERATOR, ANYONE):
            raise ValueError("'operator' and 'anyone' are not names for a site")
        return value

    @classmethod
    def load(cls, path: Path) -> SiteConfig:
        """Read a file; raises CSL-530 where it cannot be read as TOML, CSL-531 with the name of the wrong field."""
        return read_settings(cls, path, unreadable=errors.SITE_FILE_UNREADABLE, invalid=errors.SITE_FILE_INVALID)

    @property
    def site_id(self) -> SiteId:
        """The site's name, typed."""
        return SiteId(self.site)

    @property
    def operator_key(self) -> PublicKey:
        """The operator's Ed25519 key; raises CSL-120."""
        return parse_public_key(self.operator)

    def verified_in(self, study: Study) -> frozenset[SiteId]:
        """Return the peers in a study's roster whose very key was verified: one under a name known has to be again."""
        return frozenset(
            member.site_id
            for member in study.roster
            if self.verified.get(member.site) == fingerprint(member.public_key)
        )

    @property
    def ledger_file(self) -> Path:
        """Where the ledger is."""
        return self.ledger.path or self.state / "ledger.sqlite"

    @property
    def offers(self) -> Path:
        """Where studies wait that the operator offered: one folder each, beside those that were approved."""
        return self.studies.parent / "offers"

    @property
    def egress_file(self) -> Path:
        """Where what left is written down."""
        return self.state / "egress.jsonl"

    @property
    def data_report_file(self) -> Path:
        """Where the last report of the data is."""
        return self.state / "data-report.json"

    @property
    def backbones_folder(self) -> Path:
        """Where backbones from the operator are kept."""
        return self.state / "backbones"

    @property
    def features_folder(self) -> Path:
        """Where computed features are kept, encrypted."""
        return self.state / "features"
