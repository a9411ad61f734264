"""What a power cut may leave of the two files: everything that was confirmed, and whatever was not yet synchronised whole or absent.

Between two synchronisations the operating system writes what it was given in any order, and in pieces. So the bytes that an act changed are
put back piece by piece, in every way or in many random ones, and the ledger has to open each time with every confirmed event.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from shared.errors import LedgerLocked, WrongKey
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_schema import Event
from tests.shared.privacy.bookshop import KEYS, NEW_KEYS, audited
from tests.shared.privacy.test_ledger_crashes_of_a_life import raise_ceiling, release

SECTOR, PAGE, FRAME, HEADER = 512, 4096, 24 + 4096, 32
"""What a disk writes as a whole; SQLite's pages; a page with its head in the write-ahead part; and what stands before the first."""

Intend = Callable[..., int]


@dataclass(frozen=True)
class Disk:
    """The files of a ledger at one moment."""

    database: bytes
    ahead: bytes
    mark: bytes

    @classmethod
    def of(cls, path: Path) -> Disk:
        ahead = path.with_name(path.name + "-wal")
        mark = path.with_name(path.name + ".lock").read_bytes()
        return cls(database=path.read_bytes(), ahead=ahead.read_bytes() if ahead.exists() else b"", mark=mark)

    def put(self, folder: Path) -> Path:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / "ledger.sqlite"
        path.write_bytes(self.database)
        if self.ahead:
            path.with_name(path.name + "-wal").write_bytes(self.ahead)
        path.with_name(path.name + ".lock").write_bytes(self.mark)
        return path


def pieces(before: bytes, after: bytes, size: int) -> list[int]:
    """Where two states of a file differ, in pieces of a size."""
    length = max(len(before), len(after))
    return [at for at in range(0, length, size) if before[at : at + size] != after[at : at + size]]


def mixed(before: bytes, after: bytes, written: set[int], size: int) -> bytes:
    """A file of which only some pieces were written; what was never written and lies before one that was, is zeros."""
    end = max((min(at + size, len(after)) for at in written), default=0)
    data = bytearray(before[:end].ljust(end, b"\0") + before[end:])
    for at in written:
        data[at : at + size] = after[at : at + size]
    return bytes(data)


def opened(path: Path) -> list[Event]:
    """Every event of what the power cut left; it is open for writing, so nothing in it may be damaged."""
    try:
        ledger = Ledger.open(path, signer=KEYS)
    except WrongKey:  # the key was changed, and that was written
        ledger = Ledger.open(path, signer=NEW_KEYS)
    with ledger:
        return list(ledger.events())


@pytest.fixture
def acts(intend: Intend) -> list[Callable[[Ledger], object]]:
    return [
        lambda ledger: intend(ledger, 3),
        release,
        raise_ceiling,
        lambda ledger: ledger.note("x" * 2000),
        lambda ledger: ledger.rotate_key(NEW_KEYS),
    ]


def history(path: Path, acts: list[Callable[[Ledger], object]]) -> Iterator[tuple[Disk, Disk, list[Event]]]:
    """Before and after each act what the disk holds, and the events that are confirmed after it."""
    with Ledger.open(path, signer=KEYS) as ledger:
        ledger.note("so that the write-ahead part has begun")
        before = Disk.of(path)
        for act in acts:
            act(ledger)
            after = Disk.of(path)
            yield before, after, list(ledger.events())
            before = after


def test_an_event_cut_at_every_frame_and_in_every_frame_is_whole_or_absent(
    written: Path, tmp_path: Path, acts: list[Callable[[Ledger], object]]
) -> None:
    tried = 0
    for before, after, events in list(history(written, acts)):
        assert before.database == after.database, "nothing but the write-ahead part is written while events are"
        assert (len(after.ahead) - HEADER) % FRAME == 0
        assert after.ahead[: len(before.ahead)] == before.ahead
        frames = range(len(before.ahead), len(after.ahead) + 1, FRAME)
        cuts = {frame + more for frame in frames for more in (-1, 0, 1, 24, 25, FRAME // 2)}
        for cut in sorted(cuts & set(range(len(before.ahead), len(after.ahead) + 1))):
            path = Disk(after.database, after.ahead[:cut], before.mark).put(tmp_path / "cut")
            assert opened(path) == (events if cut == len(after.ahead) else events[:-1])
            tried += 1
    assert tried > 40


def test_an_event_of_which_only_some_sectors_were_written_is_whole_or_absent(
    written: Path, tmp_path: Path, acts: list[Callable[[Ledger], object]]
) -> None:
    draw = random.Random(11)
    for before, after, events in list(history(written, acts)):
        changed = pieces(before.ahead, after.ahead, SECTOR)
        assert len(changed) > 1
        for _ in range(12):
            some = set(draw.sample(changed, draw.randrange(len(changed))))
            path = Disk(after.database, mixed(before.ahead, after.ahead, some, SECTOR), before.mark).put(tmp_path / "cut")
            # sectors of a page that hold zeros anyway may be missing, and it is still whole
            assert opened(path) in (events, events[:-1])


@pytest.fixture
def moved(written: Path, intend: Intend) -> tuple[Disk, Disk, Disk, list[Event]]:
    """Before and after SQLite moves the write-ahead part into the file, and after the next event begins it anew; and all events."""
    with Ledger.open(written, signer=KEYS) as ledger:
        for number in range(6):
            ledger.note(f"{number}" * 1500)
        intend(ledger, 3)
        before = Disk.of(written)
        busy, frames, done = ledger._file._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        assert (busy, frames) == (0, done)
        after = Disk.of(written)
        intend(ledger, 3)
        return before, after, Disk.of(written), list(ledger.events())


def test_moving_the_write_ahead_part_into_the_file_may_stop_anywhere(tmp_path: Path, moved: tuple[Disk, Disk, Disk, list[Event]]) -> None:
    """The write-ahead part is on the disk before the first page of the file is written, and stays until the last one is."""
    before, after, _, events = moved
    assert before.ahead == after.ahead
    pages = pieces(before.database, after.database, PAGE)
    assert len(pages) >= 4
    draw = random.Random(12)
    subsets = [set(pages[:count]) for count in range(len(pages) + 1)]
    subsets += [set(draw.sample(pages, draw.randrange(len(pages)))) for _ in range(40)]
    for some in subsets:
        path = Disk(mixed(before.database, after.database, some, PAGE), before.ahead, after.mark).put(tmp_path / "cut")
        assert opened(path) == events[:-1]
    for _ in range(40):  # pages are torn, too
        sectors = pieces(before.database, after.database, SECTOR)
        torn = mixed(before.database, after.database, set(draw.sample(sectors, draw.randrange(len(sectors)))), SECTOR)
        path = Disk(torn, before.ahead, after.mark).put(tmp_path / "cut")
        assert opened(path) == events[:-1]


def test_beginning_the_write_ahead_part_anew_may_stop_anywhere(tmp_path: Path, moved: tuple[Disk, Disk, Disk, list[Event]]) -> None:
    """The first event after a move overwrites the old part from its beginning: old and new pieces stand side by side."""
    _, before, after, events = moved
    assert after.database == before.database
    assert struct.unpack(">I", after.ahead[:4]) == struct.unpack(">I", before.ahead[:4])
    assert after.ahead[:HEADER] != before.ahead[:HEADER], "another salt: old frames no longer count"
    changed = pieces(before.ahead, after.ahead, SECTOR)
    draw = random.Random(13)
    subsets = [set(changed[:count]) for count in range(len(changed) + 1)]
    subsets += [set(draw.sample(changed, draw.randrange(len(changed)))) for _ in range(60)]
    seen = set()
    for some in subsets:
        path = Disk(before.database, mixed(before.ahead, after.ahead, some, SECTOR), before.mark).put(tmp_path / "cut")
        found = opened(path)
        assert found in (events, events[:-1])
        seen.add(len(found))
    assert seen == {len(events), len(events) - 1}


def test_a_mark_that_was_never_written_to_the_disk_is_behind_and_no_more(written: Path, tmp_path: Path, intend: Intend) -> None:
    """It is not synchronised with each event; what was confirmed stands in the ledger itself."""
    mark = Disk.of(written).mark
    with Ledger.open(written, signer=KEYS) as ledger:
        intend(ledger, 3)
        now, events = Disk.of(written), list(ledger.events())
    for left in (mark, b"", b"\0" * len(mark)):
        assert opened(Disk(now.database, now.ahead, left).put(tmp_path / "cut")) == events


def writer(path: Path, name: str, times: int, confirmed: Path) -> None:
    """Opens, books, tells what was confirmed, closes; over and over, whoever else does."""
    said = os.open(confirmed, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in range(times):
        while True:
            try:
                with Ledger.open(path, signer=KEYS) as ledger:
                    ledger.note(f"{name} {number}")
                    os.write(said, f"{ledger.count_of_events} {ledger.head_hash}\n".encode())
                break
            except LedgerLocked:
                continue


def beside(act: Callable[[], None]) -> int:
    """Runs something in a child process that ends with 0 only if it returns."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            act()
            status = 0
        finally:
            os._exit(status)
    return child


@pytest.mark.parametrize("times", [8, pytest.param(60, marks=pytest.mark.journey)])
def test_processes_that_race_for_the_ledger_lose_no_event_and_fork_no_chain(written: Path, tmp_path: Path, times: int) -> None:
    """Two write in turn as they can, a third one is killed again and again; every event that was confirmed stands in one chain."""
    confirmed, names = tmp_path / "confirmed", ("one", "two")
    writers = [beside(partial(writer, written, name, times, confirmed)) for name in names]
    draw, killed = random.Random(14), 0
    while killed < times // 2:
        victim = beside(partial(writer, written, "victim", times, confirmed))
        time.sleep(draw.random() * 0.05)
        os.kill(victim, signal.SIGKILL)
        os.waitpid(victim, 0)
        killed += 1
    for child in writers:
        assert os.waitpid(child, 0)[1] == 0
    Ledger.open(written, signer=KEYS).close()  # whatever the last victim left written ahead
    _, events = audited(written)
    chain = {(event.seq, event.hash) for event in events}
    told = [(int(line.split()[0]), line.split()[1]) for line in confirmed.read_text().splitlines()]
    assert len(told) == len(set(told)) >= 2 * times
    assert set(told) <= chain
    notes = [event.payload["text"] for event in events if event.kind == "note"]
    for name in names:
        assert [text for text in notes if text.startswith(name)] == [f"{name} {number}" for number in range(times)]


def test_of_processes_that_race_to_begin_a_ledger_one_does(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"

    def begin() -> None:
        Ledger.create(path, signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="the bookshop").close()

    statuses = [os.waitpid(child, 0)[1] for child in [beside(begin) for _ in range(6)]]
    assert statuses.count(0) == 1
    assert len(opened(path)) == 1
