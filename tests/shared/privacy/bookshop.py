"""The keys of a bookshop that keeps a ledger, which are no secret, and the plain tools of somebody who tampers with it."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shared.errors import LedgerBroken
from shared.privacy.ledger_book import Book
from shared.privacy.ledger_file import LedgerFile
from shared.privacy.ledger_schema import Event
from shared.privacy.receipts import SignedReceipt
from shared.privacy.signing import SigningPair, event_message, holds

KEYS = SigningPair(b"bookshop" * 4)
NEW_KEYS = SigningPair(b"shopbook" * 4)
STRANGER = SigningPair(b"stranger" * 4)

UPDATE = "CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"
DELETE = "CREATE TRIGGER events_are_never_removed BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END"


def by_force(path: Path, *statements: str | tuple[str, tuple[Any, ...]]) -> None:
    """Runs SQL with the triggers away, and puts them back as they were."""
    with sqlite3.connect(path) as database:
        database.execute("DROP TRIGGER events_are_never_changed")
        database.execute("DROP TRIGGER events_are_never_removed")
        for statement in statements:
            database.execute(*((statement,) if isinstance(statement, str) else statement))
        head = database.execute("SELECT sql FROM sqlite_schema WHERE name = 'head'").fetchone()
        rows = [] if head is None else database.execute("SELECT * FROM head").fetchall()
        for statement in (UPDATE, DELETE) if head is None else ("DROP TABLE head", UPDATE, DELETE, *head):  # in the order of a whole file
            database.execute(statement)
        for row in rows:
            database.execute("INSERT INTO head VALUES (?, ?, ?, ?)", row)
    database.close()


def event_row(seq: int, kind: str, payload: dict[str, Any], previous: str, signer: SigningPair, now: str) -> tuple[Any, ...]:
    """A row with a right hash and signature, made with nothing but JSON and SHA-256."""
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    chained = json.dumps(["isthmus-ledger-1", seq, kind, now, text, previous], separators=(",", ":"))
    digest = hashlib.sha256(chained.encode()).hexdigest()
    return seq, kind, now, text, previous, digest, signer.sign(event_message(digest))


def write_anew(path: Path, edit: Callable[[int, dict[str, Any]], dict[str, Any]], signer: SigningPair) -> None:
    """Changes what events say, and hashes and signs all of them again."""
    with sqlite3.connect(path) as database:
        old = database.execute("SELECT seq, kind, payload, time_utc FROM events ORDER BY seq").fetchall()
    database.close()
    previous, rows = "0" * 64, []
    for seq, kind, text, now in old:
        rows.append(event_row(seq, kind, edit(seq, json.loads(text)), previous, signer, now))
        previous = rows[-1][5]
    by_force(path, "DELETE FROM events", *(("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row) for row in rows))


def receipt_of_a_lost_ledger(intents: int, *, epsilon: float = 2.0, domain: str = "books") -> str:
    """What the coordinator holds of a ledger that is gone, as text."""
    said = {"domain": domain, "count_of_intents": intents, "head_hash": "a" * 64, "payload_sha256": "d" * 64, "mechanism": "{}"}
    return SignedReceipt.signed(KEYS, **said, epsilon_spent=epsilon).to_json()


def audited(path: Path, *, beside_its_writer: bool = False) -> tuple[Book, list[Event]]:
    """What an auditor does: reads a file that stays as it is, by the rules, and checks the signature of every event.

    Args:
        beside_its_writer: reads as the owner of an open ledger does.
    Raises:
        LedgerBroken: at the first event that is not signed by the key in force before it.
    """
    book = Book()

    def checked(file: LedgerFile) -> Iterator[Event]:
        for event in file.load():
            key = book.key_of(event)
            book.apply(event)
            if key is not None and not holds(key, event_message(event.hash), event.signature or b""):
                raise LedgerBroken(f"event {event.seq} is not signed by the key in force")
            yield event

    file = LedgerFile.read(path) if beside_its_writer else LedgerFile.examine(path)
    try:
        return book, list(checked(file))
    finally:
        file.close()


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(one.relative_to(folder)): one.read_bytes() for one in sorted(folder.rglob("*")) if one.is_file()}
