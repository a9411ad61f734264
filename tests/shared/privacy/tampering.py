"""What somebody with SQLite, and perhaps a key, can do to a ledger. It leaves no trace in the tables."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shared.privacy.ledger_schema import NO_HASH, canonical, event_hash
from shared.privacy.signing import Signer, event_message
from tests.shared.privacy.bookshop import by_force

_CHANGE = "UPDATE events SET payload = ?, prev_hash = ?, hash = ?, signature = ? WHERE seq = ?"


def cut_off(path: Path, events: int = 1) -> None:
    """Removes events from the end."""
    by_force(path, f"DELETE FROM events WHERE seq > (SELECT max(seq) FROM events) - {events}")


def rewrite(path: Path, *, from_seq: int, signer: Signer | None, edit: Mapping[int, Mapping[str, Any]] | None = None) -> None:
    """Mends the chain from an event on, after fields of payloads were changed.

    Args:
        signer: signs every event from there on; None keeps the signatures that stand there.
        edit: number of an event -> fields to change.
    """
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT seq, kind, time_utc, payload, hash, signature FROM events ORDER BY seq").fetchall()
    database.close()
    previous, changes = NO_HASH, []
    for seq, kind, time_utc, text, digest, signature in rows:
        if seq >= from_seq:
            text = canonical({**json.loads(text), **(edit or {}).get(seq, {})})
            digest = event_hash(seq, kind, time_utc, text, previous)
            signed = signature if signer is None else signer.sign(event_message(digest))
            changes.append((_CHANGE, (text, previous, digest, signed, seq)))
        previous = digest
    by_force(path, *changes)
