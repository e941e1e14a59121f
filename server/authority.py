"""The operator's own certificate authority: one key that says who is the server and who is a site, to TLS.

It vouches for connections only. Who may take part in a study its roster says, and nothing that a certificate says
replaces a site's signature.
"""

from __future__ import annotations

import datetime
import ipaddress

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common import errors
from common.errors import ConsiliumError

_BACKDATED = datetime.timedelta(minutes=10)
"""Clocks differ: a certificate made a moment ago must already hold."""
_DAYS = 397
_AUTHORITY_DAYS = 3650


class Authority:
    """A certificate authority: its key and its own certificate, PEM."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: bytes) -> None:
        self._key, self.certificate = key, certificate
        self._name = x509.load_pem_x509_certificate(certificate).subject

    @classmethod
    def create(cls, name: str) -> tuple[Authority, ec.EllipticCurvePrivateKey]:
        """Make a new authority; returns it with its private key, for the keystore."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        certificate = (
            _builder(subject, subject, key.public_key(), _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate.public_bytes(Encoding.PEM)), key

    def server(self, key: ec.EllipticCurvePublicKey, *hosts: str, days: int = _DAYS) -> bytes:
        """Issue a certificate for a server under some names or addresses, PEM."""
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        return self._issue(key, hosts[0], ExtendedKeyUsageOID.SERVER_AUTH, x509.SubjectAlternativeName(names), days)

    def site(self, key: ec.EllipticCurvePublicKey, name: str, *, days: int = _DAYS) -> bytes:
        """Issue a certificate with which a site may open a connection, PEM."""
        names = x509.SubjectAlternativeName([x509.DNSName(f"{name}.site.invalid")])
        return self._issue(key, name, ExtendedKeyUsageOID.CLIENT_AUTH, names, days)

    def _issue(
        self,
        key: ec.EllipticCurvePublicKey,
        name: str,
        purpose: x509.ObjectIdentifier,
        names: x509.SubjectAlternativeName,
        days: int,
    ) -> bytes:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(subject, self._name, key, days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(authority, critical=False)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
        )


def requested_key(request: bytes) -> ec.EllipticCurvePublicKey:
    """Return the key of a certificate request that its holder signed; nothing else in it counts. Raises CSL-140."""
    try:
        found = x509.load_pem_x509_csr(request)
        key = found.public_key()
        if not found.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
            raise ValueError("not signed by its own key")
    except (ValueError, TypeError, InvalidSignature) as error:
        raise ConsiliumError(errors.ENROLMENT_INVALID, "the certificate request") from error
    return key


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATED)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
