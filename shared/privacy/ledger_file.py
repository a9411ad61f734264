"""One SQLite file, appended to by one process at a time, that loses nothing it once confirmed.

Beside ``ledger.sqlite`` stands ``ledger.sqlite.lock``. A writer holds an ``flock`` on it for as long as it lives: the operating system
releases it when the process ends, however it ends. Its content is the number and hash of the last event that was confirmed here. A ledger
that ends before that mark was rolled back or lost its write-ahead part, and is refused; a mark that is behind is normal after a crash.

Written with ``synchronous=FULL``: when `LedgerFile.append` returns, the row survives a power cut. ``flock`` needs a local file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import IsthmusError, LedgerBroken, LedgerError, LedgerLocked, StorageError
from .ledger_schema import FORMAT, NO_HASH, Event, event_from_row

APPLICATION_ID = 0x6973_746D  # "istm"

SCHEMA = (
    "CREATE TABLE events (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, time_utc TEXT NOT NULL, payload TEXT NOT NULL, "
    "prev_hash TEXT NOT NULL, hash TEXT NOT NULL, signature BLOB)",
    "CREATE TRIGGER events_are_never_changed BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
    "CREATE TRIGGER events_are_never_removed BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
)

_COLUMNS = "seq, kind, time_utc, payload, prev_hash, hash, signature"
_INSERT = f"INSERT INTO events ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
_RESTORE = "Do not train with this ledger. Restore the newest file, or ask the coordinator for the last receipt."


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
        raise LedgerBroken(f"the ledger is not a readable database: {doing}", do=_RESTORE) from None
    except UnicodeDecodeError:  # in a text of the file, or in SQLite's message about it
        raise LedgerBroken(f"the ledger is not a readable database: {doing}", do=_RESTORE) from None
    except OSError:
        raise _storage(doing) from None


def _storage(doing: str) -> StorageError:
    do = "Free space or repair the disk. Nothing that was confirmed is lost."
    return StorageError(f"the ledger cannot be written or read: {doing}", do=do)


class LedgerFile:
    """An open ledger file. Made by `create`, `write` or `read`; `close` it, or leave a ``with`` block.

    Attributes:
        path: of the SQLite file, links resolved, so that two names of one file are one lock.
        head_seq: number of the last event; 0 before `load`.
        head_hash: its hash.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self.head_seq = 0
        self.head_hash = NO_HASH
        self._connection = connection
        self._lock = lock
        self._process = os.getpid()
        self._closed = False
        self._inode = os.stat(path).st_ino
        self._release_lock = weakref.finalize(self, os.close, lock) if lock is not None else None
        _open_files.add(self)

    @classmethod
    def create(cls, path: Path, genesis: Event, payload: str) -> None:
        """Writes a new file with its first event; it appears complete or not at all.

        Raises:
            LedgerError: when there is one already.
            LedgerBroken: when there was one, and it is gone.
        """
        path = Path(os.path.realpath(path))
        with plain_errors("creating it"):
            lock = _take_lock(path)
            try:
                if path.exists():
                    raise LedgerError("there is a ledger at this place already", do="A domain has one ledger for life: open it.")
                if _mark(lock) is not None:
                    raise LedgerBroken("the ledger of this place is gone", do=_RESTORE)
                _write_whole(path, genesis, payload)
                _set_mark(lock, genesis.seq, genesis.hash)
            finally:
                os.close(lock)

    @classmethod
    def write(cls, path: Path) -> LedgerFile:
        """Opens for appending.

        Raises:
            LedgerLocked: when another process, or another handle in this one, has it open for appending.
        """
        path = Path(os.path.realpath(path))
        with plain_errors("opening it"):
            _must_exist(path)
            lock = _take_lock(path)
            try:
                file = cls(path, _connect(path, "rw"), lock)
            except BaseException:
                os.close(lock)
                raise
            try:
                file._write_ahead()
            except BaseException:
                file.close()
                raise
            return file

    @classmethod
    def read(cls, path: Path) -> LedgerFile:
        """Opens for reading, beside any writer."""
        path = Path(os.path.realpath(path))
        with plain_errors("opening it"):
            _must_exist(path)
            return cls(path, _connect(path, "ro"), None)

    def load(self) -> Iterator[Event]:
        """Every event, after the database itself was checked; sets the head, from which `append` goes on.

        Raises:
            LedgerBroken: at the first thing that does not fit.
        """
        mark = None
        with plain_errors("reading it"):
            if self._lock is not None:
                mark = _mark(self._lock)
            _check_database(self._connection)
        seq, digest = 0, NO_HASH
        for event in self.events():
            seq, digest = event.seq, event.hash
            if mark is not None and seq == mark[0] and digest != mark[1]:
                raise LedgerBroken(f"event {seq} of the ledger is not the one that was written here", do=_RESTORE)
            yield event
        if mark is not None and seq < mark[0]:
            raise LedgerBroken(f"the ledger ends at event {seq}, but event {mark[0]} was written here: it was rolled back", do=_RESTORE)
        self.head_seq, self.head_hash = seq, digest

    def events(self) -> Iterator[Event]:
        """Every event from the first, as of now, each checked against the one before.

        Raises:
            LedgerBroken: at the first event that does not fit.
        """
        self._must_be_ours()
        with plain_errors("reading it"):
            rows = self._connection.execute(f"SELECT {_COLUMNS} FROM events ORDER BY seq").fetchall()
        if not rows:
            raise LedgerBroken("the ledger has no genesis", do=_RESTORE)
        seq, digest = 0, NO_HASH
        for row in rows:
            event = event_from_row(row, prev_seq=seq, prev_hash=digest)
            seq, digest = event.seq, event.hash
            yield event

    def append(self, event: Event, payload: str) -> None:
        """Writes one event. On disk when this returns; when it raises, nothing is lost and at most this event too much is counted.

        Raises:
            StorageError: no space left, or the disk fails.
            LedgerBroken: when the file was replaced, or another process wrote to it in spite of the lock.
        """
        if self._lock is None:
            raise LedgerError("the ledger was opened for reading only")
        self._must_be_ours()
        with plain_errors("writing an event"):
            if os.stat(self.path).st_ino != self._inode:
                raise LedgerBroken("the ledger's file was replaced while it was open", do=_RESTORE)
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                head = self._connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
                if head != (self.head_seq, self.head_hash):
                    raise LedgerBroken("another process wrote to the ledger in spite of the lock", do=_RESTORE)
                self._connection.execute(_INSERT, _row(event, payload))
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                raise
            self.head_seq, self.head_hash = event.seq, event.hash
            with contextlib.suppress(OSError):  # the event is on disk; a mark that stays behind is tolerated
                _set_mark(self._lock, event.seq, event.hash)

    def _write_ahead(self) -> None:
        if self._connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise StorageError("the ledger's place cannot write ahead", do="Keep the ledger on a local disk.")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA fullfsync=ON")

    def _must_be_ours(self) -> None:
        if self._closed:
            raise LedgerError("the ledger was closed")
        if self._process != os.getpid():
            raise LedgerError("the ledger was opened by another process", do="Open it again after a fork.")

    def close(self) -> None:
        self._closed = True
        if self._process == os.getpid():
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
        if self._release_lock is not None:
            self._release_lock()

    def _forget_after_fork(self) -> None:
        """In a child process: the lock stays the parent's alone, and SQLite's handle, which must not be used or closed here, is kept."""
        _not_ours.append(self._connection)
        if self._release_lock is not None:
            self._release_lock()


def confirmed(path: Path) -> int:
    """Number of the last event that was confirmed here, by the mark beside a ledger; behind the truth after a crash, 0 without a mark.

    One small read, and no check: only for telling what was written since.

    Raises:
        LedgerError: there is no ledger.
    """
    path = Path(os.path.realpath(path))
    with plain_errors("reading its mark"):
        _must_exist(path)
        try:
            lock = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY)
        except FileNotFoundError:
            return 0
        try:
            mark = _mark(lock)
        finally:
            os.close(lock)
    return 0 if mark is None else mark[0]


_open_files: weakref.WeakSet[LedgerFile] = weakref.WeakSet()
_not_ours: list[sqlite3.Connection] = []


def _after_fork_in_child() -> None:
    for file in list(_open_files):
        file._forget_after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _must_exist(path: Path) -> None:
    if not path.is_file():
        do = "Create it first; if there was one, restore it or ask the coordinator for the last receipt."
        raise LedgerError("there is no ledger at this place", do=do)


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.as_uri()}?mode={mode}", uri=True, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA trusted_schema=OFF")
    connection.execute("PRAGMA cell_size_check=ON")
    return connection


def _check_database(connection: sqlite3.Connection) -> None:
    if connection.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
        raise LedgerBroken("the ledger's database is damaged", do=_RESTORE)
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise LedgerBroken("the file is not a ledger of isthmus", do=_RESTORE)
    if version != FORMAT:
        raise LedgerBroken(f"the ledger is of format {version}, and this version reads format {FORMAT}", do="Update isthmus.")
    found = [sql for (sql,) in connection.execute("SELECT sql FROM sqlite_schema ORDER BY rowid")]
    if found != list(SCHEMA):
        raise LedgerBroken("the ledger's tables are not those of its format", do=_RESTORE)


def _write_whole(path: Path, genesis: Event, payload: str) -> None:
    new = path.with_name(path.name + ".new")
    for left_over in (new, path.with_name(new.name + "-journal")):
        left_over.unlink(missing_ok=True)
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    connection = _connect(new, "rw")
    try:
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={FORMAT}")
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(_INSERT, _row(genesis, payload))
        connection.execute("COMMIT")
    finally:
        connection.close()
    os.rename(new, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _row(event: Event, payload: str) -> tuple[Any, ...]:
    return (event.seq, event.kind, event.time_utc, payload, event.prev_hash, event.hash, event.signature)


def _take_lock(path: Path) -> int:
    name = path.with_name(path.name + ".lock")
    lock = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(name).st_ino != os.fstat(lock).st_ino:
            raise BlockingIOError
    except (BlockingIOError, FileNotFoundError):
        os.close(lock)
        raise LedgerLocked("another process holds the ledger of this domain", do="Wait for it to end, or end it; then try again.") from None
    except BaseException:
        os.close(lock)
        raise
    return lock


def _mark(lock: int) -> tuple[int, str] | None:
    """Number and hash of the last event confirmed here; None in a new lock file."""
    text = os.pread(lock, 200, 0).strip(b"\0")
    if not text:
        return None
    try:
        seq, digest = text.decode("ascii").split()
        return int(seq), digest
    except ValueError:
        raise LedgerBroken("the mark beside the ledger cannot be read", do=_RESTORE) from None


def _set_mark(lock: int, seq: int, digest: str) -> None:
    os.pwrite(lock, f"{seq:020d} {digest}\n".encode("ascii"), 0)
