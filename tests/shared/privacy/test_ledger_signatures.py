"""Only the partner's key can write the past of a ledger: a signature that is edited, removed, borrowed or made by others is found."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerBroken, LedgerError, RolledBack, WrongKey
from shared.privacy.ledger import Ledger
from shared.privacy.signing import SigningPair, event_message, head_message, holds, key_message
from tests.shared.privacy.bookshop import KEYS, NEW_KEYS, STRANGER, audited, by_force, event_row, write_anew

Intend = Callable[..., int]
Forge = Callable[..., None]

EVENTS = 5


@pytest.fixture
def rotated(written: Path, intend: Intend) -> Path:
    """Five events, a change of the key, and an intent under the new one."""
    with Ledger.open(written, signer=KEYS) as ledger:
        ledger.rotate_key(NEW_KEYS)
        intend(ledger, 3)
    return written


def refused_by_everybody(path: Path, match: str) -> None:
    """The partner before it trains, whoever reads, and an auditor."""
    with pytest.raises(LedgerBroken, match=match):
        Ledger.open(path, signer=KEYS)
    with pytest.raises(LedgerBroken, match=match):
        Ledger.open(path, read_only=True)
    with pytest.raises(LedgerBroken):
        audited(path)


def test_every_event_is_signed_by_the_key_in_force(rotated: Path) -> None:
    book, events = audited(rotated)
    assert [event.kind for event in events[EVENTS:]] == ["key", "intent"]
    assert (book.keys, book.verify_key, book.signed_from) == ([KEYS.verify_key, NEW_KEYS.verify_key], NEW_KEYS.verify_key, 1)
    for event in events:
        signer = KEYS if event.seq <= EVENTS + 1 else NEW_KEYS
        other = NEW_KEYS if signer is KEYS else KEYS
        assert holds(signer.verify_key, event_message(event.hash), event.signature or b"")
        assert not holds(other.verify_key, event_message(event.hash), event.signature or b"")


@pytest.mark.parametrize("seq", range(1, EVENTS + 1))
def test_a_signature_that_is_removed_is_found_out(written: Path, seq: int) -> None:
    by_force(written, f"UPDATE events SET signature = NULL WHERE seq = {seq}")
    refused_by_everybody(written, f"event {seq} of the ledger: it is not signed")


@pytest.mark.parametrize("seq", range(1, EVENTS + 1))
@pytest.mark.parametrize("wrong", ["another bit", "of another event", "by a stranger", "of another purpose"])
def test_a_signature_that_is_not_the_key_s_on_this_event_is_found_by_an_audit(written: Path, seq: int, wrong: str) -> None:
    _, events = audited(written)
    event, other = events[seq - 1], events[seq % EVENTS]
    assert event.signature is not None
    assert other.signature is not None
    signature = {
        "another bit": event.signature[:-1] + bytes([event.signature[-1] ^ 1]),
        "of another event": other.signature,
        "by a stranger": STRANGER.sign(event_message(event.hash)),
        "of another purpose": KEYS.sign(head_message("books", seq, event.hash, event.time_utc)),
    }[wrong]
    by_force(written, ("UPDATE events SET signature = ? WHERE seq = ?", (signature, seq)))
    with pytest.raises(LedgerBroken, match=f"event {seq} is not signed by the key in force"):
        audited(written)
    if seq == EVENTS:  # whoever only opens a ledger checks the last signature: by the chain it vouches for everything before
        with pytest.raises(LedgerBroken, match=f"event {seq} of the ledger is not signed with the key in force"):
            Ledger.open(written, signer=KEYS)


def test_an_event_that_a_stranger_adds_is_found_out(written: Path, forge: Forge) -> None:
    forge(written, "note", {"text": "all is well"}, STRANGER)
    refused_by_everybody(written, "event 6 of the ledger is not signed with the key in force")


def test_a_history_with_less_spent_that_a_stranger_signs_is_not_the_partner_s(written: Path) -> None:
    def less(seq: int, said: dict[str, Any]) -> dict[str, Any]:
        if "mechanism" in said:
            said["mechanism"]["noise_multiplier"] = (9.0).hex()
        return said

    write_anew(written, less, STRANGER)  # genesis still names the partner's key
    with pytest.raises(RolledBack, match="not the one that was written here"):
        Ledger.open(written, signer=KEYS)
    with pytest.raises(LedgerBroken, match="event 1"):
        audited(written)


def test_a_ledger_signed_anew_with_another_key_belongs_to_another_partner(written: Path, tmp_path: Path) -> None:
    def claimed(seq: int, said: dict[str, Any]) -> dict[str, Any]:
        return {**said, "verify_key": STRANGER.verify_key} if seq == 1 else said

    elsewhere = tmp_path / "elsewhere.sqlite"  # without the mark
    shutil.copy(written, elsewhere)
    write_anew(elsewhere, claimed, STRANGER)
    book, _ = audited(elsewhere)
    assert book.keys == [STRANGER.verify_key]  # whole in itself: what names the partner is the key that an auditor asks for
    with pytest.raises(WrongKey, match="another key"):
        Ledger.open(elsewhere, signer=KEYS)
    shutil.copy(elsewhere, written)
    with pytest.raises(RolledBack):
        Ledger.open(written, signer=KEYS)


def test_writing_needs_the_key_in_force_and_reading_needs_none(written: Path) -> None:
    before = written.read_bytes()
    with pytest.raises(WrongKey, match="another key"):
        Ledger.open(written, signer=STRANGER)
    with pytest.raises(LedgerError, match="none was given"):
        Ledger.open(written)
    with Ledger.open(written, read_only=True) as ledger:
        assert ledger.verify_key == KEYS.verify_key
        for refused in (
            lambda: ledger.rotate_key(NEW_KEYS),
            lambda: ledger.note("x"),
            lambda: ledger.raise_ceiling(9.0, raised_by="x", why="y"),
        ):
            with pytest.raises(LedgerError, match="reading only"):
                refused()
    assert written.read_bytes() == before


def test_after_a_change_the_old_key_writes_nothing(rotated: Path, forge: Forge, intend: Intend) -> None:
    with pytest.raises(WrongKey):
        Ledger.open(rotated, signer=KEYS)
    with Ledger.open(rotated, signer=NEW_KEYS) as ledger:
        assert ledger.verify_key == NEW_KEYS.verify_key
        assert intend(ledger, 3) == 2
    forge(rotated, "note", {"text": "by the old key"}, KEYS)
    with pytest.raises(LedgerBroken, match="not signed with the key in force"):
        Ledger.open(rotated, signer=NEW_KEYS)


def test_a_key_event_is_signed_by_the_old_key_not_by_the_new_one(rotated: Path) -> None:
    _, events = audited(rotated)
    change = events[EVENTS]
    by_force(rotated, ("UPDATE events SET signature = ? WHERE seq = ?", (NEW_KEYS.sign(event_message(change.hash)), change.seq)))
    with pytest.raises(LedgerBroken, match=f"event {change.seq}"):
        audited(rotated)


def changes() -> dict[str, dict[str, str]]:
    """By name: what a key event says that does not hand the ledger on, though its row is hashed and signed by the key in force."""
    old, new = KEYS.verify_key, STRANGER.verify_key
    message = key_message("books", old, new)

    def said(old_signature: bytes, new_signature: bytes, *, old: str = old, new: str = new) -> dict[str, str]:
        keys = {"old_verify_key": old, "new_verify_key": new}
        return {**keys, "old_signature": old_signature.hex(), "new_signature": new_signature.hex()}

    elsewhere = key_message("films", old, new)
    back = key_message("books", old, old)
    return {
        "only the new key signed": said(STRANGER.sign(message), STRANGER.sign(message)),
        "only the old key signed": said(KEYS.sign(message), KEYS.sign(message)),
        "both signed for another domain": said(KEYS.sign(elsewhere), STRANGER.sign(elsewhere)),
        "both signed the event and not the change": said(KEYS.sign(event_message("a" * 64)), STRANGER.sign(event_message("a" * 64))),
        "the old key is not the one in force": said(
            NEW_KEYS.sign(key_message("books", NEW_KEYS.verify_key, new)),
            STRANGER.sign(key_message("books", NEW_KEYS.verify_key, new)),
            old=NEW_KEYS.verify_key,
        ),
        "to the same key": said(KEYS.sign(back), KEYS.sign(back), new=old),
        "a key that is none": {**said(KEYS.sign(message), STRANGER.sign(message)), "new_verify_key": "nobody"},
        "a signature that is none": {**said(KEYS.sign(message), STRANGER.sign(message)), "new_signature": "00"},
        "a field more": {**said(KEYS.sign(message), STRANGER.sign(message)), "why": "lost"},
    }


CHANGES = (
    "only the new key signed", "only the old key signed", "both signed for another domain", "both signed the event and not the change",
    "the old key is not the one in force", "to the same key", "a key that is none", "a signature that is none", "a field more",
)  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_keys_that_not_both_keys_made_is_refused(written: Path, forge: Forge, name: str) -> None:
    assert tuple(changes()) == CHANGES
    forge(written, "key", changes()[name])
    refused_by_everybody(written, "event 6")


def test_a_change_that_both_keys_made_hands_the_ledger_on(written: Path, forge: Forge) -> None:
    """The same event as those above, made right: so what they are refused for is what is wrong in them."""
    message = key_message("books", KEYS.verify_key, STRANGER.verify_key)
    keys = {"old_verify_key": KEYS.verify_key, "new_verify_key": STRANGER.verify_key}
    forge(written, "key", {**keys, "old_signature": KEYS.sign(message).hex(), "new_signature": STRANGER.sign(message).hex()})
    Ledger.open(written, signer=STRANGER).close()
    assert audited(written)[0].keys == [KEYS.verify_key, STRANGER.verify_key]


def test_a_key_that_was_in_force_never_comes_back(rotated: Path, forge: Forge) -> None:
    with Ledger.open(rotated, signer=NEW_KEYS) as ledger:
        head = ledger.head_hash
        for old in (KEYS, NEW_KEYS):
            with pytest.raises(LedgerError, match="in force before"):
                ledger.rotate_key(old)
        assert ledger.head_hash == head
    message = key_message("books", NEW_KEYS.verify_key, KEYS.verify_key)
    keys = {"old_verify_key": NEW_KEYS.verify_key, "new_verify_key": KEYS.verify_key}
    signed = {"old_signature": NEW_KEYS.sign(message).hex(), "new_signature": KEYS.sign(message).hex()}
    forge(rotated, "key", {**keys, **signed}, NEW_KEYS)
    with pytest.raises(LedgerBroken, match="event 8 of the ledger: a new key follows"):
        Ledger.open(rotated, signer=NEW_KEYS)


class Faulty:
    """A key file that was damaged: it signs, and its public key does not confirm it."""

    def __init__(self, verify_key: str, signature: bytes) -> None:
        self.verify_key, self._signature = verify_key, signature

    def sign(self, message: bytes) -> bytes:
        return self._signature


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\0" * 63])
def test_a_damaged_key_writes_nothing_that_would_make_the_ledger_useless(written: Path, signature: bytes) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        with pytest.raises(LedgerError, match="nothing was written"):
            ledger.rotate_key(Faulty(STRANGER.verify_key, signature))
        ledger.note("the old key goes on")
    with Ledger.open(written, signer=Faulty(KEYS.verify_key, signature)) as ledger, pytest.raises(LedgerError, match="nothing was written"):
        ledger.note("unsigned")
    with Ledger.open(written, signer=KEYS) as ledger:
        assert ledger.count_of_events == EVENTS + 1


def test_an_event_that_another_hand_hashes_and_signs_is_the_same_to_the_byte(written: Path) -> None:
    """The format as a stranger reads it: JSON, SHA-256 and Ed25519 make the very row that stands in the file."""
    for event in audited(written)[1]:
        row = event_row(event.seq, event.kind, dict(event.payload), event.prev_hash, SigningPair(b"bookshop" * 4), event.time_utc)
        assert (row[4], row[5], row[6]) == (event.prev_hash, event.hash, event.signature)
