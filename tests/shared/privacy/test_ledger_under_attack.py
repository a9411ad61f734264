"""Whoever changes a ledger after it was written is found out, and a file cannot say what no run could have done."""

from __future__ import annotations

import dataclasses
import random
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerBroken, LedgerError
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.mechanism import Mechanism
from tests.shared.privacy.bookshop import KEYS, by_force

Make = Callable[..., Ledger]
Act = Callable[..., None]
Intend = Callable[..., int]
Gaussian = Callable[..., Mechanism]
Forge = Callable[[Path, str, dict[str, Any]], None]


def test_force_alone_changes_nothing(written: Path) -> None:
    by_force(written)
    assert len(read_events(written)) == 5


def test_any_byte_that_is_changed_is_found_out_or_was_no_part_of_an_event(written: Path) -> None:
    whole = written.read_bytes()
    mark = written.with_name(written.name + ".lock").read_bytes()
    events = [dataclasses.replace(event, signature=None) for event in read_events(written)]
    found = 0
    for position in sorted(random.Random(7).sample(range(len(whole)), 400)):
        changed = bytearray(whole)
        changed[position] ^= 1 << (position % 8)
        written.write_bytes(changed)
        try:
            with Ledger.open(written, signer=KEYS) as ledger:
                # signatures before the last one are an audit's business: the chain vouches for what they sign
                assert [dataclasses.replace(event, signature=None) for event in ledger.events()] == events
        except LedgerError:
            found += 1
        for left in written.parent.glob("ledger.sqlite-*"):
            left.unlink()
        assert written.with_name(written.name + ".lock").read_bytes() == mark
    assert found >= 40  # most of the file is empty space


@pytest.mark.parametrize("field", ["time_utc", "payload", "kind", "prev_hash", "hash"])
@pytest.mark.parametrize("seq", [1, 2, 3, 5])
def test_a_field_that_is_changed_is_found_out(written: Path, field: str, seq: int) -> None:
    # the last character of the field becomes another one
    last = f"CASE substr({field}, -1) WHEN '0' THEN '1' WHEN '}}' THEN ' }}' ELSE '0' END"
    by_force(written, f"UPDATE events SET {field} = substr({field}, 1, length({field}) - 1) || {last} WHERE seq = {seq}")
    with pytest.raises(LedgerBroken, match="event"):
        Ledger.open(written, signer=KEYS)
    with pytest.raises(LedgerBroken):
        read_events(written)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM events WHERE seq = 1",
        "DELETE FROM events WHERE seq = 3",
        "DELETE FROM events WHERE seq = 5",
        "DELETE FROM events",
        "UPDATE events SET seq = 9 WHERE seq = 5",
        "UPDATE events SET signature = x'00' WHERE seq = 5",
        "UPDATE events SET payload = CAST(payload AS BLOB) WHERE seq = 5",
        "UPDATE events SET payload = CAST(x'ff' AS TEXT) WHERE seq = 5",
        "INSERT INTO events SELECT seq + 1, kind, time_utc, payload, hash, hash, NULL FROM events WHERE seq = 5",
        "PRAGMA user_version = 1",
        "PRAGMA application_id = 7",
        "CREATE TABLE more (x)",
        "CREATE TRIGGER quiet BEFORE INSERT ON events BEGIN SELECT RAISE(IGNORE); END",
    ],
)
def test_rows_or_tables_that_are_moved_added_or_removed_are_found_out(written: Path, statement: str) -> None:
    by_force(written, statement)
    with pytest.raises(LedgerBroken):
        Ledger.open(written, signer=KEYS)


def test_the_database_itself_refuses_to_change_or_remove_an_event(written: Path) -> None:
    database = sqlite3.connect(written)
    for statement in ("UPDATE events SET kind = 'note'", "DELETE FROM events"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            database.execute(statement)
    database.close()


def test_an_older_copy_put_in_the_place_of_the_ledger_is_found_out(written: Path, tmp_path: Path, intend: Intend) -> None:
    shutil.copy(written, tmp_path / "backup")
    with Ledger.open(written, signer=KEYS) as ledger:
        intend(ledger, 3)
    shutil.copy(tmp_path / "backup", written)
    with pytest.raises(LedgerBroken, match="rolled back"):
        Ledger.open(written, signer=KEYS)


def test_a_history_that_was_written_anew_with_right_hashes_is_found_out(written: Path, tmp_path: Path, forge: Forge) -> None:
    shutil.copy(written, tmp_path / "elsewhere.sqlite")
    by_force(tmp_path / "elsewhere.sqlite", "DELETE FROM events WHERE seq = 5")
    forge(tmp_path / "elsewhere.sqlite", "note", {"text": "there was no second round"})
    Ledger.open(tmp_path / "elsewhere.sqlite", signer=KEYS).close()  # nothing is wrong with it in itself: that is what receipts are for
    shutil.copy(tmp_path / "elsewhere.sqlite", written)
    with pytest.raises(LedgerBroken, match="not the one that was written here"):
        Ledger.open(written, signer=KEYS)


def test_a_file_that_is_exchanged_while_the_ledger_is_open_takes_no_event(written: Path, tmp_path: Path, intend: Intend) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        shutil.copy(written, tmp_path / "other")
        (tmp_path / "other").replace(written)
        with pytest.raises(LedgerBroken, match="replaced"):
            intend(ledger, 3)


def test_a_second_writer_that_ignores_the_lock_is_found_out(written: Path, intend: Intend, forge: Forge) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        forge(written, "note", {"text": "written past the lock"})
        with pytest.raises(LedgerBroken, match="in spite of the lock"):
            intend(ledger, 3)


@pytest.mark.parametrize("content", [b"", b"not a database at all, but long enough to be read as one" * 100, b"SQLite format 3\0"])
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "ledger.sqlite"
    other.write_bytes(content)
    with pytest.raises(LedgerBroken):
        Ledger.open(other, signer=KEYS)
    with pytest.raises(LedgerBroken):
        read_events(other)


def test_a_truncated_ledger_is_refused(written: Path) -> None:
    whole = written.read_bytes()
    written.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LedgerBroken):
        Ledger.open(written, signer=KEYS)


def test_a_mark_that_cannot_be_read_is_refused(written: Path) -> None:
    written.with_name(written.name + ".lock").write_bytes(b"seven")
    with pytest.raises(LedgerBroken, match="mark"):
        Ledger.open(written, signer=KEYS)


GENESIS = {
    "format": 1, "unit": "user", "domain": "books", "ceiling_epsilon": (8.0).hex(), "delta": (1e-5).hex(), "pld_interval": (1e-3).hex(),
    "set_by": "somebody", "private": True, "booked_epsilon": None, "booked_delta": None, "last_receipt": None,
}  # fmt: skip


def forgeries(gaussian: Gaussian) -> dict[str, tuple[str, dict[str, Any]]]:
    """By name: an event with a right hash that no run could have written after the five of `written`."""
    one, other = gaussian().to_record(), gaussian(noise_multiplier=9.0).to_record()
    intent = {
        "run_id": "autumn", "round": 2, "attempt": 2, "mechanism": one, "config_hash": "c" * 64, "bundle_digest": "b", "code_version": "1",
    }  # fmt: skip
    commit = {"run_id": "autumn", "round": 2, "attempt": 1, "payload_sha256": "d" * 64}
    plan = {
        "run_id": "winter", "config_hash": "c" * 64, "mechanism": one, "rounds": 3, "reserve": 1, "permitted_intents": 4,
        "decided_by": "rdp-filter", "filter_order": None, "epsilon_reserved": (1.0).hex(), "plan_signature": None,
    }  # fmt: skip
    raised = {"ceiling_epsilon": (9.0).hex(), "previous_epsilon": (8.0).hex(), "epsilon_spent": (1.0).hex(), "raised_by": "x", "why": "y"}
    return {
        "a second genesis": ("genesis", GENESIS),
        "a kind of a later version": ("refund", {"epsilon": (1.0).hex()}),
        "a field of a later version": ("intent", {**intent, "refund": True}),
        "a missing field": ("intent", {name: value for name, value in intent.items() if name != "bundle_digest"}),
        "a number that is none": ("intent", {**intent, "mechanism": {**one, "noise_multiplier": "nan"}}),
        "a truth value for a number": ("intent", {**intent, "mechanism": {**one, "steps": True}}),
        "an intent of an unknown run": ("intent", {**intent, "run_id": "winter", "attempt": 1}),
        "an intent with other noise": ("intent", {**intent, "mechanism": other}),
        "an intent for a committed round": ("intent", {**intent, "round": 1}),
        "an intent out of turn": ("intent", {**intent, "attempt": 3}),
        "an intent beyond the last round": ("intent", {**intent, "round": 4, "attempt": 1}),
        "a commit without intent": ("commit", {**commit, "round": 3}),
        "a commit of another attempt": ("commit", {**commit, "attempt": 2}),
        "a second commit": ("commit", {**commit, "round": 1}),
        "a plan admitted in part": ("schedule", {**plan, "permitted_intents": 3}),
        "a plan that grows": ("schedule", {**plan, "run_id": "autumn", "permitted_intents": 9}),
        "a plan with another order": ("schedule", {**plan, "filter_order": (63.0).hex()}),
        "a plan without noise": ("schedule", {**plan, "mechanism": gaussian(kind="none").to_record()}),
        "a signed plan": ("schedule", {**plan, "plan_signature": "00"}),
        "a lowered ceiling": ("ceiling", {**raised, "ceiling_epsilon": (7.0).hex()}),
        "a ceiling raised from another": ("ceiling", {**raised, "previous_epsilon": (7.0).hex()}),
        "an infinite ceiling": ("ceiling", {**raised, "ceiling_epsilon": "inf"}),
    }


NAMES = (
    "a second genesis", "a kind of a later version", "a field of a later version", "a missing field", "a number that is none",
    "a truth value for a number", "an intent of an unknown run", "an intent with other noise", "an intent for a committed round",
    "an intent out of turn", "an intent beyond the last round", "a commit without intent", "a commit of another attempt", "a second commit",
    "a plan admitted in part", "a plan that grows", "a plan with another order", "a plan without noise", "a signed plan",
    "a lowered ceiling", "a ceiling raised from another", "an infinite ceiling",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_event_that_no_run_could_have_written_is_refused(written: Path, forge: Forge, gaussian: Gaussian, name: str) -> None:
    cases = forgeries(gaussian)
    assert tuple(cases) == NAMES
    forge(written, *cases[name])
    with pytest.raises(LedgerBroken, match="event 6"):
        Ledger.open(written, signer=KEYS)


def test_an_intent_beyond_plan_and_reserve_is_refused_on_reading_too(written: Path, forge: Forge, gaussian: Gaussian) -> None:
    _, intent = forgeries(gaussian)["an intent out of turn"]
    for attempt in (2, 3):
        forge(written, "intent", {**intent, "attempt": attempt})
    Ledger.open(written, signer=KEYS).close()
    forge(written, "intent", {**intent, "attempt": 4})  # the fifth of 3 + 1
    with pytest.raises(LedgerBroken, match="outside every plan"):
        Ledger.open(written, signer=KEYS)


def test_a_release_is_spent_and_makes_the_life_adaptive(written: Path, forge: Forge, gaussian: Gaussian) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        spent, order = ledger.epsilon_spent(), ledger.filter_order
    assert order is not None
    release = {
        "release_id": "r1",
        "purpose": "count",
        "mechanism": gaussian(kind="gaussian", sampling_rate=1.0, noise_multiplier=30.0, steps=1),
    }
    said = {"config_hash": "c" * 64, "decided_by": "rdp-filter", "filter_order": order.hex(), "payload_sha256": "d" * 64}
    forge(written, "release", {**release, "mechanism": release["mechanism"].to_record(), **said})  # type: ignore[attr-defined]
    with Ledger.open(written, signer=KEYS) as ledger:
        assert ledger.adaptive
        assert ledger.count_of_intents == 2
        assert len(ledger.spent_events()) == 3
        assert ledger.epsilon_spent() > spent
