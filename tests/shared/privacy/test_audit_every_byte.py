"""No byte of a ledger can be changed without the key: each of them is flipped, and the audit finds it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import IsthmusError, LedgerBroken
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from tests.shared.privacy.bookshop import DELETE, KEYS, NEW_KEYS, UPDATE, by_force

COLUMNS = ("seq", "kind", "time_utc", "payload", "prev_hash", "hash", "signature")
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with an event of every kind that a partner's commands write, under two keys, in one file."""
    path = tmp_path_factory.mktemp("whole") / "ledger.sqlite"
    one = Mechanism(kind="poisson_gaussian", sampling_rate=0.05, noise_multiplier=1.0, clip_norm=0.5, grid=0.0, dimension=10, steps=10)
    plan: dict[str, Any] = {"run_id": "autumn", "config_hash": "c" * 64, "mechanism": one}
    made: dict[str, Any] = {"bundle_digest": "b" * 64, "code_version": "0.1.0"}
    begun = Ledger.create(path, signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="the bookshop")
    with begun as ledger:
        ledger.admit(rounds=2, reserve=1, **plan)
        ledger.intent(round=1, **plan, **made)
        ledger.commit(run_id="autumn", round=1, attempt=1, payload_sha256="d" * 64)
        ledger.rotate_key(NEW_KEYS)
        ledger.raise_ceiling(9.0, raised_by="the board", why="one more season")
        ledger.audited(tier=1, verdict="passed", code_digest="b" * 64, code_version="0.1.0", summary="{}", report_sha256="d" * 64)
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=DELETE")
    database.close()
    return path


def status_of(path: Path) -> Status | str:
    """The verdict, or the name of the reason for which the file was refused."""
    try:
        return verify(path, key=NEW_KEYS.verify_key).status
    except IsthmusError as error:
        return type(error).__name__


def test_the_ledger_holds_before_it_is_touched(whole: Path) -> None:
    assert status_of(whole) is Status.RAISED


def cells(path: Path) -> list[tuple[int, str, bytes]]:
    """Every value of every event, as bytes."""
    with sqlite3.connect(path) as database:
        rows = database.execute(f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY seq").fetchall()
    database.close()
    as_bytes = {int: lambda value: str(value).encode(), str: lambda value: value.encode(), bytes: lambda value: value}
    return [(row[0], name, as_bytes[type(value)](value)) for row in rows for name, value in zip(COLUMNS, row, strict=True)]


def quickly(path: Path, statement: str, value: bytes) -> None:
    """As `by_force`, and nothing waits for the disk."""
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA synchronous=OFF")
    database.execute("PRAGMA journal_mode=OFF")
    for name in ("changed", "removed"):
        database.execute(f"DROP TRIGGER events_are_never_{name}")
    try:
        database.execute(statement, (value,))
    finally:
        for trigger in (UPDATE, DELETE):
            database.execute(trigger)
        database.close()


@pytest.mark.journey
def test_a_flipped_byte_in_any_column_of_any_event_is_found(whole: Path, tmp_path: Path) -> None:
    """All of them, one after the other; the first bad event is the one that was touched, or the next, whose link no longer fits."""
    path, tried = tmp_path / "ledger.sqlite", 0
    for seq, column, value in cells(whole):
        for at in range(len(value)):
            flipped = value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]
            cast = "?" if column == "signature" else "CAST(? AS INTEGER)" if column == "seq" else "CAST(? AS TEXT)"
            shutil.copy(whole, path)
            try:
                quickly(path, f"UPDATE events SET {column} = {cast} WHERE seq = {seq}", flipped)
            except sqlite3.IntegrityError:
                continue  # the number of another event: there it cannot stand
            tried += 1
            found = verify(path, key=NEW_KEYS.verify_key)
            assert found.status is Status.BROKEN, f"event {seq}, {column}, byte {at}"
            assert found.first_bad is not None
            assert found.first_bad <= seq + 1, f"event {seq}, {column}, byte {at}: event {found.first_bad} is named"
    assert tried > 3500


def contents(path: Path) -> list[tuple[Any, ...]]:
    with sqlite3.connect(path) as database:
        database.text_factory = bytes
        rows = database.execute(f"SELECT {', '.join(COLUMNS)} FROM events ORDER BY seq").fetchall()
    database.close()
    return rows


@pytest.mark.slow
def test_a_flipped_byte_anywhere_in_the_file_is_found_or_changes_no_event(whole: Path, tmp_path: Path) -> None:
    """Free space, counters and the like may change; what the ledger says may not."""
    path, data, said = tmp_path / "ledger.sqlite", whole.read_bytes(), contents(whole)
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        if status_of(path) is Status.RAISED:
            assert contents(path) == said, f"byte {at}"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 255)), min_size=1, max_size=6))
def test_several_changed_bytes_are_found_or_change_no_event(whole: Path, tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    path, data = tmp_path / "ledger.sqlite", bytearray(whole.read_bytes())
    for at, mask in changes:
        data[at % len(data)] ^= mask
    path.write_bytes(data)
    if status_of(path) is Status.RAISED:
        assert contents(path) == contents(whole)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(0, 10**6))
def test_a_file_that_is_cut_short_is_never_intact(whole: Path, tmp_path: Path, size: int) -> None:
    data = whole.read_bytes()
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(data[: size % len(data)])
    assert status_of(path) in (Status.BROKEN, "EmptyLedger", "NotALedger", "StorageError")


def test_a_flipped_byte_says_broken_to_the_client_too(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    shutil.copy(whole, path)
    by_force(path, "UPDATE events SET payload = replace(payload, 'autumn', 'autumm') WHERE seq = 3")
    with pytest.raises(LedgerBroken):
        Ledger.open(path, read_only=True)
