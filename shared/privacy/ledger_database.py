"""The SQLite database that a ledger is: its tables, how it is opened, what can be checked without reading events, how one is made."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..errors import EmptyLedger, IsthmusError, LedgerBroken, LedgerError, LedgerLocked, NewerLedger, NotALedger, StorageError
from .ledger_schema import FORMAT, UNSIGNED_FORMAT, Event, canonical

APPLICATION_ID = 0x6973_746D  # "istm"

SCHEMA = (
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, time_utc TEXT NOT NULL, payload TEXT NOT NULL, "
    "prev_hash TEXT NOT NULL, hash TEXT NOT NULL, signature BLOB)",
    "CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
    "CREATE TRIGGER events_are_never_removed BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
)

HANDED_OVER = "CREATE TABLE head (seq INTEGER NOT NULL, hash TEXT NOT NULL, exported_utc TEXT NOT NULL, signature BLOB NOT NULL)"
"""In a file that was handed over: its last event at that time, signed. Such a copy is read, never written."""

COLUMNS = "seq, kind, time_utc, payload, prev_hash, hash, signature"
INSERT = f"INSERT INTO events ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
ANOTHER = "Name the ledger.sqlite of a domain, or the file that its owner handed over."
RESTORE = "Do not train with this ledger. Restore the newest file, or ask the coordinator for the last receipt."


@contextlib.contextmanager
def plain_errors(doing: str) -> Iterator[None]:
    """Turns what SQLite and the operating system say into our errors."""
    try:
        yield
    except IsthmusError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LedgerLocked(f"another process holds the ledger: {doing}", do="Wait for it to end, then try again.") from None
        if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
            raise _storage(doing) from None
        if code == sqlite3.SQLITE_NOTADB:
            raise NotALedger("the file is not a ledger of isthmus", do=ANOTHER) from None
        raise LedgerBroken(f"the ledger is not a readable database: {doing}", do=RESTORE) from None
    except UnicodeDecodeError:  # in a text of the file, or in SQLite's message about it
        raise LedgerBroken(f"the ledger is not a readable database: {doing}", do=RESTORE) from None
    except OSError:
        raise _storage(doing) from None


def _storage(doing: str) -> StorageError:
    do = "Free space or repair the disk. Nothing that was confirmed is lost."
    return StorageError(f"the ledger cannot be written or read: {doing}", do=do)


def must_exist(path: Path) -> None:
    if not path.is_file():
        do = "Create it first; if there was one, restore it or ask the coordinator for the last receipt."
        raise LedgerError("there is no ledger at this place", do=do)


def must_be_ledger(path: Path) -> None:
    """Before anything is written or locked, so that a file that was named by mistake stays as it is.

    Raises:
        NotALedger: another program's database, or no database.
        EmptyLedger: no byte in it.
    """
    must_exist(path)
    with path.open("rb") as file:
        header = file.read(100)
    if not header:
        raise EmptyLedger("the file is empty: there is no genesis in it", do=RESTORE)
    if header[:16] != b"SQLite format 3\0" or header[68:72] != APPLICATION_ID.to_bytes(4, "big"):
        raise NotALedger("the file is not a ledger of isthmus", do=ANOTHER)


def connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    return connection


def check_database(path: Path, connection: sqlite3.Connection) -> int:
    """The file's format, after what can be known without reading events was checked."""
    if path.stat().st_size == 0:
        raise EmptyLedger("the file is empty: there is no genesis in it", do=RESTORE)
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise LedgerBroken("the ledger's database is damaged", do=RESTORE)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise NotALedger("the file is not a ledger of isthmus", do=ANOTHER)
    if version > FORMAT:
        raise NewerLedger(f"the ledger is of format {version}, and this version reads formats up to {FORMAT}", do="Update isthmus.")
    if version < UNSIGNED_FORMAT:
        raise NotALedger("the file is of no format that a ledger ever had", do=ANOTHER)
    found = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema ORDER BY rowid")]
    if found not in (list(SCHEMA), [*SCHEMA, HANDED_OVER]):
        raise LedgerBroken("the ledger's tables are not those of its format", do=RESTORE)
    return int(version)


def write_whole(path: Path, events: Iterable[Event], *, head: tuple[int, str, str, bytes] | None = None) -> None:
    """Makes a database that appears complete or not at all; it is the caller's to see that nothing is at its place.

    Args:
        head: number, hash, time and signature of the last event, in a file to be handed over.

    Raises:
        LedgerError: beside the place stands a part of another database, which SQLite would read into this one.
    """
    for part in ("-wal", "-journal"):
        if os.path.lexists(f"{path}{part}"):
            do = "Move it elsewhere, and keep it: events may stand in it that nothing else holds."
            raise LedgerError(f"a part of another ledger stands at this place: {path.name}{part}", do=do)
    new = path.with_name(path.name + ".new")
    _remove(new)
    try:
        _write_new(new, events, head)
    except BaseException:
        _remove(new)
        raise
    os.rename(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _remove(new: Path) -> None:
    for left_over in (new, new.with_name(new.name + "-journal")):
        left_over.unlink(missing_ok=True)


def _write_new(new: Path, events: Iterable[Event], head: tuple[int, str, str, bytes] | None) -> None:
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = connect(new, "rw")
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={FORMAT}")
        for statement in SCHEMA if head is None else (*SCHEMA, HANDED_OVER):
            connection.execute(statement)
        connection.executemany(INSERT, (row(event) for event in events))
        if head is not None:
            connection.execute("INSERT INTO head VALUES (?, ?, ?, ?)", head)
        connection.execute("COMMIT")
    finally:
        connection.close()


def row(event: Event) -> tuple[Any, ...]:
    """An event as the columns hold it."""
    return (event.seq, event.kind, event.time_utc, canonical(event.payload), event.prev_hash, event.hash, event.signature)
