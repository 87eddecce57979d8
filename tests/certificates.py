"""Certificates for a test: an authority of its own, and what it signs; keys live in temporary folders only."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

NAMES = ("localhost", "127.0.0.1")
_DAY = timedelta(days=1)
_SIGNS = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates.

    Args:
        folder: Where its files go.
        name: What it calls itself.
    """

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        own = self._builder(self._name, self._key).issuer_name(self._name)
        own = own.add_extension(x509.BasicConstraints(True, 0), critical=True)
        own = own.add_extension(_SIGNS, critical=True)
        own = own.add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
        self.ca = folder / f"{name.replace(' ', '-')}.pem"
        self.ca.write_bytes(own.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def issue(
        self,
        label: str,
        *names: str,
        password: str | None = None,
        is_expired: bool = False,
        is_self_signed: bool = False,
    ) -> Pair:
        """Make a certificate, by default for this machine.

        Args:
            label: Begins the names of its files.
            names: That it is for: hosts and addresses.
            password: Of its key.
            is_expired: Whether its time is over.
            is_self_signed: Whether it signs itself, and not this authority.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, label)])
        alternatives = x509.SubjectAlternativeName([_general(each) for each in names or NAMES])
        builder = self._builder(subject, key, is_expired=is_expired).add_extension(alternatives, critical=False)
        if is_self_signed:
            signed = builder.issuer_name(subject).sign(key, hashes.SHA256())
        else:
            # Python 3.13 refuses a certificate that does not name the key that has signed it.
            by = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
            builder = builder.add_extension(by, critical=False)
            signed = builder.issuer_name(self._name).sign(self._key, hashes.SHA256())
        pair = Pair(self._folder / f"{label}.pem", self._folder / f"{label}.key")
        pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if password is not None:
            encryption = serialization.BestAvailableEncryption(password.encode())
        form = serialization.PrivateFormat.PKCS8
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, encryption))
        return pair

    @staticmethod
    def _builder(
        subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, is_expired: bool = False
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 3 * _DAY)
            .not_valid_after(now - _DAY if is_expired else now + _DAY)
        )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
