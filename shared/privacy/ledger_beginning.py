"""How a ledger begins: anew, after one was lost, or in an older format; and how any of them is read up to its head."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

from ..errors import LedgerBroken, LedgerError
from .budget import Budget
from .ledger_book import Book
from .ledger_file import LedgerFile
from .ledger_schema import FORMAT, NO_HASH, UNIT, UNSIGNED_FORMAT, Event, canonical, check_fields, event_hash
from .signing import Signer, event_message, holds


def begin(path: Path, *, signer: Signer, domain: str, ceiling_epsilon: float, delta: float, set_by: str, private: bool) -> None:
    """Writes a ledger with nothing but its genesis; see `Ledger.create`."""
    if private and not math.isfinite(ceiling_epsilon):
        raise LedgerError("a private ledger has a finite ceiling", do="Only a ledger that says NOT PRIVATE may have none.")
    said = _genesis(signer, domain, Budget.of(float(ceiling_epsilon), float(delta)), set_by, private)
    LedgerFile.create(Path(path), next_event("genesis", said, 0, NO_HASH, signer))


def begin_after_loss(
    path: Path,
    *,
    signer: Signer,
    domain: str,
    ceiling_epsilon: float,
    delta: float,
    set_by: str,
    booked_epsilon: float,
    booked_delta: float,
    last_receipt: str | None,
) -> None:
    """Writes a ledger whose genesis counts a lost one as spent; see `Ledger.restart`."""
    budget = Budget.of(float(ceiling_epsilon), float(delta))
    if not 0.0 < booked_epsilon < ceiling_epsilon < math.inf:
        do = "Decide on a finite ceiling above the one that counts as spent."
        raise LedgerError("the new ceiling leaves no room above what is booked for the lost ledger", do=do)
    if not booked_delta > 0.0 or not booked_delta + delta < 1.0:
        raise LedgerError("the booked delta and the new one do not add up to a probability below 1", do="Book the lost ledger's delta.")
    said = _genesis(signer, domain, budget, set_by, True)
    booked = {"booked_epsilon": float(booked_epsilon).hex(), "booked_delta": float(booked_delta).hex(), "last_receipt": last_receipt}
    genesis = next_event("genesis", {**said, **booked}, 0, NO_HASH, signer)
    try:
        Book().apply(genesis)  # a receipt that proves something else is refused before the file exists
    except LedgerBroken as error:
        do = "Give the coordinator's last receipt of this domain as it is, and book the whole ceiling of the lost ledger."
        raise LedgerError(error.what.removeprefix("event 1 of the ledger: "), do=do) from None
    LedgerFile.create(Path(path), genesis, after_loss=True)


def upgrade(path: Path, *, signer: Signer, why: str) -> None:
    """Changes the format of a ledger to this one; see `Ledger.upgrade`."""
    file = LedgerFile.write(Path(path))
    try:
        book = replay(file)
        if book.format == FORMAT:
            return
        said = {"from_format": UNSIGNED_FORMAT, "to_format": FORMAT, "verify_key": signer.verify_key, "why": why}
        event = next_event("migration", said, file.head_seq, file.head_hash, signer)
        book.apply(event)
        file.append(event, new_format=FORMAT)
    finally:
        file.close()


def replay(file: LedgerFile) -> Book:
    """What an open file adds up to: its chain, its rules, and the signature of its last event.

    Raises:
        LedgerBroken: at the first thing that does not fit.
    """
    book, last, key = Book(), None, None
    for event in file.load():
        last, key = event, book.key_of(event)
        book.apply(event)
    if book.format != file.format:
        raise LedgerBroken("the ledger's file and its events name different formats", do="Do not train with this ledger. Restore the file.")
    if last is not None and key is not None and not holds(key, event_message(last.hash), last.signature or b""):
        do = "Do not train with this ledger. Restore the newest file."
        raise LedgerBroken(f"event {last.seq} of the ledger is not signed with the key in force", do=do)
    return book


def next_event(kind: str, payload: dict[str, Any], head_seq: int, head_hash: str, signer: Signer) -> Event:
    """The event that follows on a head, hashed and signed; refused when it says what a ledger may not say."""
    check_fields(kind, payload)
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    seq = head_seq + 1
    digest = event_hash(seq, kind, now, canonical(payload), head_hash)
    signature = signer.sign(event_message(digest))
    if not holds(signer.verify_key, event_message(digest), signature):  # once written, it would make the ledger useless for ever
        raise LedgerError("the key signs nothing that its own public key confirms; nothing was written", do="Restore the partner's keys.")
    return Event(seq=seq, kind=kind, time_utc=now, payload=payload, prev_hash=head_hash, hash=digest, signature=signature)


def _genesis(signer: Signer, domain: str, budget: Budget, set_by: str, private: bool) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "unit": UNIT,
        "domain": domain,
        "ceiling_epsilon": budget.ceiling_epsilon.hex(),
        "delta": budget.delta.hex(),
        "pld_interval": budget.interval.hex(),
        "set_by": set_by,
        "private": private,
        "verify_key": signer.verify_key,
        "booked_epsilon": None,
        "booked_delta": None,
        "last_receipt": None,
    }
