"""A coordinator of tests: its key, its authority, server certificates of every kind, and the cards it hands out."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.enrolment import JoinCard, PublicHalf
from shared.privacy.signing import SigningPair

DAY = datetime.timedelta(days=1)
_PEM = serialization.Encoding.PEM


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass
class Coordinator:
    """One authority and one signing key."""

    key: ec.EllipticCurvePrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    signer: SigningPair = field(default_factory=SigningPair.generate)
    days: int = 3650

    def __post_init__(self) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority of a test")])
        builder = (
            x509.CertificateBuilder(self.name, self.name, self.key.public_key(), x509.random_serial_number())
            .not_valid_before(_now() - 4000 * DAY)
            .not_valid_after(_now() + self.days * DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self.key.public_key()), critical=False)
        )
        self.certificate = builder.sign(self.key, hashes.SHA384())

    @property
    def ca_pem(self) -> str:
        return self.certificate.public_bytes(_PEM).decode()

    def join_card(
        self, *, domain: str | None = "books", server: str = "isthmus.example:8443", partners: Iterable[PublicHalf] = ()
    ) -> JoinCard:
        return JoinCard.signed(self.signer, server=server, ca_pem=self.ca_pem, domain=domain, partners=partners)

    def write_leaf(self, folder: Path, *, names: Iterable[str] = ("localhost", "127.0.0.1"), begins: float = -5, ends: float = 30) -> Path:
        """A server certificate with its key in one file.

        Args:
            begins, ends: days from now.
        """
        key = ec.generate_private_key(ec.SECP384R1())
        alternatives: list[x509.GeneralName] = []
        for name in names:
            try:
                alternatives.append(x509.IPAddress(ipaddress.ip_address(name)))
            except ValueError:
                alternatives.append(x509.DNSName(name))
        builder = (
            x509.CertificateBuilder(self.name, x509.Name([]), key.public_key(), x509.random_serial_number())
            .not_valid_before(_now() + begins * DAY)
            .not_valid_after(_now() + ends * DAY)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), critical=False)
        )
        form = _PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        path = folder / "leaf.pem"
        path.write_bytes(key.private_bytes(*form) + builder.sign(self.key, hashes.SHA384()).public_bytes(_PEM))
        return path
