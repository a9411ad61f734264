"""What the service shows its callers, and what it asks of them: TLS, and mutual TLS where callers have certificates too."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import grpc  # type: ignore[import-untyped]
from cryptography import x509

from shared.errors import ConfigError, UsageError

from .passport_certificate import Identity, identity
from .settings import ClientSettings


def read_identity(settings: ClientSettings, certificate: Path | None, key: Path | None) -> Identity | None:
    """The certificate that the service shows; None where none was named.

    Raises:
        UsageError: one of the two was named without the other.
        ConfigError: it is damaged, ended, names no host, does not belong to its key, or others may read the key; names the file.
    """
    if (certificate is None) != (key is None):
        raise UsageError("--certificate and --key are given together, or neither is")
    if certificate is None or key is None:
        return None
    named = dataclasses.replace(settings.passports, certificate=str(certificate.absolute()), key=str(key.absolute()))
    try:
        return identity(dataclasses.replace(settings, passports=named))
    except ConfigError as error:
        raise ConfigError(
            error.what, do=f"Put a certificate and its key (0600) where --certificate and --key say: {certificate}."
        ) from None


def credentials(shown: Identity, client_ca: Path | None) -> grpc.ServerCredentials:
    """For a gRPC server.

    Args:
        shown: what the service shows.
        client_ca: certificates (PEM) of those who issue certificates to callers; None = callers show none.
    Raises:
        ConfigError: the file cannot be read, or holds no certificate.
    """
    if client_ca is None:
        return grpc.ssl_server_credentials([(shown.key, shown.chain)])
    try:
        authorities = client_ca.read_bytes()
        x509.load_pem_x509_certificates(authorities)
    except OSError:
        raise ConfigError(f"{client_ca} cannot be read", do="Check the path and who may read it.") from None
    except ValueError:
        raise ConfigError(f"{client_ca} holds no certificate as PEM", do="Name the certificate of who issues your callers' ones.") from None
    return grpc.ssl_server_credentials([(shown.key, shown.chain)], root_certificates=authorities, require_client_auth=True)
