"""The certificate that a partner's own server shows, where passports are delivered to it.

Partners pin it: it stands in the public keys that went from hand to hand, and no other is accepted at that address. So one that nobody
issued serves as well as any, and better than the coordinator's: whoever issues a certificate that partners trust by its issuer could stand
in for the server. What is delivered is sealed and signed all the same.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import stat
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shared.addresses import split_address
from shared.errors import ConfigError

from .durable_files import storage_errors
from .settings import ClientSettings

FILE = "passports.pem"
_VALID = timedelta(days=3650)  # as the keys beside it, it changes when somebody decides so: each change means new files for all partners
_PEM = serialization.Encoding.PEM


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What a server shows, and what proves that it may.

    Attributes:
        chain: certificates, PEM; its own first.
        leaf: its own alone, PEM: what partners pin.
        key: private key, PEM.
        until: when its own certificate ends, UTC.
    """

    chain: bytes
    leaf: str
    key: bytes
    until: datetime

    def __repr__(self) -> str:
        return f"Identity(until={self.until:%Y-%m-%d})"


def identity(settings: ClientSettings) -> Identity:
    """The certificate of the settings, or this domain's own, which is made where there is none.

    Raises:
        ConfigError: it is damaged, ended, names no host, does not belong to its key, or others may read the key; names the file.
        StorageError: it cannot be written.
    """
    chosen = settings.passports
    if chosen.certificate:
        return _read(settings.path(chosen.certificate), settings.path(chosen.key))
    path = settings.at_home("keys") / FILE
    if not path.exists():
        if not chosen.address:
            raise ConfigError("'passports.address' is not set", do="Set it to the HOST:PORT at which partners reach this domain's server.")
        _create(path, split_address(chosen.address)[0])
    return _read(path, path)


def name_in(certificate: str) -> str:
    """A name that a certificate (PEM) holds for; it is asked for under that name wherever the server stands.

    Raises:
        ValueError: it is no certificate, or holds for no name.
    """
    try:
        names = x509.load_pem_x509_certificate(certificate.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension):
        raise ValueError("no name") from None
    hosts = [name.replace("*", "x", 1) for name in names.get_values_for_type(x509.DNSName)]
    found = hosts + [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    if not found:
        raise ValueError("no name")
    return found[0]


def _read(certificate: Path, key: Path) -> Identity:
    renew = f"Put another in place of {certificate.name}, and give partners the public keys again."
    try:
        mode, chain_pem, key_pem = key.stat().st_mode, certificate.read_bytes(), key.read_bytes()
    except OSError as error:
        raise ConfigError(f"{Path(error.filename).name} cannot be read", do="Check the path and who may read it.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise ConfigError(f"{key.name} can be read by others than its owner", do=f"Run chmod 600 on {key.name}.")
    try:
        chain = x509.load_pem_x509_certificates(chain_pem)
        private = serialization.load_pem_private_key(key_pem, password=None)
        fits = _public_bytes(private.public_key()) == _public_bytes(chain[0].public_key())
        leaf = chain[0].public_bytes(_PEM).decode()
        name_in(leaf)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        what = f"{certificate.name} and {key.name} are not a certificate that names a host and its private key without a password, as PEM"
        raise ConfigError(what, do=renew) from None
    if not fits:
        raise ConfigError(f"{key.name} is not the key of {certificate.name}", do="Name the two that belong together.")
    now = datetime.now(UTC)
    if not chain[0].not_valid_before_utc <= now < chain[0].not_valid_after_utc:
        ended = now >= chain[0].not_valid_after_utc
        day = chain[0].not_valid_after_utc if ended else chain[0].not_valid_before_utc
        raise ConfigError(f"the certificate in {certificate.name} {'ended' if ended else 'begins'} on {day:%Y-%m-%d}", do=renew)
    key_bytes = private.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Identity(chain=b"".join(one.public_bytes(_PEM) for one in chain), leaf=leaf, key=key_bytes, until=chain[0].not_valid_after_utc)


def _public_bytes(key: object) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(key.public_bytes(serialization.Encoding.DER, form))  # type: ignore[attr-defined]


def _create(path: Path, host: str) -> None:
    """One file (0600) with key and certificate; another process may be first."""
    private = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "isthmus passports")])  # no domain: a certificate travels in the clear
    try:
        known_as: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        known_as = x509.DNSName(host)
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + _VALID)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([known_as]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(private, hashes.SHA384())
    )
    secret = private.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with storage_errors(f"'{path.name}'"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(secret + made.public_bytes(_PEM))
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.unlink(temporary)
