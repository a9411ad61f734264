"""Partners of a home: whom the coordinator knows, by which keys, and what was agreed with each.

A partner's card is checked before anything is written: its signature, whether its ceiling and delta are within what ``server.toml``
takes, and that no other domain has one of its keys. A domain that is known by another signing key, or by a lower ceiling, changes only
with a reason that somebody gives, because both are what the coordinator relies on; every change is a line of ``partners/history.jsonl``.
Then the partner's entry, its node's key and a card for each partner are written, each file as a whole; after a crash the same call
completes them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

from shared.config import RunConfig
from shared.enrolment import PartnerCard
from shared.errors import ConfigError, DataError, IsthmusError, UsageError

from .home import Home
from .partners import Agreement, Partners
from .private_files import append_line, locked, replace_file, storage_errors

HISTORY_FILE = "history.jsonl"
_HEAD = "# Who is enrolled, for the runs of this home. Written by isthmus-server enroll and partners remove; remarks in it are lost.\n"
_ASK = "Ask the partner, over another way than the file came by. If it is right, enrol it with --replace and the reason."


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrolled:
    """What an enrolment did.

    Args:
        card: the partner's.
        changed: fields that differ from the card before; None where the domain is new.
        join_card: file to send to the partner.
        told: domains whose cards were written anew, because they now list other keys: to be sent again.
        remarks: what the coordinator should know, a line each.
    """

    card: PartnerCard
    changed: tuple[str, ...] | None
    join_card: Path
    told: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One partner of a home.

    Args:
        domain: its name.
        agreement: ceiling and key, as runs are held to them.
        card: what it sent; None where its entry was written by hand.
    """

    domain: str
    agreement: Agreement
    card: PartnerCard | None


def enroll(home: Home, card: PartnerCard, *, replace: str | None = None, now: datetime | None = None) -> Enrolled:
    """Takes a partner in, or what it changed.

    Args:
        card: whose fingerprint somebody compared.
        replace: why a domain gets another signing key or a higher ceiling.
    Raises:
        DataError: the card asks for something that this coordinator does not do; nothing is written.
        ConfigError: what was enrolled before cannot be read.
        StorageError: no space left; calling it again completes what was begun.
    """
    with locked(home.root):
        agreements, before = _agreements(home), cards(home)
        _check_limits(home, card)
        _check_keys(card, before, agreements)
        known = before.get(card.domain)
        reason = _check_change(card, known, agreements.get(card.domain), replace)
        changed = None if known is None and card.domain not in agreements else _differences(known, card)
        if changed is None or changed or agreements.get(card.domain) != _agreement(card):
            _remember(home, card, "enrolled" if changed is None else "changed", reason, now)
        replace_file(card_file(home, card.domain), card.to_json().encode())
        replace_file(node_key_file(home, card.domain), f"{card.node_key} {card.domain}\n".encode())
        _write_agreements(home, {**agreements, card.domain: _agreement(card)})
        told = write_join_cards(home, {**before, card.domain: card})
        remarks = _remarks(home, card, before)
    return Enrolled(
        card=card,
        changed=changed,
        join_card=join_file(home, card.domain),
        told=tuple(domain for domain in told if domain != card.domain),
        remarks=remarks,
    )


def remove(home: Home, domain: str, *, reason: str, now: datetime | None = None) -> tuple[str, ...]:
    """Takes a partner off the list: no later run asks it. Its receipts and the history stay.

    Returns:
        Domains whose cards were written anew.
    Raises:
        UsageError: there is no such partner, or no reason.
        StorageError: no space left; calling it again completes what was begun.
    """
    if not reason.strip():
        raise UsageError("a partner is removed for a reason", do="Say it with --reason.")
    with locked(home.root):
        agreements, before = _agreements(home), cards(home)
        if domain not in agreements and domain not in before:
            known = ", ".join(sorted(agreements.keys() | before.keys())) or "nobody"
            raise UsageError("no partner of this name is enrolled", do=f"Enrolled: {known}.")
        _remember(home, before.get(domain), "removed", reason, now, domain=domain)
        _write_agreements(home, {name: one for name, one in agreements.items() if name != domain})
        for path in (card_file(home, domain), node_key_file(home, domain), join_file(home, domain)):
            with storage_errors(path):
                path.unlink(missing_ok=True)
        return write_join_cards(home, {name: card for name, card in before.items() if name != domain})


def listed(home: Home) -> tuple[Listed, ...]:
    """Everybody who is enrolled, by name.

    Raises:
        ConfigError: the list or a card cannot be read.
    """
    known = cards(home)
    return tuple(Listed(domain=name, agreement=one, card=known.get(name)) for name, one in sorted(_agreements(home).items()))


def cards(home: Home) -> dict[str, PartnerCard]:
    """The enrolled partners' cards by domain, their signatures checked.

    Raises:
        ConfigError: one of them was changed or does not belong here.
    """
    found: dict[str, PartnerCard] = {}
    for path in sorted(home.partners.glob("*.json")):
        try:
            card = PartnerCard.read(path)
        except DataError as error:
            if not path.exists():  # removed a moment ago
                continue
            raise ConfigError(error.what, do="Restore the file, or delete it and enrol the partner again.") from None
        if card_file(home, card.domain) != path:
            raise ConfigError(f"{path} is the card of another domain", do="Delete it and enrol the partner again.")
        found[card.domain] = card
    return found


def card_file(home: Home, domain: str) -> Path:
    return home.partners / f"{domain}.json"


def node_key_file(home: Home, domain: str) -> Path:
    """The node's public key, as `flwr supernode register` takes it."""
    return home.partners / f"{domain}.pub"


def join_file(home: Home, domain: str) -> Path:
    return home.join / f"{domain}.json"


def write_join_cards(home: Home, known: dict[str, PartnerCard]) -> tuple[str, ...]:
    """Writes the card for each partner, where it is not what it should be.

    Returns:
        Domains whose card was written.
    Raises:
        StorageError: no space left.
    """
    halves = tuple(card.public for card in known.values())
    written = []
    for domain in sorted(known):
        path, data = join_file(home, domain), home.join_card(domain, halves).to_json().encode()
        if not path.exists() or path.read_bytes() != data:
            replace_file(path, data)
            written.append(domain)
    return tuple(written)


def refresh(home: Home) -> tuple[str, ...]:
    """Writes the partners' cards anew where the address or the keys in them changed.

    Returns:
        Domains whose card was written.
    Raises:
        ConfigError: a card cannot be read.
        StorageError: no space left.
    """
    with locked(home.root):
        return write_join_cards(home, cards(home))


def _check_limits(home: Home, card: PartnerCard) -> None:
    limits = home.settings.enrolment
    if card.ceiling_epsilon > limits.max_ceiling_epsilon:
        raise DataError(
            f"the ceiling of '{card.domain}', {card.ceiling_epsilon:g}, is above {limits.max_ceiling_epsilon:g}",
            do=f"Ask the partner for a lower one, or raise enrolment.max_ceiling_epsilon in {home.settings_file}.",
        )
    if card.delta != limits.delta:
        raise DataError(
            f"the ceiling of '{card.domain}' has delta {card.delta:g}, and runs here have {limits.delta:g}",
            do="All partners of a run have the same delta: agree on one, set it in partner.toml and make the card again.",
        )


def _check_keys(card: PartnerCard, before: dict[str, PartnerCard], agreements: dict[str, Agreement]) -> None:
    """Nobody speaks for two domains: their receipts, nodes and passports could not be told apart."""
    taken = {agreements[name].verify_key: name for name in agreements if agreements[name].verify_key}
    for name, other in before.items():
        taken |= {other.verify_key: name, other.box_key: name, other.node_key: name}
    for field in ("verify_key", "box_key", "node_key"):
        owner = taken.get(getattr(card, field), card.domain)
        if owner != card.domain:
            raise DataError(
                f"the {field} of '{card.domain}' is the one of '{owner}', which is enrolled",
                do="Each domain has keys of its own: isthmus-client init makes them. A domain that changed its name is removed first.",
            )


def _check_change(card: PartnerCard, known: PartnerCard | None, agreed: Agreement | None, replace: str | None) -> str:
    """The reason for a change that needs one; empty where none is needed."""
    if replace is not None and not replace.strip():
        raise UsageError("a replacement has a reason", do="Say it: --replace REASON.")
    old_key = agreed.verify_key if agreed is not None and agreed.verify_key else known.verify_key if known is not None else card.verify_key
    ceiling = agreed.ceiling_epsilon if agreed is not None else known.ceiling_epsilon if known is not None else card.ceiling_epsilon
    if replace is None and card.verify_key != old_key:
        raise DataError(f"'{card.domain}' is enrolled with another key", do=_ASK)
    if replace is None and card.ceiling_epsilon > ceiling:
        raise DataError(f"'{card.domain}' is enrolled with a lower ceiling: {ceiling:g}, not {card.ceiling_epsilon:g}", do=_ASK)
    return (replace or "").strip()


def _differences(known: PartnerCard | None, card: PartnerCard) -> tuple[str, ...]:
    names = [one.name for one in dataclasses.fields(card) if one.name != "signature"]
    return tuple(name for name in names if known is None or getattr(known, name) != getattr(card, name))


def _remarks(home: Home, card: PartnerCard, before: dict[str, PartnerCard]) -> tuple[str, ...]:
    said = []
    if card.catalogue_hash is None:
        said.append("its catalogue is not prepared yet: the card does not name it")
    if None in (getattr(card.ranges, name) for name in card.ranges.RULES):
        said.append("its card was made by an older isthmus and says only some of its ranges: its client may refuse more")
    same = [name for name, other in before.items() if name != card.domain and other.catalogue_hash == card.catalogue_hash is not None]
    said += [f"its catalogue is word for word the one of '{name}'" for name in same]
    try:
        config = RunConfig.from_toml(home.run_file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, IsthmusError):
        said.append(f"whether it would take part in {home.settings.run} is not known: that file cannot be read")
    else:
        said += [f"it would refuse {home.settings.run}: {line}" for line in card.outside(config)]
    return tuple(said)


def _agreement(card: PartnerCard) -> Agreement:
    return Agreement(ceiling_epsilon=card.ceiling_epsilon, verify_key=card.verify_key, catalogue_hash=card.catalogue_hash or "")


def _agreements(home: Home) -> dict[str, Agreement]:
    try:
        text = home.partners_file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{home.partners_file} cannot be read", do="Restore it from a copy.") from None
    try:
        return dict(Partners.from_toml(text).agreements or {})
    except ConfigError as error:
        raise ConfigError(f"{home.partners_file}: {error.what}", do=error.do or "Correct it, or restore it from a copy.") from None


def _write_agreements(home: Home, agreements: dict[str, Agreement]) -> None:
    """An entry for each domain, sorted; what stands there by default is left out, because a ceiling may be none."""
    tables: dict[str, Any] = {}
    for name, one in sorted(agreements.items()):
        values = dataclasses.asdict(one)
        tables[name] = {key: value for key, value in values.items() if value != getattr(Agreement(), key)}
    data = (_HEAD + "\n" + tomli_w.dumps(tables)).encode()
    if not home.partners_file.exists() or tomllib.loads(home.partners_file.read_text(encoding="utf-8")) != tables:
        replace_file(home.partners_file, data)


def _remember(home: Home, card: PartnerCard | None, what: str, reason: str, now: datetime | None, domain: str = "") -> None:
    """A line of the history, before anything else is written."""
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    record: dict[str, Any] = {"when": when, "what": what, "domain": card.domain if card else domain, "reason": reason}
    if card is not None:
        record |= {"fingerprint": card.fingerprint, "card": json.loads(card.to_json())}
    record["by"] = os.environ.get("SUDO_USER") or os.environ.get("USER") or ""
    append_line(home.partners / HISTORY_FILE, json.dumps(record, ensure_ascii=True))
