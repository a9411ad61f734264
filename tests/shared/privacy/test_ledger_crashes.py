"""A process is killed at every place, two processes want to write, the disk is full: nothing that was confirmed is ever lost.

What else a life holds is killed in `test_ledger_crashes_of_a_life`, and what a power cut leaves is in `test_ledger_power_cuts`.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import LedgerError, LedgerLocked, StorageError
from shared.privacy.ledger import Ledger, read_events
from tests.shared.privacy.bookshop import KEYS
from tests.shared.privacy.killing import NEVER, Step, in_child, killed_everywhere

Make = Callable[..., Ledger]
Act = Callable[..., None]
Intend = Callable[..., int]


@pytest.fixture
def an_intent_is_whole_or_absent(intend: Intend) -> Callable[[Path, bool], None]:
    def check(place: Path, returned: bool) -> None:
        with Ledger.open(place / "ledger.sqlite", signer=KEYS) as ledger:
            there = ledger.count_of_intents
            assert there in (2, 3)
            assert there == 3 or not returned, "an intent that was confirmed is gone"
            assert len(ledger.spent_events()) == there
            assert intend(ledger, 3) == there - 1  # the ledger goes on, and knows the attempt that was lost

    return check


def test_a_process_killed_between_opening_and_booking_hides_nothing(
    tmp_path: Path, written_once: Path, intend: Intend, an_intent_is_whole_or_absent: Callable[[Path, bool], None]
) -> None:
    def prepare(place: Path) -> Step:
        return lambda: intend(Ledger.open(place / "ledger.sqlite", signer=KEYS), 3)

    assert killed_everywhere(tmp_path, written_once, prepare, an_intent_is_whole_or_absent, stride=41) > 10


@pytest.mark.journey
def test_a_process_killed_anywhere_while_it_books_an_intent_hides_nothing(
    tmp_path: Path, written_once: Path, intend: Intend, an_intent_is_whole_or_absent: Callable[[Path, bool], None]
) -> None:
    def prepare(place: Path) -> Step:
        ledger = Ledger.open(place / "ledger.sqlite", signer=KEYS)
        return lambda: intend(ledger, 3)

    assert killed_everywhere(tmp_path, written_once, prepare, an_intent_is_whole_or_absent) > 100


@pytest.mark.journey
def test_a_process_killed_anywhere_while_it_commits_loses_no_commit(tmp_path: Path, written_once: Path) -> None:
    def prepare(place: Path) -> Step:
        ledger = Ledger.open(place / "ledger.sqlite", signer=KEYS)
        return lambda: ledger.commit(run_id="autumn", round=2, attempt=1, payload_sha256="e" * 64)

    def check(place: Path, returned: bool) -> None:
        with Ledger.open(place / "ledger.sqlite", signer=KEYS) as ledger:
            assert ledger.count_of_intents == 2
            assert ledger.committed("autumn", 2) in ("e" * 64, *(() if returned else (None,)))
            ledger.commit(run_id="autumn", round=2, attempt=1, payload_sha256="e" * 64)

    assert killed_everywhere(tmp_path, written_once, prepare, check, stride=2) > 50


@pytest.mark.journey
def test_a_process_killed_while_it_admits_a_run_reserves_all_or_nothing(
    tmp_path: Path, new_ledger: Make, path: Path, admit: Act, intend: Intend
) -> None:
    at_rest = tmp_path / "at rest"
    at_rest.mkdir()
    new_ledger().close()
    for name in (path, path.with_name("ledger.sqlite.lock")):
        name.rename(at_rest / name.name)

    def prepare(place: Path) -> Step:
        ledger = Ledger.open(place / "ledger.sqlite", signer=KEYS)
        return lambda: admit(ledger)

    def check(place: Path, returned: bool) -> None:
        with Ledger.open(place / "ledger.sqlite", signer=KEYS) as ledger:
            assert ledger.intents_left("autumn") in (4, *(() if returned else (0,)))
            admit(ledger)
            intend(ledger, 1)
            assert [event.kind for event in ledger.events()] == ["genesis", "schedule", "intent"]

    assert killed_everywhere(tmp_path, at_rest, prepare, check, stride=37) > 5


@pytest.mark.journey
def test_a_ledger_whose_making_was_killed_is_whole_or_can_be_made(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    def make(place: Path) -> Ledger:
        return Ledger.create(place / "ledger.sqlite", signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="the bookshop")

    def check(place: Path, returned: bool) -> None:
        if not (place / "ledger.sqlite").exists():
            assert not returned
            make(place).close()
        with Ledger.open(place / "ledger.sqlite", signer=KEYS) as ledger:
            assert (ledger.domain, ledger.ceiling_epsilon, ledger.count_of_intents) == ("books", 8.0, 0)

    assert killed_everywhere(tmp_path, empty, lambda place: lambda: make(place), check, stride=37) > 10


def test_a_write_ahead_file_cut_at_any_byte_leaves_the_event_whole_or_absent(tmp_path: Path, written: Path, intend: Intend) -> None:
    mark = written.with_name("ledger.sqlite.lock").read_bytes()
    with Ledger.open(written, signer=KEYS) as ledger:
        intend(ledger, 3)
        database = written.read_bytes()
        ahead = written.with_name("ledger.sqlite-wal").read_bytes()
    seen = set()
    for length in [*range(0, len(ahead), 97), len(ahead)]:
        torn = tmp_path / f"torn-{length}" / "ledger.sqlite"
        torn.parent.mkdir()
        torn.write_bytes(database)
        torn.with_name("ledger.sqlite-wal").write_bytes(ahead[:length])
        torn.with_name("ledger.sqlite.lock").write_bytes(mark)  # the mark follows the event
        with Ledger.open(torn, signer=KEYS) as ledger:
            seen.add(ledger.count_of_intents)
    assert seen == {2, 3}


def test_a_confirmed_event_whose_write_ahead_part_is_missing_is_missed(tmp_path: Path, written: Path, intend: Intend) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        intend(ledger, 3)
        bare = tmp_path / "bare"
        bare.mkdir()
        for name in ("ledger.sqlite", "ledger.sqlite.lock"):
            shutil.copy(tmp_path / name, bare / name)
    with pytest.raises(LedgerError, match="rolled back"):
        Ledger.open(bare / "ledger.sqlite", signer=KEYS)


HOLDER = """
import sys
from pathlib import Path
from shared.privacy.ledger import Ledger
from shared.privacy.signing import SigningPair
ledger = Ledger.open(Path(sys.argv[1]), signer=SigningPair(b"bookshop" * 4))
print("open", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_one_ends_however_it_ends(written: Path, intend: Intend, repository: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), str(written)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=repository) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with pytest.raises(LedgerLocked, match="another process"):
            Ledger.open(written, signer=KEYS)
        assert len(read_events(written)) == 5  # anybody may read
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    with Ledger.open(written, signer=KEYS) as ledger:
        intend(ledger, 3)
        second = subprocess.run(command, input="", capture_output=True, text=True, cwd=repository, check=False)
        assert "LedgerLocked" in second.stderr


def test_a_second_handle_in_the_same_process_is_refused_under_any_name_of_the_file(written: Path, tmp_path: Path) -> None:
    (tmp_path / "link.sqlite").symlink_to(written)
    with Ledger.open(written, signer=KEYS):
        for name in (written, tmp_path / "link.sqlite"):
            with pytest.raises(LedgerLocked):
                Ledger.open(name, signer=KEYS)
    Ledger.open(tmp_path / "link.sqlite", signer=KEYS).close()


def test_a_forked_child_neither_writes_nor_keeps_the_lock(written: Path, intend: Intend) -> None:
    ledger = Ledger.open(written, signer=KEYS)
    (asked, ask), (heard, tell) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with pytest.raises(LedgerError, match="another process"):
                intend(ledger, 3)
            os.write(tell, b"refused")
            os.close(ask)
            os.read(asked, 1)  # lives on for as long as the parent wants
        finally:
            os._exit(0)
    os.close(tell)
    assert os.read(heard, 7) == b"refused"
    assert intend(ledger, 3) == 1
    ledger.close()
    Ledger.open(written, signer=KEYS).close()
    for end in (ask, asked, heard):
        os.close(end)
    os.waitpid(child, 0)


def test_an_event_is_on_disk_before_it_is_confirmed(written: Path) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        ask = ledger._file._connection.execute
        assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ask("PRAGMA synchronous").fetchone() == (2,)  # FULL: the write-ahead file is synchronised at each commit


def test_a_full_disk_stops_the_run_and_loses_nothing(written: Path, intend: Intend) -> None:
    """The operating system refuses to let the files of this child grow, then allows it again."""

    def fill_the_disk() -> None:
        with Ledger.open(written, signer=KEYS) as ledger:
            before = (ledger.count_of_intents, ledger.head_hash, ledger.spent_events())
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, most))
            for _ in range(2):
                with pytest.raises(StorageError, match="Free space"):
                    intend(ledger, 3)
            assert (ledger.count_of_intents, ledger.head_hash, ledger.spent_events()) == before
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            assert intend(ledger, 3) == 1

    returned, _ = in_child(lambda: fill_the_disk, NEVER)
    assert returned
    with Ledger.open(written, signer=KEYS) as ledger:
        assert ledger.count_of_intents == 3


def fill(ledger: Ledger) -> None:
    for _ in range(100):
        ledger.note("x" * 2000)


def test_a_database_without_room_is_a_storage_error_and_loses_nothing(written: Path, intend: Intend) -> None:
    with Ledger.open(written, signer=KEYS) as ledger:
        (pages,) = ledger._file._connection.execute("PRAGMA page_count").fetchone()
        ledger._file._connection.execute(f"PRAGMA max_page_count={pages}")
        with pytest.raises(StorageError, match="writing an event"):
            fill(ledger)
        notes = [event for event in ledger.events() if event.kind == "note"]
    assert len(notes) < 100
    with Ledger.open(written, signer=KEYS) as ledger:
        assert [event for event in ledger.events() if event.kind == "note"] == notes
        intend(ledger, 3)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError):
        Ledger.create(tmp_path / "missing" / "ledger.sqlite", signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="x")
