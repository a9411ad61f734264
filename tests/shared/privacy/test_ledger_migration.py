"""A ledger of format 1, as an older release wrote it, goes on as one of format 2: nothing in it changes, and from here on it is signed."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerBroken, LedgerError, NewerLedger, RolledBack, WrongKey
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import event_message, holds
from tests.shared.privacy.bookshop import KEYS, NEW_KEYS, STRANGER, audited, by_force, bytes_of, event_row, write_anew

EVENTS, INTENTS = 24, 9
SPENT, RESERVED = "0x1.e459821f89b44p+1", "0x1.f8267fc247718p+1"
"""As that release itself gave them on the day."""

ONE = Mechanism(kind="poisson_gaussian", sampling_rate=0.05, noise_multiplier=1.1, clip_norm=0.1, grid=2.0**-21, dimension=1234, steps=10)
RUN: dict[str, Any] = {"run_id": "spring", "config_hash": "c" * 64, "mechanism": ONE}


def rows(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as database:
        found = database.execute("SELECT * FROM events ORDER BY seq").fetchall()
    database.close()
    return found


def upgrade(path: Path, signer: Any = KEYS) -> None:
    Ledger.upgrade(path, signer=signer, why="this release signs its ledgers")


def test_an_old_ledger_is_read_and_its_numbers_are_exactly_those_of_then(old: Path) -> None:
    with Ledger.open(old, read_only=True) as ledger:
        assert (ledger.domain, ledger.ceiling_epsilon, ledger.delta, ledger.filter_order) == ("bücher", 9.1, 1e-5, 4.0)
        assert (ledger.count_of_events, ledger.count_of_intents, ledger.verify_key) == (EVENTS, INTENTS, None)
        assert (ledger.booked_epsilon, ledger.claimed_delta, ledger.adaptive) == (0.0, 1e-5, True)
        assert (ledger.epsilon_spent().hex(), ledger.epsilon_reserved().hex()) == (SPENT, RESERVED)
        assert ledger.spent_events() == [ONE] * INTENTS
        assert ledger.intents_left("spring") == 2
    book, events = audited(old)
    assert (book.keys, book.signed_from, book.format, book.raised) == ([], None, 1, True)
    assert len(events) == EVENTS
    assert all(event.signature is None for event in events)


def test_an_old_ledger_takes_no_event_before_it_is_brought_to_this_format(old: Path) -> None:
    before = rows(old)
    with pytest.raises(LedgerError, match="ledger upgrade"):
        Ledger.open(old, signer=KEYS)
    with pytest.raises(LedgerError):
        Ledger.open(old)
    assert rows(old) == before


def test_an_upgrade_changes_nothing_that_was_and_signs_what_follows(old: Path) -> None:
    before = rows(old)
    upgrade(old)
    after = rows(old)
    assert after[:EVENTS] == before
    book, events = audited(old)
    (migration,) = events[EVENTS:]
    assert migration.kind == "migration"
    assert (migration.payload["from_format"], migration.payload["to_format"]) == (1, 2)
    assert migration.payload["why"] == "this release signs its ledgers"
    assert holds(KEYS.verify_key, event_message(migration.hash), migration.signature or b"")
    assert (book.keys, book.verify_key, book.signed_from, book.format) == ([KEYS.verify_key], KEYS.verify_key, EVENTS + 1, 2)


def test_after_an_upgrade_the_life_goes_on_with_what_was_spent(old: Path) -> None:
    upgrade(old)
    with Ledger.open(old, signer=KEYS) as ledger:
        assert (ledger.epsilon_spent().hex(), ledger.epsilon_reserved().hex()) == (SPENT, RESERVED)
        assert (ledger.filter_order, ledger.ceiling_epsilon, ledger.count_of_intents) == (4.0, 9.1, INTENTS)
        ledger.admit(rounds=3, reserve=1, **RUN)  # a resume: it was admitted in the old format
        attempt = ledger.intent(round=2, bundle_digest="b" * 64, code_version="9.9.9", **RUN)
        assert attempt == 2
        ledger.commit(run_id="spring", round=2, attempt=attempt, payload_sha256="e" * 64)
        assert ledger.committed("autumn", 4) == f"{4:064x}"
        assert ledger.count_of_intents == INTENTS + 1
        assert ledger.epsilon_spent() > float.fromhex(SPENT)
        ledger.rotate_key(NEW_KEYS)
    book, events = audited(old)
    assert [event.kind for event in events[EVENTS:]] == ["migration", "intent", "commit", "key"]
    assert (book.intents, book.keys) == (INTENTS + 1, [KEYS.verify_key, NEW_KEYS.verify_key])


def test_an_upgrade_again_does_nothing(old: Path) -> None:
    upgrade(old)
    before = rows(old)
    upgrade(old)
    upgrade(old, STRANGER)
    assert rows(old) == before
    with pytest.raises(WrongKey):
        Ledger.open(old, signer=STRANGER)


def test_a_ledger_of_this_format_is_left_as_it_is(written: Path) -> None:
    before = rows(written)
    upgrade(written)
    assert rows(written) == before


@pytest.mark.parametrize("why", ["", "x" * 2001, "a\0b"])
def test_an_upgrade_without_a_reason_that_can_be_written_down_is_refused(old: Path, why: str) -> None:
    before = rows(old)
    with pytest.raises(LedgerError, match="'why'"):
        Ledger.upgrade(old, signer=KEYS, why=why)
    assert rows(old) == before


@pytest.mark.parametrize("seq", [1, 2, 10, EVENTS])
def test_an_old_event_that_was_edited_before_the_upgrade_is_found_out(old: Path, seq: int) -> None:
    by_force(old, f"UPDATE events SET payload = replace(payload, '0x1.199999999999ap+0', '0x1.199999999999ap+1') WHERE seq = {seq}")
    if seq == 1:
        by_force(old, "UPDATE events SET payload = replace(payload, 'the bookshop', 'somebody') WHERE seq = 1")
    with pytest.raises(LedgerBroken, match=f"event {seq} of the ledger does not match its hash"):
        upgrade(old)
    with pytest.raises(LedgerBroken, match=f"event {seq}"):
        audited(old)


def test_an_unsigned_history_that_was_written_anew_does_not_pass_at_its_own_place(old: Path) -> None:
    def cheaper(seq: int, said: dict[str, Any]) -> dict[str, Any]:
        if "mechanism" in said:
            said["mechanism"]["noise_multiplier"] = (9.0).hex()
        return said

    write_anew(old, cheaper, KEYS)
    by_force(old, "UPDATE events SET signature = NULL")
    with pytest.raises(RolledBack, match="not the one that was written here"):
        upgrade(old)


def test_the_chain_under_a_migration_vouches_for_what_stands_before_it(old: Path) -> None:
    """Whoever has not the key cannot exchange the unsigned part afterwards: the signed event names its hash."""
    upgrade(old)

    def cheaper(seq: int, said: dict[str, Any]) -> dict[str, Any]:
        if seq == EVENTS:
            said["attempt"] = 1
        if "mechanism" in said:
            said["mechanism"]["noise_multiplier"] = (9.0).hex()
        return said

    write_anew(old, cheaper, STRANGER)
    by_force(old, f"UPDATE events SET signature = NULL WHERE seq <= {EVENTS}")
    old.with_name(old.name + ".lock").unlink()
    with pytest.raises(LedgerBroken, match=f"event {EVENTS + 1} of the ledger is not signed"):
        Ledger.open(old, signer=KEYS)


@pytest.mark.parametrize(
    "changes",
    [
        {"from_format": 2},
        {"to_format": 3},
        {"to_format": 1},
        {"verify_key": "nobody"},
        {"why": ""},
        {"more": 1},
    ],
)
def test_a_migration_that_is_none_is_refused(old: Path, changes: dict[str, Any]) -> None:
    said = {"from_format": 1, "to_format": 2, "verify_key": KEYS.verify_key, "why": "x", **changes}
    with sqlite3.connect(old) as database:
        seq, digest = database.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        row = event_row(seq + 1, "migration", said, digest, KEYS, "2031-01-01T00:00:00.000000Z")
        database.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        database.execute("PRAGMA user_version=2")
    database.close()
    with pytest.raises(LedgerBroken, match=f"event {EVENTS + 1}"):
        Ledger.open(old, signer=KEYS)


def test_a_second_migration_is_refused(old: Path, forge: Any) -> None:
    upgrade(old)
    forge(old, "migration", {"from_format": 1, "to_format": 2, "verify_key": STRANGER.verify_key, "why": "a key of my own"})
    with pytest.raises(LedgerBroken, match="a format that the ledger does not have"):
        Ledger.open(old, signer=KEYS)


@pytest.mark.parametrize(("migrated", "version"), [(True, 1), (False, 2)])
def test_a_file_and_its_events_that_name_different_formats_are_refused(old: Path, migrated: bool, version: int) -> None:
    if migrated:
        upgrade(old)
    by_force(old, f"PRAGMA user_version={version}")
    for signer in (KEYS, None):
        with pytest.raises(LedgerBroken, match="different formats"):
            Ledger.open(old, signer=signer, read_only=signer is None)


def test_an_unsigned_event_after_the_migration_is_refused(old: Path) -> None:
    upgrade(old)
    with Ledger.open(old, signer=KEYS) as ledger:
        ledger.note("signed")
    by_force(old, f"UPDATE events SET signature = NULL WHERE seq = {EVENTS + 2}")
    with pytest.raises(LedgerBroken, match="it is not signed"):
        Ledger.open(old, signer=KEYS)


@pytest.mark.parametrize("version", [3, 4, 2**31 - 1])
def test_a_newer_format_is_refused_and_the_file_stays_as_it_is(old: Path, tmp_path: Path, version: int) -> None:
    by_force(old, f"PRAGMA user_version={version}")
    shutil.copy(old, tmp_path / "copy.sqlite")
    folder = tmp_path / "audited"
    folder.mkdir()
    shutil.copy(old, folder / "ledger.sqlite")
    before = bytes_of(folder)
    with pytest.raises(NewerLedger, match=f"format {version}") as error:
        audited(folder / "ledger.sqlite")
    assert (error.value.exit_code, "Update isthmus" in str(error.value)) == (20, True)
    assert bytes_of(folder) == before
    for act in (
        lambda: Ledger.open(old, signer=KEYS),
        lambda: Ledger.open(old, read_only=True),
        lambda: upgrade(old),
        lambda: read_events(old),
    ):
        with pytest.raises(NewerLedger):
            act()


@pytest.mark.parametrize("version", [0, -1])
def test_a_format_that_never_was_is_refused(old: Path, version: int) -> None:
    by_force(old, f"PRAGMA user_version={version}")
    with pytest.raises(LedgerBroken, match="no format that a ledger ever had"):
        upgrade(old)


def test_every_number_of_the_old_file_reads_back_exactly(old: Path) -> None:
    """What is written again from what was read is what stands there, to the last bit."""
    for event in read_events(old):
        for name, value in event.payload.items():
            if isinstance(value, str) and value.startswith("0x"):
                assert float.fromhex(value).hex() == value, name
            if name == "mechanism":
                assert Mechanism.from_record(value).to_record() == value
    genesis = read_events(old)[0].payload
    assert [float.fromhex(genesis[name]) for name in ("ceiling_epsilon", "delta", "pld_interval")] == [7.3, 1e-5, 0.001]
