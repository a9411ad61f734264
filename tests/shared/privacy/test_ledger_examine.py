"""An audit reads and leaves no trace: the file, its write-ahead part, its mark and its folder are the same afterwards, byte for byte."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import EmptyLedger, LedgerError, LedgerLocked, NotALedger, StorageError
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.ledger_file import LedgerFile
from shared.privacy.ledger_handover import hand_over
from shared.privacy.ledger_schema import Event
from tests.shared.privacy.bookshop import KEYS, audited, by_force, bytes_of

Intend = Callable[..., int]
Trace = dict[str, tuple[bytes, int, int, int]]


@pytest.fixture
def ahead(written: Path, intend: Intend) -> Path:
    """Six events; the last of them only in the write-ahead part that a killed process left."""
    child = os.fork()
    if child == 0:
        intend(Ledger.open(written, signer=KEYS), 3)
        os._exit(0)
    os.waitpid(child, 0)
    assert written.with_name(written.name + "-wal").stat().st_size > 0
    return written


def trace(folder: Path) -> Trace:
    """Names, bytes, modes and times of everything in a folder, and of the folder."""
    found = {"": (b"", *_when(folder))}
    return found | {name: (data, *_when(folder / name)) for name, data in bytes_of(folder).items()}


def _when(path: Path) -> tuple[int, int, int]:
    said = path.stat()
    return said.st_mtime_ns, said.st_ino, stat.S_IMODE(said.st_mode)


def examined(path: Path) -> list[Event]:
    return audited(path)[1]


@pytest.mark.parametrize("kind", ["closed", "with a write-ahead part", "handed over", "without its mark"])
def test_what_is_examined_stays_as_it_is(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    path: Path = request.getfixturevalue("ahead" if kind == "with a write-ahead part" else "written")
    if kind == "handed over":
        path, ledger = tmp_path / "handed" / "books.sqlite", path
        path.parent.mkdir()
        hand_over(ledger, path, signer=KEYS)
    if kind == "without its mark":
        path.with_name(path.name + ".lock").unlink()
    before = trace(path.parent)
    assert len(examined(path)) == (6 if kind == "with a write-ahead part" else 5)
    assert trace(path.parent) == before


def test_a_write_ahead_part_is_read_without_a_copy_being_left_anywhere(
    ahead: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "temporary"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    assert examined(ahead)[-1].kind == "intent"
    assert list(elsewhere.iterdir()) == []


def test_what_is_examined_takes_no_event(ahead: Path, written: Path) -> None:
    file = LedgerFile.examine(ahead)
    events = list(file.load())
    with pytest.raises(LedgerError, match="reading only"):
        file.append(events[-1])
    with pytest.raises(sqlite3.OperationalError):
        file._connection.execute("DELETE FROM events")
    file.close()
    with pytest.raises(LedgerError, match="closed"):
        next(file.events())


NOBODY = 65534


def lengths_as_nobody(*paths: Path) -> str:
    """What a process without rights of its own reads: the number of events in each file, or what went wrong."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            said = " ".join(str(len(examined(path))) for path in paths)
        except BaseException as error:
            said = repr(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    said = b"".join(iter(lambda: os.read(reading, 1000), b"")).decode()
    os.close(reading)
    os.waitpid(child, 0)
    return said


def test_an_auditor_who_may_only_read_can_examine(ahead: Path, tmp_path: Path) -> None:
    """Files and folder without the right to write: an archive, a read-only medium."""
    archive = Path(tempfile.mkdtemp(prefix="isthmus-test-"))  # pytest's own folders are closed to others
    try:
        for one in tmp_path.iterdir():
            shutil.copy(one, archive / one.name)
        hand_over(ahead, archive / "books.sqlite", signer=KEYS)
        for one in archive.iterdir():
            one.chmod(0o444)
        archive.chmod(0o555)
        before = trace(archive)
        assert lengths_as_nobody(archive / "ledger.sqlite", archive / "books.sqlite") == "6 6"
        assert trace(archive) == before
    finally:
        archive.chmod(0o755)
        shutil.rmtree(archive)


def test_an_audit_beside_a_writer_reads_the_whole_or_waits(written: Path, intend: Intend) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        assert len(examined(written)) == 5  # nothing was written ahead yet
        intend(ledger, 3)
        before = bytes_of(written.parent)
        with pytest.raises(LedgerLocked, match="writing to the ledger"):
            examined(written)
        assert bytes_of(written.parent) == before
        intend(ledger, 3)  # and the writer never noticed
        assert len(read_events(written)) == 7  # its owner reads beside it
    assert len(examined(written)) == 7


def test_what_a_writer_changes_under_an_audit_does_not_pass_for_damage(written: Path, intend: Intend) -> None:
    file = LedgerFile.examine(written)
    reading = file.load()
    assert next(reading).kind == "genesis"
    with Ledger.open(written, signer=KEYS) as ledger:
        intend(ledger, 3)  # and closing moves it into the file
    with pytest.raises(LedgerLocked, match="while it was read"):
        list(file.events())
    file.close()
    assert len(examined(written)) == 6


def test_a_writer_waits_no_longer_than_a_copy_takes(ahead: Path) -> None:
    file = LedgerFile.examine(ahead)
    Ledger.open(ahead, signer=KEYS).close()  # the copy is made, the lock is free again
    assert len(list(file.load())) == 6
    file.close()


@pytest.mark.journey
def test_audits_beside_a_busy_writer_see_whole_ledgers_only(written: Path) -> None:
    """The writer opens, writes and closes over and over; whatever an audit reads is a prefix that holds."""
    done = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for number in range(120):
                while True:
                    try:
                        with Ledger.open(written, signer=KEYS) as ledger:
                            ledger.note(f"number {number}")
                        break
                    except LedgerLocked:
                        continue
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen, waited = [], 0
    while not done.is_set():
        try:
            seen.append(len(examined(written)))
        except LedgerLocked:
            waited += 1
    writer.join()
    assert failed == []
    assert seen == sorted(seen)
    assert len(set(seen)) > 3, f"{len(seen)} read, {waited} waited"
    assert len(examined(written)) == 125


FOREIGN = {
    "empty": b"",
    "text": b"seven books were sold\n" * 500,
    "the beginning of a database": b"SQLite format 3\0",
    "noise": bytes((7 * n * n + 13) % 251 for n in range(9000)),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_what_is_no_ledger_is_said_to_be_none_and_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "other"
    path.write_bytes(FOREIGN[kind])
    before = trace(tmp_path)
    wanted = EmptyLedger if kind == "empty" else NotALedger
    for act in (lambda: examined(path), lambda: Ledger.open(path, signer=KEYS), lambda: Ledger.upgrade(path, signer=KEYS, why="x")):
        with pytest.raises(wanted):
            act()
    assert trace(tmp_path) == before


def test_the_database_of_another_program_stays_as_it_is(tmp_path: Path) -> None:
    """Named by mistake for the ledger; opening it for writing would have changed its journal."""
    path = tmp_path / "bookmarks.sqlite"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE bookmarks (address TEXT)")
    database.close()
    before = trace(tmp_path)
    for act in (lambda: examined(path), lambda: Ledger.open(path, signer=KEYS), lambda: Ledger.upgrade(path, signer=KEYS, why="x")):
        with pytest.raises(NotALedger):
            act()
    assert trace(tmp_path) == before


def test_damage_is_named_and_left_for_others_to_see(written: Path) -> None:
    by_force(written, "UPDATE events SET payload = replace(payload, 'autumn', 'spring') WHERE seq = 3")
    before = trace(written.parent)
    with pytest.raises(LedgerError, match="event 3"):
        examined(written)
    assert trace(written.parent) == before


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="no ledger at this place"):
        LedgerFile.examine(tmp_path / "ledger.sqlite")
    with pytest.raises((LedgerError, StorageError)):
        LedgerFile.examine(tmp_path)
    assert list(tmp_path.iterdir()) == []
