"""A new certificate for the server under the same authority, and new names for it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shared.errors import ConfigError

from . import certificates
from .enrolment import cards, write_join_cards
from .home import SETTINGS_FILE, Home
from .private_files import check_private, locked, replace_file
from .settings import ServerSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Renewal:
    """What a renewal did.

    Args:
        renewed: whether there is a new certificate.
        told: domains whose cards were written anew, because the address changed.
    """

    renewed: bool
    told: tuple[str, ...]


def renew(
    root: Path, *, hosts: Sequence[str] = (), within_days: int | None = None, new_key: bool = False, now: datetime | None = None
) -> Renewal:
    """Makes a new certificate for the server.

    It also heals a home whose certificate and key do not belong together, as one restored from two copies; so it asks of the home only what
    it needs itself.

    Args:
        hosts: new names and addresses; none: those of ``server.toml``.
        within_days: only where fewer days are left, the names changed, or the certificate cannot be used.
        new_key: for the server, not the authority.
    Raises:
        ConfigError: the authority's key is not here, or something cannot be used.
        StorageError: no space left; calling it again completes what was begun.
    """
    now = now or datetime.now(UTC)
    root = Path(os.path.abspath(root))
    place = root / SETTINGS_FILE
    if not place.exists():
        raise ConfigError(f"{root} is no coordinator's home", do="isthmus-server init FOLDER --host NAME makes one.")
    check_private(root, "it holds private keys")
    with locked(root):
        home = Home(root=root, settings=ServerSettings.read(place))
        if hosts:
            home = Home(root=root, settings=dataclasses.replace(home.settings, hosts=",".join(hosts)))
        needed = new_key or within_days is None or not _lasts(home, within_days, now)
        if needed:
            key = certificates.new_key() if new_key else None
            data = home.new_certificate(now=now, key_pem=key)  # before anything is changed: it may refuse
            if key is not None:
                replace_file(home.certificate_key, key)
            replace_file(home.certificate, data)
        if hosts:
            replace_file(place, home.settings.to_toml().encode())
        home.write_derived()
        told = write_join_cards(home, cards(home))
    return Renewal(renewed=needed, told=told)


def _lasts(home: Home, days: int, now: datetime) -> bool:
    """Whether the certificate can be used for so long, for every name."""
    try:
        certificates.check_pair(home.certificate, home.certificate_key, issuer=home.ca)
        found = certificates.validity(home.certificate)
    except ConfigError:
        return False
    return found.days_left(now) >= days and found.since <= now and set(home.settings.host_names) <= set(found.names)
