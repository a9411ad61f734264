"""A ledger in other hands is one whole file: nothing of it is missing, its end is signed, and nobody goes on writing to it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerBroken, LedgerError, LedgerLocked, StorageError, WrongKey
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.ledger_file import LedgerFile
from shared.privacy.ledger_handover import Head, hand_over, head_of
from shared.privacy.signing import head_message, holds
from tests.shared.privacy.bookshop import KEYS, NEW_KEYS, STRANGER, audited, by_force, bytes_of

Intend = Callable[..., int]


@pytest.fixture
def away(tmp_path: Path) -> Path:
    folder = tmp_path / "auditor"
    folder.mkdir()
    return folder / "books.sqlite"


def head_in(path: Path, domain: str = "books") -> Head | None:
    file = LedgerFile.examine(path)
    try:
        return head_of(file, domain)
    finally:
        file.close()


def test_what_is_handed_over_is_every_event_and_a_signed_end(written: Path, away: Path) -> None:
    head = hand_over(written, away, signer=KEYS)
    assert read_events(away) == read_events(written)
    assert (head.seq, head.hash, head.domain) == (5, read_events(written)[-1].hash, "books")
    assert head.holds(KEYS.verify_key)
    assert not head.holds(STRANGER.verify_key)
    assert head_in(away) == head
    assert head_in(written) is None
    book, events = audited(away)
    assert (book.verify_key, len(events)) == (KEYS.verify_key, 5)


def test_it_is_one_file_that_needs_none_beside_it(written: Path, away: Path) -> None:
    hand_over(written, away, signer=KEYS)
    assert [one.name for one in away.parent.iterdir()] == [away.name]
    assert stat.S_IMODE(away.stat().st_mode) == 0o600
    database = sqlite3.connect(away)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()


def test_a_hand_over_holds_what_a_bare_copy_misses(written: Path, intend: Intend, tmp_path: Path, away: Path) -> None:
    """A killed writer leaves its newest events in the write-ahead part."""
    child = os.fork()
    if child == 0:
        intend(Ledger.open(written, signer=KEYS), 3)
        os._exit(0)
    os.waitpid(child, 0)
    assert written.with_name(written.name + "-wal").stat().st_size > 0
    shutil.copy(written, tmp_path / "bare.sqlite")
    hand_over(written, away, signer=KEYS)
    assert len(read_events(tmp_path / "bare.sqlite")) == 5
    assert len(read_events(away)) == 6


def test_the_ledger_goes_on_and_stays_as_it_is(written: Path, away: Path, intend: Intend) -> None:
    before = read_events(written)
    hand_over(written, away, signer=KEYS)
    assert read_events(written) == before
    with Ledger.open(written, signer=KEYS) as ledger:
        assert intend(ledger, 3) == 1
    assert len(read_events(away)) == 5


def test_nobody_writes_to_what_was_handed_over(written: Path, away: Path) -> None:
    hand_over(written, away, signer=KEYS)
    before = away.read_bytes()
    with pytest.raises(LedgerError, match="hand-over"):
        Ledger.open(away, signer=KEYS)
    with pytest.raises(LedgerError, match="hand-over"):
        Ledger.upgrade(away, signer=KEYS, why="x")
    with pytest.raises(LedgerError, match="hand-over"):
        hand_over(away, away.with_name("again.sqlite"), signer=KEYS)
    assert away.read_bytes() == before
    with Ledger.open(away, read_only=True) as ledger:
        assert ledger.count_of_intents == 2


@pytest.mark.parametrize("there", ["a file", "a folder", "a link to nowhere"])
def test_nothing_is_ever_overwritten(written: Path, away: Path, there: str) -> None:
    if there == "a file":
        away.write_bytes(b"something of the auditor's")
    elif there == "a folder":
        away.mkdir()
    else:
        away.symlink_to(away.with_name("nowhere"))
    before = bytes_of(away.parent)
    with pytest.raises(LedgerError, match="already"):
        hand_over(written, away, signer=KEYS)
    assert bytes_of(away.parent) == before
    assert not away.with_name("nowhere").exists()


def test_a_part_of_another_database_is_not_read_into_a_hand_over(written: Path, away: Path) -> None:
    away.with_name(away.name + "-wal").write_bytes(b"of another ledger")
    with pytest.raises(LedgerError, match="a part of another ledger"):
        hand_over(written, away, signer=KEYS)
    assert not away.exists()


def test_a_path_may_be_relative(written: Path, away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(away.parent)
    hand_over(written, Path(away.name), signer=KEYS)
    assert len(read_events(away)) == 5


def test_a_hand_over_needs_the_key_in_force_and_no_writer(written: Path, away: Path) -> None:
    with pytest.raises(WrongKey):
        hand_over(written, away, signer=STRANGER)
    with Ledger.open(written, signer=KEYS) as ledger:
        with pytest.raises(LedgerLocked):
            hand_over(written, away, signer=KEYS)
        ledger.rotate_key(NEW_KEYS)
    with pytest.raises(WrongKey):
        hand_over(written, away, signer=KEYS)
    assert list(away.parent.iterdir()) == []
    head = hand_over(written, away, signer=NEW_KEYS)
    assert head.holds(NEW_KEYS.verify_key)
    assert not head.holds(KEYS.verify_key)


def test_a_broken_ledger_is_not_handed_over(written: Path, away: Path) -> None:
    by_force(written, "UPDATE events SET time_utc = '2020-01-01T00:00:00.000000Z' WHERE seq = 3")
    with pytest.raises(LedgerBroken, match="event 3"):
        hand_over(written, away, signer=KEYS)
    assert list(away.parent.iterdir()) == []


def test_a_folder_that_is_not_there_is_a_storage_error(written: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        hand_over(written, tmp_path / "missing" / "books.sqlite", signer=KEYS)


def test_events_that_are_cut_off_afterwards_are_missed_by_the_signed_head(written: Path, away: Path) -> None:
    hand_over(written, away, signer=KEYS)
    by_force(away, "DELETE FROM events WHERE seq = 5")
    book, events = audited(away)  # four events that hold
    head = head_in(away, book.domain)
    assert head is not None
    assert head.holds(KEYS.verify_key)
    assert (head.seq, head.hash) != (events[-1].seq, events[-1].hash)


@pytest.mark.parametrize("field", ["seq", "hash", "exported_utc", "domain", "signature"])
def test_a_signed_head_that_was_edited_does_not_hold(written: Path, away: Path, field: str) -> None:
    hand_over(written, away, signer=KEYS)
    if field == "seq":
        by_force(away, "UPDATE head SET seq = 4")
    elif field == "signature":
        by_force(away, ("UPDATE head SET signature = ?", (STRANGER.sign(head_message("books", 5, "a" * 64, "x")),)))
    elif field != "domain":
        by_force(away, f"UPDATE head SET {field} = substr({field}, 1, length({field}) - 1) || 'x'")
    head = head_in(away, "films" if field == "domain" else "books")
    assert head is not None
    assert not head.holds(KEYS.verify_key)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM head",
        "INSERT INTO head SELECT * FROM head",
        "UPDATE head SET seq = 'five'",
        "UPDATE head SET hash = x'00'",
        "UPDATE head SET exported_utc = x'07'",
        "UPDATE head SET signature = 'text'",
        "UPDATE head SET signature = x'00'",
    ],
)
def test_a_head_that_is_none_is_refused(written: Path, away: Path, statement: str) -> None:
    hand_over(written, away, signer=KEYS)
    by_force(away, statement)
    with pytest.raises(LedgerBroken, match="signed head"):
        head_in(away)


def test_a_hand_over_put_in_the_place_of_the_ledger_takes_no_event(written: Path, away: Path) -> None:
    hand_over(written, away, signer=KEYS)
    shutil.copy(away, written)
    with pytest.raises(LedgerError, match="hand-over"):
        Ledger.open(written, signer=KEYS)


def test_the_time_of_a_hand_over_is_signed_too(written: Path, away: Path) -> None:
    head = hand_over(written, away, signer=KEYS)
    said: dict[str, Any] = {"domain": "books", "seq": head.seq, "digest": head.hash, "exported_utc": head.exported_utc}
    assert holds(KEYS.verify_key, head_message(**said), head.signature)
    assert not holds(KEYS.verify_key, head_message(**{**said, "exported_utc": "2031-01-01T00:00:00.000000Z"}), head.signature)
