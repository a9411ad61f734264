"""How a domain begins at its partner: a folder with settings and keys, a card for the coordinator, and what the coordinator's card brings.

Nothing is ever overwritten. Whatever is there already is kept where it fits and refused where it does not; a call that was cut off is
finished by the next one.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.enrolment import JoinCard, PartnerCard, Ranges
from shared.errors import DataError, IsthmusError, UsageError

from .durable_files import storage_errors
from .keys import PublicKeys
from .settings import ClientSettings
from .settings_file import fill_in, settings_from, written

SETTINGS_FILE, CARD_FILE = "partner.toml", "PARTNER.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One thing that a domain needs. ``made``: now, and not before."""

    what: str
    path: Path
    made: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A domain that began.

    Attributes:
        card: what the coordinator gets.
        steps: what was made, and what was there.
    """

    settings: ClientSettings
    card: PartnerCard
    steps: tuple[Step, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A domain that knows its coordinator."""

    settings: ClientSettings
    card: JoinCard
    steps: tuple[Step, ...]


def begin(folder: Path, *, domain: str, changes: Mapping[str, Any], with_ledger: bool) -> Begun:
    """Makes a domain's folder: settings, home, keys, the node's key, perhaps the ledger, and PARTNER.json.

    Args:
        folder: made where it is missing (0700).
        changes: dotted key of partner.toml -> value, where it is not the default.
        with_ledger: make the ledger now, with the ceiling of the settings.
    Raises:
        UsageError: the folder belongs to another domain, or its settings say something else.
        ConfigError: a key is unknown or out of range.
        LedgerError: a ledger was lost here, or the one that is there permits something else.
        StorageError: it cannot be written.
    """
    from .key_rotation import own_keys

    folder = folder.absolute()
    toml = folder / SETTINGS_FILE
    wanted = settings_from(folder, {"domain": domain}, changes)
    with storage_errors(f"'{folder.name}'"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    steps = [Step(what="settings", path=toml, made=_make(toml, written(wanted).encode()))]
    settings = ClientSettings.read(toml)
    if not steps[0].made:
        _check_same(settings, wanted, changes)
    home = settings.path(settings.home)
    with storage_errors(f"'{home.name}'"):
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.path(settings.passports.partners).mkdir(mode=0o700, parents=True, exist_ok=True)
    had_keys = (home / "keys" / "partner.keys").exists()
    keys = own_keys(settings)
    steps.append(Step(what="keys", path=home / "keys" / "partner.keys", made=not had_keys))
    steps.append(Step(what="key of the node", path=settings.node_key_path, made=make_node_key(settings.node_key_path)))
    if with_ledger:
        steps.append(Step(what="ledger", path=settings.ledger_path, made=_make_ledger(settings)))
    card = partner_card(settings)
    steps.append(_write_card(folder / CARD_FILE, card, keys.verify_key))
    return Begun(settings=settings, card=card, steps=tuple(steps))


def join(toml: Path, card: JoinCard, *, expected: str = "") -> Joined:
    """Takes the coordinator's card: its address, its authority's certificate, its key, and the public keys of the other partners.

    Args:
        toml: settings of a domain that began.
        expected: the card's fingerprint, where the coordinator told it; blanks and case do not matter.
    Raises:
        UsageError: the card is for somebody else, has another fingerprint, or says something else than what is here already.
        DataError: the authority's certificate has ended.
        StorageError: something cannot be written; the same call goes on where it ended.
    """
    settings = ClientSettings.read(toml)
    _check_card(settings, card, expected)
    ca, new_keys = settings.ca_path, _new_partners(settings, card)
    pem = card.ca_pem.encode()
    if ca.exists() and ca.read_bytes() != pem:
        do = "Compare the fingerprint with the coordinator; to follow the new one, move that file away and try again."
        raise UsageError(f"{ca.name} holds the certificate of another authority", do=do)
    steps = [Step(what="certificate of the authority", path=ca, made=_make(ca, pem))]
    for path, keys in new_keys.items():
        steps.append(Step(what=f"public keys of '{keys.partner}'", path=path, made=_make(path, keys.to_json().encode())))
    filled = fill_in(toml, "server", {"address": card.server, "coordinator_key": card.coordinator_key})
    steps.append(Step(what="address and key of the coordinator", path=toml, made=filled))
    return Joined(settings=ClientSettings.read(toml), card=card, steps=tuple(steps))


def partner_card(settings: ClientSettings) -> PartnerCard:
    """What this domain tells the coordinator: public keys, ceiling (the ledger's, where there is one), ranges, hash of the catalogue.

    Raises:
        ConfigError: the node has no key.
    """
    from .key_rotation import own_keys

    keys, agreed = own_keys(settings), settings.agreed
    epsilon, delta = _ceiling(settings)
    return PartnerCard.signed(
        keys,
        domain=settings.domain,
        box_key=keys.public(settings.domain).box_key,
        node_key=public_node_key(settings.node_key_path),
        ceiling_epsilon=epsilon,
        delta=delta,
        ranges=Ranges(**{name: getattr(agreed, name) for name in Ranges.RULES}),
        catalogue_hash=_catalogue_hash(settings),
    )


def make_node_key(path: Path) -> bool:
    """Makes the key by which Flower knows this node: ECDSA P-384, OpenSSH's form, 0600; beside it the public half. Whether it was made.

    Raises:
        StorageError: it cannot be written.
    """
    made = False
    if not path.exists():
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        form = serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        made = _make(path, ec.generate_private_key(ec.SECP384R1()).private_bytes(*form))
    _make(path.with_name(f"{path.name}.pub"), f"{public_node_key(path)}\n".encode())
    return made


def public_node_key(path: Path) -> str:
    """The public half of the node's key, as OpenSSH writes it, without a comment.

    Raises:
        DataError: there is none, or it is not a private key on P-384 in OpenSSH's form without a passphrase.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise DataError(f"the node's key '{path.name}' cannot be read: {error.strerror}", do="Make it with isthmus-client init.") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        do = "Move it away, and let isthmus-client init make another one; the coordinator then needs the new PARTNER.json."
        raise DataError(f"the node's key '{path.name}' is not ECDSA P-384 in OpenSSH's form without a passphrase", do=do)
    form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    return key.public_key().public_bytes(*form).decode("ascii")


# --- small parts -----------------------------------------------------------------------------------------------------------------------


def _make(path: Path, data: bytes) -> bool:
    """Writes a file that does not exist, whole or not at all (0600). Whether it was made."""
    if path.exists():
        return False
    with storage_errors(f"'{path.name}'"):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(name, path)
        except FileExistsError:  # another process was first
            return False
        finally:
            os.unlink(name)
    return True


def _check_same(there: ClientSettings, wanted: ClientSettings, changes: Mapping[str, Any]) -> None:
    """Refuses to go on in a folder whose settings say something else than what was asked for."""
    if there.domain != wanted.domain:
        raise UsageError(f"this folder belongs to the domain '{there.domain}'", do="Name another folder: each domain has its own.")
    for key in changes:
        table, _, last = key.rpartition(".")
        if getattr(getattr(there, table) if table else there, last) != getattr(getattr(wanted, table) if table else wanted, last):
            raise UsageError(f"{SETTINGS_FILE} is there already and says another '{key}'", do="Edit it there: it is never overwritten.")


def _make_ledger(settings: ClientSettings) -> bool:
    from .ledger_life import create, overview

    if not settings.ledger_path.exists():
        create(settings)
        return True
    found = overview(settings)
    if (found.domain, found.first_ceiling, found.delta) != (settings.domain, settings.ceiling.epsilon, settings.ceiling.delta):
        do = "See it with isthmus-client ledger show. A ceiling is changed by ledger raise-ceiling only."
        raise UsageError("there is a ledger already, and it permits something else", do=do)
    return False


def _ceiling(settings: ClientSettings) -> tuple[float, float]:
    from .ledger_life import overview

    if not settings.ledger_path.exists():
        return settings.ceiling.epsilon, settings.ceiling.delta
    found = overview(settings)
    return found.ceiling, found.delta


def _catalogue_hash(settings: ClientSettings) -> str | None:
    """Of the public catalogue; None where it cannot be read yet."""
    from .partner_data import partner_data

    try:
        with partner_data(settings) as data:
            return data.catalogue().content_hash
    except IsthmusError:
        return None


def _write_card(path: Path, card: PartnerCard, verify_key: str) -> Step:
    """Writes the card; one that says something else is moved aside, because an old card must not be sent by mistake."""
    data = card.to_json().encode()
    if path.exists():
        with contextlib.suppress(DataError):
            if PartnerCard.read(path) == card:
                return Step(what="card for the coordinator", path=path, made=False)
        aside = next(one for number in range(1, 10_000) if not (one := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists())
        with storage_errors(f"'{path.name}'"):
            os.rename(path, aside)
    return Step(what="card for the coordinator", path=path, made=_make(path, data))


def _check_card(settings: ClientSettings, card: JoinCard, expected: str) -> None:
    if card.domain not in (None, settings.domain):
        raise UsageError(f"this card was written for the domain '{card.domain}'", do="Ask the coordinator for yours.")
    if expected and "".join(expected.split()).lower() != "".join(card.fingerprint.split()):
        do = "Do not join: somebody may have exchanged the card on its way. Ask the coordinator, over the telephone."
        raise UsageError(f"the card's fingerprint is {card.fingerprint}, not the one you gave", do=do)
    if card.ca_until <= datetime.now(UTC):
        raise DataError(f"the authority's certificate ended on {card.ca_until:%Y-%m-%d}", do="Ask the coordinator for a new card.")


def _new_partners(settings: ClientSettings, card: JoinCard) -> dict[Path, PublicKeys]:
    """Files of public keys that are not here yet.

    Raises:
        UsageError: another file holds other keys of a partner.
    """
    from .passport_exchange import partners

    known, folder = partners(settings), settings.path(settings.passports.partners)
    new = {}
    for half in card.partners:
        keys = PublicKeys(partner=half.partner, verify_key=half.verify_key, box_key=half.box_key)
        path = folder / f"{half.partner}.json"
        there = known.get(half.partner, keys)
        if (there.verify_key, there.box_key) != (keys.verify_key, keys.box_key):
            do = "Compare the fingerprints with that partner; to follow the new keys, move the old file away and try again."
            raise UsageError(f"other keys of '{half.partner}' are here already, or the card's are not theirs", do=do)
        if half.partner not in known:
            new[path] = keys
    return new
