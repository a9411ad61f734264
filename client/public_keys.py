"""The file with a partner's public keys: written for others to have, never in place of another file."""

from __future__ import annotations

from pathlib import Path

from shared.errors import PassportError, UsageError

from .durable_files import write_file
from .keys import Keys, PublicKeys
from .settings import ClientSettings


def public_of(settings: ClientSettings, keys: Keys) -> PublicKeys:
    """The public half of a domain's keys, with the address of its server for passports where it has one.

    Raises:
        ConfigError: the certificate of that server cannot be used.
    """
    address = settings.passports.address
    if not address:
        return keys.public(settings.domain)
    from .passport_certificate import identity  # only for those who have a server

    return keys.public(settings.domain, address=address, certificate=identity(settings).leaf)


def check_place(path: Path, domain: str) -> None:
    """Refuses a place that holds anything but earlier keys of this domain.

    Raises:
        UsageError: naming the file.
    """
    if not path.exists():
        return
    try:
        there = PublicKeys.from_json(path.read_text(encoding="utf-8")).partner
    except (OSError, UnicodeDecodeError, PassportError):
        there = ""
    if there != domain:
        raise UsageError(f"{path} exists and does not hold this domain's keys", do="Name another file with --out.")


def write_public(path: Path, public: PublicKeys) -> None:
    """Writes the public half, in one step, over earlier keys of the same domain.

    Raises:
        UsageError: something else is there.
        StorageError: no space left, or the folder cannot be written.
    """
    check_place(path, public.partner)
    write_file(path, public.to_json().encode())
