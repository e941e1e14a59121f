"""The operator's file is strict, its certificates are for one purpose each, its listener says what it cannot use."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from starlette.responses import Response

from common import errors
from common.errors import ConsiliumError, Fault
from server.config import ServerConfig
from server.listener import Address, listening, tls_context
from tests.links import Issuer

GOOD = {
    "state": '"state"',
    "studies": '"studies"',
    "sites": '"sites"',
    "listen": '"0.0.0.0:9092"',
    "tls": '{certificate = "tls/server.pem", key = "tls/server.key", client_ca = "tls/ca.pem"}',
    "keys": '{identity = "keys/identity.pem", passphrase = "env:CONSILIUM_PASSPHRASE"}',
}


def loaded(folder: Path, **changes: str) -> ServerConfig:
    fields = {name: value for name, value in (GOOD | changes).items() if value}
    (folder / "server.toml").write_text("".join(f"{name} = {value}\n" for name, value in fields.items()))
    return ServerConfig.load(folder / "server.toml")


def refused(fault: Fault, folder: Path, **changes: str) -> str:
    with pytest.raises(ConsiliumError) as raised:
        loaded(folder, **changes)
    assert raised.value.fault is fault
    return str(raised.value)


def test_paths_are_below_the_file_and_what_is_not_said_has_its_usual_value(tmp_path: Path) -> None:
    config = loaded(tmp_path, health='"[::1]:9093"')
    assert config.state == tmp_path / "state"
    assert config.tls.client_ca == tmp_path / "tls" / "ca.pem"
    assert config.listen_address == Address("0.0.0.0", 9092)  # noqa: S104
    assert config.health_address == Address("::1", 9093)
    assert config.journal_url == f"sqlite:///{tmp_path}/state/journal.sqlite"
    assert loaded(tmp_path, journal='"postgresql+pg8000://a:b@c/d"').journal_url == "postgresql+pg8000://a:b@c/d"
    assert loaded(tmp_path).health_address is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"health": '"0.0.0.0:9093"'}, "health"),
        ({"health": '"operator.example:9093"'}, "health"),
        ({"listen": '"9092"'}, "listen"),
        ({"listen": '"host:65536"'}, "listen"),
        ({"listen": '"host:-1"'}, "listen"),
        ({"state": ""}, "state"),
        ({"state": '"a\\u0000b"'}, "state"),
        ({"deadline": "1.0"}, "deadline"),
        ({"deadline": "nan"}, "deadline"),
        ({"quorum": "-1"}, "quorum"),
        ({"keys": '{identity = "k", passphrase = "hunter2"}'}, "passphrase"),
        ({"backbone": "{}"}, "backbone"),
        ({"backbone": '{folder = "a", package = "b"}'}, "backbone"),
        ({"noise": '"off"'}, "noise"),
    ],
)
def test_a_field_that_is_wrong_is_named(tmp_path: Path, changes: dict[str, str], named: str) -> None:
    assert named in refused(errors.SERVER_FILE_INVALID, tmp_path, **changes)


def test_a_file_that_is_not_there_or_no_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConsiliumError) as raised:
        ServerConfig.load(tmp_path / "none.toml")
    assert raised.value.fault is errors.SERVER_FILE_UNREADABLE
    refused(errors.SERVER_FILE_UNREADABLE, tmp_path, state="= =")


def test_a_certificate_is_for_a_server_or_a_site_and_never_for_signing_others() -> None:
    authority = Issuer("tests")
    root = x509.load_pem_x509_certificate(authority.certificate)
    for issued, purpose in (
        (authority.server("127.0.0.1", "operator.example"), ExtendedKeyUsageOID.SERVER_AUTH),
        (authority.site("north"), ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        certificate = x509.load_pem_x509_certificate(issued.certificate)
        certificate.verify_directly_issued_by(root)
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [purpose]
        assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        assert not certificate.extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
        assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_a_servers_names_are_addresses_and_hosts() -> None:
    issued = Issuer("tests").server("127.0.0.1", "operator.example")
    certificate = x509.load_pem_x509_certificate(issued.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]
    assert names.get_values_for_type(x509.DNSName) == ["operator.example"]


@pytest.mark.parametrize("broken", ["certificate", "key", "client_ca", "another key"])
def test_files_that_are_no_certificates_are_said_before_anything_listens(tmp_path: Path, broken: str) -> None:
    authority = Issuer("tests")
    authority.server("127.0.0.1").write(tmp_path / "certificate", tmp_path / "key")
    (tmp_path / "client_ca").write_bytes(authority.certificate)
    if broken == "another key":
        (tmp_path / "key").write_bytes(authority.server("127.0.0.1").key)
    else:
        (tmp_path / broken).write_bytes(b"nothing")
    with pytest.raises(ConsiliumError) as raised:
        tls_context(str(tmp_path / "certificate"), str(tmp_path / "key"), str(tmp_path / "client_ca"))
    assert raised.value.fault is errors.LINK_TLS


def test_an_address_that_is_taken_is_said() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(ConsiliumError) as raised,
        listening(Response(), Address("127.0.0.1", taken.getsockname()[1]), None),
    ):
        pass
    assert raised.value.fault is errors.LINK_LISTEN


def test_a_listener_is_gone_when_its_context_is_left() -> None:
    with (
        listening(Response(b"here"), Address("127.0.0.1", 0), None) as port,
        socket.create_connection(("127.0.0.1", port), 5) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert b"here" in connection.makefile("rb").read()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 5)
