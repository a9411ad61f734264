"""The coordinator's own authority and the certificate that its server shows: made, renewed, and their end told in time.

The authority lasts ten years and is what partners trust; the server's certificate lasts 825 days, the longest that common clients take, and
is renewed under the same authority, so no partner has to do anything. Curve P-384, SHA-384, the extensions that strict checks of RFC 5280
ask for. Keys are PKCS #8 without a passphrase, because nobody is there to type one when a machine starts: 0600, in a folder of 0700.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.errors import ConfigError

from .private_files import check_private

CA_DAYS = 3652
LEAF_DAYS = 825
WARN_DAYS = 30
_EARLIER = timedelta(hours=1)  # a partner's clock may be a little behind
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Validity:
    """When a certificate holds.

    Args:
        since, until: in UTC.
        names: hosts it was made for, sorted; none for an authority.
    """

    since: datetime
    until: datetime
    names: tuple[str, ...]

    def days_left(self, now: datetime) -> int:
        """Whole days until it ends; negative when it has ended.

        >>> day = datetime(2030, 1, 1, tzinfo=UTC)
        >>> validity = Validity(since=day, until=day + timedelta(days=10, hours=5), names=())
        >>> validity.days_left(day), validity.days_left(day + timedelta(days=10, hours=6))
        (10, -1)
        """
        return (self.until - now).days

    def warning(self, what: str, do: str, now: datetime) -> str:
        """A line for people where the certificate ended, is about to end, or has not begun; else empty."""
        day = self.until.strftime("%Y-%m-%d")
        if now < self.since:
            return f"{what} holds from {self.since:%Y-%m-%d %H:%M} UTC only: check this machine's clock"
        if now > self.until:
            return f"{what} ended on {day}: nobody can connect. {do}"
        if self.days_left(now) < WARN_DAYS:
            return f"{what} ends on {day}, in {self.days_left(now)} days. {do}"
        return ""


def new_key() -> bytes:
    """A private key in PEM."""
    made = ec.generate_private_key(ec.SECP384R1())
    return made.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def authority(key_pem: bytes, now: datetime) -> bytes:
    """A self-signed certificate in PEM. The same key under the same name: what it signed before stays good."""
    key = _loaded(key_pem)
    name = _name("isthmus coordinator's authority")
    built = _begun(name, name, key.public_key(), now, CA_DAYS)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    built = built.add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
    built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
    return built.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def leaf(key_pem: bytes, *, ca_pem: bytes, ca_key_pem: bytes, hosts: Sequence[str], now: datetime) -> bytes:
    """The server's certificate in PEM: for these hosts, and for this machine itself.

    Raises:
        ConfigError: the authority's certificate has another key, or ends too soon.
    """
    ca, ca_key, key = _certificate(ca_pem), _loaded(ca_key_pem), _loaded(key_pem)
    if ca.public_key() != ca_key.public_key():
        raise ConfigError("the authority's key does not belong to its certificate", do="Restore ca.crt and ca.key from the same copy.")
    if ca.not_valid_after_utc <= now:
        raise ConfigError("the authority's certificate has ended", do="Make a new home; every partner joins it with a new JOIN.json.")
    names = list(dict.fromkeys([*hosts, *_LOOPBACK]))
    built = _begun(_name("isthmus server"), ca.subject, key.public_key(), now, LEAF_DAYS, last=ca.not_valid_after_utc)
    built = built.add_extension(x509.SubjectAlternativeName([_general_name(host) for host in names]), critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    built = built.add_extension(_usage(digital_signature=True), critical=True)
    built = built.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
    return built.sign(ca_key, hashes.SHA384()).public_bytes(serialization.Encoding.PEM)


def validity(path: Path) -> Validity:
    """When a certificate on disk holds, and for whom.

    Raises:
        ConfigError: there is none, or it is damaged.
    """
    found = _certificate(_bytes(path), path)
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = {*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))}
    except x509.ExtensionNotFound:
        hosts = set()
    return Validity(since=found.not_valid_before_utc, until=found.not_valid_after_utc, names=tuple(sorted(hosts)))


def check_pair(certificate: Path, key: Path, *, issuer: Path | None = None) -> None:
    """Whether a certificate belongs to the key beside it and was signed by the authority; dates are not looked at.

    Raises:
        ConfigError: they do not belong together, one cannot be read, or the key is open to others.
    """
    check_private(key, "it is the key of a certificate")
    found = _certificate(_bytes(certificate), certificate)
    if found.public_key() != _loaded(_bytes(key), key).public_key():
        raise ConfigError(f"{certificate} was not made for {key}", do="Run isthmus-server renew: it makes one for the key that is there.")
    if issuer is not None:
        ca = _certificate(_bytes(issuer), issuer)
        try:
            found.verify_directly_issued_by(ca)
        except Exception:  # InvalidSignature, ValueError, TypeError: whatever kind of key the other one has
            raise ConfigError(
                f"{certificate} was not signed by the authority {issuer}", do="Run isthmus-server renew: it makes one that is."
            ) from None


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    last: datetime | None = None,
) -> x509.CertificateBuilder:
    until = now.astimezone(UTC) + timedelta(days=days)
    built = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public, serial_number=x509.random_serial_number())
    built = built.not_valid_before(now.astimezone(UTC) - _EARLIER).not_valid_after(until if last is None else min(until, last))
    return built.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})", do="Run isthmus-server init again, or restore it.") from None


def _certificate(pem: bytes, path: Path | None = None) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError:
        raise ConfigError(f"{path or 'the authority'} is no certificate", do="Restore it from a copy.") from None


def _loaded(pem: bytes, path: Path | None = None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):  # TypeError: it has a passphrase
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path or 'a private key'} is no EC key in PEM without a passphrase", do="Restore it from a copy.") from None
    return key
