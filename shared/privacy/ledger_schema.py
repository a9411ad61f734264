"""What a ledger may say: the kinds of events, the fields of each, one spelling for every value, and the hash that chains them.

Kinds are permanent in meaning. A reader refuses a kind or a field it does not know, rather than skip a debit it cannot price.

============ ======================================================================================================================
genesis      the first event: whose budget, for which unit, how much, who set it
schedule     a run's whole plan; a second one for the same run may only cut the plan short
intent       one attempt at one round: from here on it is spent, whatever happens next
commit       sha256 of the bytes that left after an intent
release      a mechanism of its own (popularity, metric, count, moments); spent like an intent, before any data are touched
ceiling      the ceiling was raised
key          the signing key was changed; the old key signs the new one, and the new one confirms it
audit        verdict of a canary run on this partner's code
migration    the format was changed
refused      a debit that would have passed the ceiling; nothing was spent
note         a text that follows from the public schedule
============ ======================================================================================================================

An outsider needs SQLite, JSON and SHA-256 to check a ledger, nothing else: a row's hash is the SHA-256 of the canonical JSON (ASCII, no
spaces) of ``["isthmus-ledger-1", seq, kind, time_utc, payload, prev_hash]``, where ``payload`` is the column's text, itself canonical JSON
with sorted keys, and the first ``prev_hash`` is 64 zeros. Numbers that are not whole are strings of ``float.hex()``.

Since format 2 every event is signed: ``signature`` holds 64 bytes of Ed25519 over `signing.event_message` of its hash, by the key in force.
Genesis names the first key; a ``key`` event is signed by the old key and names the new one. A ledger that began in format 1 has unsigned
events up to its ``migration`` event, which names the first key and, by the chain, vouches for what stands before it. A genesis that follows
on a lost ledger books the old ceiling as spent and cites the coordinator's last receipt. ``schedule.plan_signature`` is the coordinator's
signature on the run's contract (`shared.contract`), as this partner checked it; null where the run was not signed, as in simulations.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import LedgerBroken, LedgerError, UnknownEvent
from .mechanism import Mechanism, float_from_hex
from .signing import is_verify_key

FORMAT = 2
UNSIGNED_FORMAT = 1
HASH_TAG = "isthmus-ledger-1"
NO_HASH = "0" * 64
UNIT = "user"
LONGEST_TEXT = 2000

_HASH = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One row of a ledger.

    Attributes:
        seq: 1 for genesis, then without a gap.
        time_utc: when it was written, by the partner's clock; informative.
        payload: fields of its kind, as plain values.
        prev_hash: hash of the event before, in hex.
        hash: of this event, in hex.
        signature: 64 bytes; None before the first key was named (format 1).
    """

    seq: int
    kind: str
    time_utc: str
    payload: Mapping[str, Any]
    prev_hash: str
    hash: str
    signature: bytes | None = None


def _text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_TEXT and value.replace("\n", "").isprintable()


def _sha256(value: object) -> bool:
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _positive(value: object) -> bool:
    return _count(value) and value != 0


def _flag(value: object) -> bool:
    return type(value) is bool


def _empty(value: object) -> bool:
    return value is None


def _number(value: object) -> bool:
    """Any epsilon, delta or order that may be written down: infinity included, NaN and negative numbers not."""
    try:
        number = float_from_hex("number", value)
    except LedgerError:
        return False
    return not math.isnan(number) and math.copysign(1.0, number) > 0


def _number_or_empty(value: object) -> bool:
    return value is None or _number(value)


def _sha256_or_empty(value: object) -> bool:
    return value is None or _sha256(value)


def _text_or_empty(value: object) -> bool:
    return value is None or _text(value)


def _signature_hex(value: object) -> bool:
    return isinstance(value, str) and _SIGNATURE.fullmatch(value) is not None


def _signature_or_empty(value: object) -> bool:
    return value is None or _signature_hex(value)


def _mechanism(value: object) -> bool:
    if not isinstance(value, dict):
        return False
    try:
        mechanism_of(value)
    except LedgerError:
        return False
    return True


def mechanism_of(record: Mapping[str, Any]) -> Mechanism:
    """The mechanism of an event. Long ledgers repeat a few of them, so they are read once."""
    return _mechanism_from_text(canonical(record))


@lru_cache(maxsize=256)
def _mechanism_from_text(text: str) -> Mechanism:
    return Mechanism.from_record(json.loads(text))


def _one_of(*choices: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and value in choices


_RUN = {"run_id": _text, "config_hash": _text}
_ATTEMPT = {"run_id": _text, "round": _positive, "attempt": _positive}
_DECIDED = _one_of("pld", "rdp-filter", "none")
_GENESIS = {
    "format": _positive,
    "unit": _one_of(UNIT),
    "domain": _text,
    "ceiling_epsilon": _number,
    "delta": _number,
    "pld_interval": _number,
    "set_by": _text,
    "private": _flag,
}
_UNSIGNED_GENESIS = {**_GENESIS, "booked_epsilon": _empty, "booked_delta": _empty, "last_receipt": _empty}

FIELDS: Mapping[str, Mapping[str, Callable[[object], bool]]] = {
    "genesis": {
        **_GENESIS,
        "verify_key": is_verify_key,
        "booked_epsilon": _number_or_empty,
        "booked_delta": _number_or_empty,
        "last_receipt": _text_or_empty,
    },
    "schedule": {
        **_RUN,
        "mechanism": _mechanism,
        "rounds": _positive,
        "reserve": _count,
        "permitted_intents": _count,
        "decided_by": _DECIDED,
        "filter_order": _number_or_empty,
        "epsilon_reserved": _number,
        "plan_signature": _signature_or_empty,
    },
    "intent": {**_ATTEMPT, "mechanism": _mechanism, "config_hash": _text, "bundle_digest": _text, "code_version": _text},
    "commit": {**_ATTEMPT, "payload_sha256": _sha256},
    "release": {
        "release_id": _text,
        "purpose": _one_of("popularity", "metric", "count", "moments"),
        "mechanism": _mechanism,
        "config_hash": _text,
        "decided_by": _DECIDED,
        "filter_order": _number_or_empty,
        "payload_sha256": _sha256_or_empty,
    },
    "ceiling": {"ceiling_epsilon": _number, "previous_epsilon": _number, "epsilon_spent": _number, "raised_by": _text, "why": _text},
    "key": {
        "old_verify_key": is_verify_key,
        "new_verify_key": is_verify_key,
        "old_signature": _signature_hex,
        "new_signature": _signature_hex,
    },
    "audit": {
        "tier": _positive,
        "verdict": _one_of("passed", "refuted"),
        "code_digest": _text,
        "code_version": _text,
        "summary": _text,
        "report_sha256": _sha256,
    },
    "migration": {"from_format": _positive, "to_format": _positive, "verify_key": is_verify_key, "why": _text},
    "refused": {
        **_RUN,
        "round": _count,
        "mechanism": _mechanism,
        "intents": _positive,
        "requested": _number,
        "remaining": _number,
        "ceiling_epsilon": _number,
        "why": _text,
    },
    "note": {"text": _text},
}
"""Per kind, its fields, and for each what a value must be. A missing field, another field or another value is refused.

Kinds that format 1 reserved and never wrote (release, key, audit, migration) got their fields in format 2."""


def canonical(value: object) -> str:
    """The one spelling of plain values: JSON in ASCII, without spaces, keys sorted."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def event_hash(seq: int, kind: str, time_utc: str, payload: str, prev_hash: str) -> str:
    """SHA-256, in hex, over every field of an event; ``payload`` is its canonical text."""
    return hashlib.sha256(canonical([HASH_TAG, seq, kind, time_utc, payload, prev_hash]).encode("ascii")).hexdigest()


def check_fields(kind: str, payload: Mapping[str, Any]) -> None:
    """Refuses what a ledger may not say.

    Raises:
        UnknownEvent: the kind is not one of `FIELDS`.
        LedgerError: naming the kind and the field.
    """
    fields = FIELDS.get(kind)
    if fields is None:
        raise UnknownEvent("an event is of a kind that this version does not know", do="A newer version wrote it: update isthmus.")
    if kind == "genesis" and payload.get("format") == UNSIGNED_FORMAT:
        fields = _UNSIGNED_GENESIS
    for name in payload:
        if name not in fields:
            raise LedgerError(f"an event of kind '{kind}' has a field that this version does not know", do="Update isthmus.")
    for name, fits in fields.items():
        if name not in payload:
            raise LedgerError(f"an event of kind '{kind}' lacks its field '{name}'")
        if not fits(payload[name]):
            raise LedgerError(f"an event of kind '{kind}' has a value in '{name}' that the field cannot hold")


def event_from_row(row: tuple[Any, ...], *, prev_seq: int, prev_hash: str) -> Event:
    """Checks one row (seq, kind, time_utc, payload, prev_hash, hash, signature) against the one before it.

    Raises:
        LedgerBroken: when a row is missing, moved, edited, or says what a ledger may not say.
    """
    seq, kind, time_utc, text, previous, digest, signature = row
    where = f"event {prev_seq + 1} of the ledger"
    do = "Do not train with this ledger. Restore the file, or ask the coordinator for the last receipt."
    if seq != prev_seq + 1:
        raise LedgerBroken(f"{where} is missing", do=do)
    if not all(isinstance(part, str) for part in (kind, time_utc, text, previous, digest)):
        raise LedgerBroken(f"{where} is not written as text", do=do)
    if previous != prev_hash or digest != event_hash(seq, kind, time_utc, text, previous):
        raise LedgerBroken(f"{where} does not match its hash: it was changed after it was written", do=do)
    if signature is not None and (not isinstance(signature, bytes) or len(signature) != 64):
        raise LedgerBroken(f"{where} has a signature that is not 64 bytes", do=do)
    if _TIME.fullmatch(time_utc) is None:
        raise LedgerBroken(f"{where} has a time that is not one", do=do)
    try:
        payload = json.loads(text)
        if not isinstance(payload, dict) or canonical(payload) != text:
            raise LedgerBroken(f"{where} is not written in its one canonical form", do=do)
        check_fields(kind, payload)
    except (ValueError, RecursionError):
        raise LedgerBroken(f"{where} cannot be read", do=do) from None
    except UnknownEvent as error:
        raise UnknownEvent(f"{where}: {error.what}", do=error.do) from None
    except LedgerBroken:
        raise
    except LedgerError as error:
        raise LedgerBroken(f"{where}: {error.what}", do=error.do or do) from None
    return Event(seq=seq, kind=kind, time_utc=time_utc, payload=payload, prev_hash=previous, hash=digest, signature=signature)
