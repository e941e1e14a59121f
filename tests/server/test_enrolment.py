"""Joining a consortium: who gets in, who does not, and what nobody has to give away."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from client import enrolment as hospitals
from client.config import SiteConfig
from common.enrolment import read_request
from common.errors import ConsiliumError
from common.identity import Identity, SiteId, fingerprint
from server import enrolment as operators
from server.config import ServerConfig
from tests.homes import PASSPHRASE, Homes, homes


def code_of(call: Callable[[], object]) -> str:
    with pytest.raises(ConsiliumError) as caught:
        call()
    return caught.value.code


def admit(made: Homes, home: Path) -> None:
    operators.admit(
        made.operator, home / hospitals.REQUEST, made.operator_identity, PASSPHRASE, home / "admission.json"
    )


def test_from_two_empty_folders_to_a_site_that_may_connect(tmp_path: Path) -> None:
    made = homes(tmp_path, 1)
    (listed,) = operators.admitted(made.operator)
    identity = made.identity(SiteId("site-00"))
    assert (listed.site, listed.band) == ("site-00", 100)
    assert listed.fingerprint == fingerprint(identity.public_key)
    config = made.config(SiteId("site-00"))
    assert config.operator_key == made.operator_identity.public_key
    assert config.link.server == "127.0.0.1:9443"
    assert ServerConfig.load(made.operator / operators.FILE).tls.client_ca is not None
    certificate = x509.load_pem_x509_certificate((made.sites[SiteId("site-00")] / "tls" / "site.pem").read_bytes())
    certificate.verify_directly_issued_by(
        x509.load_pem_x509_certificate((made.operator / "tls" / "ca.pem").read_bytes())
    )


def test_no_private_key_is_in_what_travels_and_none_rests_in_clear_text(tmp_path: Path) -> None:
    made = homes(tmp_path, 1)
    home = made.sites[SiteId("site-00")]
    secret = made.identity(SiteId("site-00")).private_bytes()
    for travelled in (home / hospitals.REQUEST, home / "admission.json", made.operator / operators.CONSORTIUM):
        assert b"PRIVATE" not in travelled.read_bytes()
        assert secret.hex().encode() not in travelled.read_bytes()
    keys = [path for path in tmp_path.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert {path.name for path in keys} == {"identity.pem", "node.pem", "site.key", "server.key", "authority.pem"}
    for path in keys:
        assert path.stat().st_mode & 0o077 == 0
        with pytest.raises(TypeError):
            load_pem_private_key(path.read_bytes(), None)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    made = homes(tmp_path, 1)
    assert code_of(lambda: homes(tmp_path)) == "CSL-142"
    assert code_of(lambda: made.add("site-00")) == "CSL-142"


def changed(field: str, value: object) -> Callable[[dict[str, dict[str, object]]], None]:
    def change(sealed: dict[str, dict[str, object]]) -> None:
        sealed["body"][field] = value

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (changed("site", "other"), "CSL-121"),
        (changed("band", 5), "CSL-121"),
        (changed("node", "-----BEGIN PUBLIC KEY-----"), "CSL-121"),
        (changed("identity", Identity.generate().public_key.hex()), "CSL-121"),
        (changed("band", 0), "CSL-140"),
        (changed("site", "../../etc"), "CSL-140"),
        (changed("more", 1), "CSL-140"),
        (lambda sealed: sealed.pop("signature"), "CSL-140"),
    ],
)
def test_a_request_that_was_changed_on_its_way_is_refused(
    tmp_path: Path, change: Callable[[dict[str, dict[str, object]]], None], code: str
) -> None:
    made = homes(tmp_path)
    home = made.add("north")
    sealed = json.loads((home / hospitals.REQUEST).read_text())
    change(sealed)
    (home / hospitals.REQUEST).write_text(json.dumps(sealed))
    assert code_of(lambda: admit(made, home)) == code
    assert operators.admitted(made.operator) == ()


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"body": {}, "signature": ""}', "x" * 300_000])
def test_what_is_no_request_is_refused_with_a_sentence(tmp_path: Path, content: str) -> None:
    made = homes(tmp_path)
    path = tmp_path / "request.json"
    path.write_text(content)
    assert code_of(lambda: read_request(path, made.operator_identity.public_key)) == "CSL-140"


def test_a_request_for_another_operator_is_refused(tmp_path: Path) -> None:
    ours, theirs = homes(tmp_path / "ours"), homes(tmp_path / "theirs")
    home = theirs.add("north")
    assert code_of(lambda: admit(ours, home)) == "CSL-141"


def test_another_hospital_cannot_take_a_name_that_is_taken(tmp_path: Path) -> None:
    made = homes(tmp_path, 1)
    impostor = Homes(made.operator)
    (tmp_path / "elsewhere").mkdir()
    home = tmp_path / "elsewhere" / "site-00"
    hospitals.make_home(home, site="site-00", passphrase=PASSPHRASE, source="env:NOBODY", data="", backbone="")
    hospitals.join(home, made.operator / operators.CONSORTIUM, band=1, passphrase=PASSPHRASE)
    assert code_of(lambda: admit(impostor, home)) == "CSL-122"
    assert operators.admitted(made.operator)[0].band == 100


def test_an_admission_for_another_site_or_by_another_operator_is_not_installed(tmp_path: Path) -> None:
    made, other = homes(tmp_path / "a", 2), homes(tmp_path / "b", 1)
    first, second = (made.sites[SiteId(name)] for name in ("site-00", "site-01"))
    foreign = other.sites[SiteId("site-00")]
    assert code_of(lambda: hospitals.install(first, second / "admission.json", passphrase=PASSPHRASE)) == "CSL-141"
    assert code_of(lambda: hospitals.install(first, foreign / "admission.json", passphrase=PASSPHRASE)) == "CSL-121"


def test_renewing_keeps_the_old_certificate_until_the_new_one_is_installed(tmp_path: Path) -> None:
    made = homes(tmp_path, 1)
    home = made.sites[SiteId("site-00")]
    old = ((home / "tls" / "site.pem").read_bytes(), (home / "tls" / "site.key").read_bytes())
    hospitals.renew(home, passphrase=PASSPHRASE)
    assert ((home / "tls" / "site.pem").read_bytes(), (home / "tls" / "site.key").read_bytes()) == old
    made.let_in(home)
    assert (home / "tls" / "site.pem").read_bytes() != old[0]
    assert (home / "tls" / "site.key").read_bytes() != old[1]
    assert len(operators.admitted(made.operator)) == 1


def test_an_admission_of_before_a_renewal_is_for_no_key_any_more(tmp_path: Path) -> None:
    made = homes(tmp_path, 1)
    home = made.sites[SiteId("site-00")]
    old = (home / "admission.json").read_bytes()
    hospitals.renew(home, passphrase=PASSPHRASE)
    made.let_in(home)
    (tmp_path / "old.json").write_bytes(old)
    assert code_of(lambda: hospitals.install(home, tmp_path / "old.json", passphrase=PASSPHRASE)) == "CSL-141"


def test_removing_a_site_leaves_the_others(tmp_path: Path) -> None:
    made = homes(tmp_path, 3)
    operators.remove(made.operator, "site-01")
    assert [site.site for site in operators.admitted(made.operator)] == ["site-00", "site-02"]
    assert not (made.operator / "sites" / "site-01.pem").exists()
    assert code_of(lambda: operators.remove(made.operator, "site-01")) == "CSL-122"


def test_a_peer_is_remembered_by_the_fingerprint_that_was_heard(tmp_path: Path) -> None:
    made = homes(tmp_path, 1)
    home, key = made.sites[SiteId("site-00")], Identity.generate().public_key
    hospitals.remember(home, "east", f" {fingerprint(key).upper()} ", key)
    assert SiteConfig.load(home / hospitals.FILE).verified == {"east": fingerprint(key)}
    again = Identity.generate().public_key
    hospitals.remember(home, "east", fingerprint(again), again)
    assert SiteConfig.load(home / hospitals.FILE).verified == {"east": fingerprint(again)}
    assert code_of(lambda: hospitals.remember(home, "east", fingerprint(key), again)) == "CSL-144"
    assert code_of(lambda: hospitals.remember(home, 'x" = "', fingerprint(key), key)) == "CSL-144"


def test_the_servers_certificate_is_renewed_for_the_same_names_and_key(tmp_path: Path) -> None:
    made = homes(tmp_path)
    path = made.operator / "tls" / "server.pem"
    old = x509.load_pem_x509_certificate(path.read_bytes())
    until = operators.renew_server(made.operator, PASSPHRASE)
    new = x509.load_pem_x509_certificate(path.read_bytes())
    assert new.serial_number != old.serial_number
    assert new.public_key() == old.public_key()
    assert new.not_valid_after_utc == until
    for certificate in (old, new):
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(name) for name in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
