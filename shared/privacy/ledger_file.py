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
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import EmptyLedger, LedgerBroken, LedgerError, LedgerLocked, RolledBack, StorageError
from .ledger_database import COLUMNS, INSERT, RESTORE, check_database, connect, must_be_ledger, must_exist, plain_errors, row, write_whole
from .ledger_schema import FORMAT, NO_HASH, Event, event_from_row

_ROWS_AT_A_TIME = 2000
_ROWS_BACKWARDS = 50


class LedgerFile:
    """An open ledger file. Made by `create`, `write` or `read`; `close` it, or leave a ``with`` block.

    Attributes:
        path: of the SQLite file, links resolved, so that two names of one file are one lock.
        head_seq: number of the last event; 0 before `load`.
        head_hash: its hash.
        format: of the file, known after `load`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: int | None) -> None:
        self.path = path
        self.head_seq = 0
        self.head_hash = NO_HASH
        self.format = FORMAT
        self._connection = connection
        self._lock = lock
        self._process = os.getpid()
        self._closed = False
        self._found: tuple[int, ...] | None = None
        self._inode = os.stat(path).st_ino
        self._release_lock = weakref.finalize(self, os.close, lock) if lock is not None else None
        _open_files.add(self)

    @classmethod
    def create(cls, path: Path, genesis: Event, *, after_loss: bool = False) -> None:
        """Writes a new file with its first event; it appears complete or not at all.

        Args:
            after_loss: the ledger that stood here is lost, and its mark no longer counts.
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
                if _mark(lock) is not None and not after_loss:
                    raise LedgerBroken("the ledger of this place is gone", do=RESTORE)
                if after_loss:  # before the file: cut off in between, the place is still that of a lost ledger, and no old mark stands
                    _set_mark(lock, genesis.seq, genesis.hash)
                    os.fsync(lock)
                write_whole(path, [genesis])
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
            must_be_ledger(path)
            lock = _take_lock(path)
            try:
                file = cls(path, connect(path, "rw"), lock)
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
            must_exist(path)
            return cls(path, connect(path, "ro"), None)

    @classmethod
    def examine(cls, path: Path) -> LedgerFile:
        """Opens for an audit: the file, what stands beside it and its folder stay as they are, byte for byte.

        Raises:
            LedgerLocked: a process is writing to it, so that a copy might be half of something; or one began to while it was read.
        """
        path = Path(os.path.realpath(path))
        with plain_errors("opening it"):
            must_exist(path)
            found = _trace(path)
            ahead = path.with_name(path.name + "-wal")
            if _size(ahead) == 0:
                file = cls(path, connect(path, "ro&immutable=1"), None)
                file._found = found
                return file
            folder = tempfile.TemporaryDirectory(prefix="isthmus-audit-")
            try:
                with _nobody_writes(path):
                    shutil.copyfile(path, Path(folder.name) / path.name)
                    if _size(ahead) > 0:  # a writer that just ended has moved it into the file
                        shutil.copyfile(ahead, Path(folder.name) / ahead.name)
                copy = Path(folder.name) / path.name
                file = cls(path, connect(copy, "rw"), None)  # SQLite itself reads the write-ahead part into the copy
                file._connection.execute("PRAGMA query_only=ON")
            except BaseException:
                folder.cleanup()
                raise
            weakref.finalize(file, folder.cleanup)
            return file

    def load(self) -> Iterator[Event]:
        """Every event, after the database itself was checked; sets the head, from which `append` goes on.

        Raises:
            LedgerBroken: at the first thing that does not fit.
        """
        mark = None
        with plain_errors("reading it"):
            if self._lock is not None:
                mark = _mark(self._lock)
            with self._while_it_stands_still():
                self.format = check_database(self.path, self._connection)
        seq, digest = 0, NO_HASH
        for event in self.events():
            seq, digest = event.seq, event.hash
            if mark is not None and seq == mark[0] and digest != mark[1]:
                raise RolledBack(f"event {seq} of the ledger is not the one that was written here", do=RESTORE)
            yield event
        if mark is not None and seq < mark[0]:
            raise RolledBack(f"the ledger ends at event {seq}, but event {mark[0]} was written here: it was rolled back", do=RESTORE)
        self.head_seq, self.head_hash = seq, digest

    def events(self) -> Iterator[Event]:
        """Every event from the first, as of now, each checked against the one before.

        Raises:
            LedgerBroken: at the first event that does not fit.
        """
        seq, digest = 0, NO_HASH
        for one in self._rows():
            event = event_from_row(one, prev_seq=seq, prev_hash=digest)
            seq, digest = event.seq, event.hash
            yield event
        if seq == 0:
            raise EmptyLedger("the ledger has no genesis", do=RESTORE)

    def newest_first(self) -> Iterator[Event]:
        """Every event from the head that `load` found back to the first, each checked against the one after; costs only what is taken.

        Raises:
            LedgerBroken: at the first event that does not fit.
        """
        seq, digest = self.head_seq, self.head_hash
        while seq > 0:
            self._must_be_ours()
            with plain_errors("reading it"):
                query = f"SELECT {COLUMNS} FROM events WHERE seq <= ? ORDER BY seq DESC LIMIT {_ROWS_BACKWARDS}"
                rows = self._connection.execute(query, (seq,)).fetchall()
            for one in rows or [(None,) * 7]:
                event = event_from_row(one, prev_seq=seq - 1, prev_hash=one[4])
                if event.hash != digest:
                    raise LedgerBroken(f"event {seq} of the ledger is not the one it was: it was changed while it was read", do=RESTORE)
                yield event
                seq, digest = seq - 1, event.prev_hash

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        """Some at a time, so that a long ledger does not have to fit into memory."""
        last = -(2**63)
        while True:
            self._must_be_ours()
            with plain_errors("reading it"):
                query = f"SELECT {COLUMNS} FROM events WHERE seq > ? ORDER BY seq LIMIT {_ROWS_AT_A_TIME}"
                with self._while_it_stands_still():
                    rows = self._connection.execute(query, (last,)).fetchall()
            yield from rows
            if len(rows) < _ROWS_AT_A_TIME:
                return
            last = rows[-1][0]

    def signed_head(self) -> tuple[int, str, str, bytes] | None:
        """Number, hash, time and signature that a handed-over file ends with; None in a ledger that was not handed over.

        Raises:
            LedgerBroken: there is not exactly one.
        """
        self._must_be_ours()
        with plain_errors("reading its signed head"):
            if not self._handed_over():
                return None
            rows = self._connection.execute("SELECT seq, hash, exported_utc, signature FROM head").fetchall()
        types = (int, str, str, bytes)
        if len(rows) != 1 or any(type(value) is not wanted for value, wanted in zip(rows[0], types, strict=True)):
            raise LedgerBroken("the signed head of the file is not one", do="Ask its owner to hand the ledger over again.")
        seq, digest, exported, signature = rows[0]
        return seq, digest, exported, signature

    def _handed_over(self) -> bool:
        return self._connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'head'").fetchone() is not None

    def append(self, event: Event, *, new_format: int | None = None) -> None:
        """Writes one event. On disk when this returns; when it raises, nothing is lost and at most this event too much is counted.

        Args:
            new_format: written into the file in the same transaction, where the event changes it.

        Raises:
            StorageError: no space left, or the disk fails.
            LedgerBroken: when the file was replaced, or another process wrote to it in spite of the lock.
        """
        if self._lock is None:
            raise LedgerError("the ledger was opened for reading only")
        self._must_be_ours()
        with plain_errors("writing an event"):
            if os.stat(self.path).st_ino != self._inode:
                raise LedgerBroken("the ledger's file was replaced while it was open", do=RESTORE)
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                head = self._connection.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
                if head != (self.head_seq, self.head_hash):
                    raise LedgerBroken("another process wrote to the ledger in spite of the lock", do=RESTORE)
                self._connection.execute(INSERT, row(event))
                if new_format is not None:
                    self._connection.execute(f"PRAGMA user_version={int(new_format)}")
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
        if self._handed_over():
            raise LedgerError("the file is a hand-over: it is read, never written", do="Open the ledger that it was made from.")
        if self._connection.execute("PRAGMA journal_mode=WAL").fetchone() != ("wal",):
            raise StorageError("the ledger's place cannot write ahead", do="Keep the ledger on a local disk.")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA fullfsync=ON")

    @contextlib.contextmanager
    def _while_it_stands_still(self) -> Iterator[None]:
        """Under audit SQLite takes no lock: what a writer changed meanwhile must not pass for damage."""
        try:
            yield
        finally:
            if self._found is not None and self._found != _trace(self.path):
                raise LedgerLocked("a process wrote to the ledger while it was read", do="Wait for it to end, then try again.")

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
        must_exist(path)
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


@contextlib.contextmanager
def _nobody_writes(path: Path) -> Iterator[None]:
    """Holds writers off for the time of a copy, where there is a lock to hold."""
    try:
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDONLY)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        do = "Wait for it to end, or have the ledger handed over with isthmus-client ledger export."
        raise LedgerLocked("a process is writing to the ledger", do=do) from None
    finally:
        os.close(lock)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _trace(path: Path) -> tuple[int, ...]:
    """What changes whenever a file is written."""
    found = os.stat(path)
    return found.st_ino, found.st_size, found.st_mtime_ns


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
        raise LedgerBroken("the mark beside the ledger cannot be read", do=RESTORE) from None


def _set_mark(lock: int, seq: int, digest: str) -> None:
    os.pwrite(lock, f"{seq:020d} {digest}\n".encode("ascii"), 0)
