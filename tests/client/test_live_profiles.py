"""What was observed since the preparation: durable, bounded, safe for two processes, and gone when its user is."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from client.live_profiles import DISMISSED, FILE, INTERACTION, LIKED, ForgottenUser, LiveProfiles
from client.register import Register
from client.suppression import Marker
from shared.errors import PassportError, StateError, StorageError, UsageError

KEY = b"k" * 32
NOW = 1_700_000_000


Opened = Callable[[Path], LiveProfiles]


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens a folder's observations anew, as another process would."""
    every: list[LiveProfiles] = []

    def one(folder: Path) -> LiveProfiles:
        every.append(LiveProfiles(folder / FILE, key=KEY, register=folder / "register.sqlite"))
        return every[-1]

    yield one
    for each in every:
        each.close()


@pytest.fixture
def live(tmp_path: Path, opened: Opened) -> LiveProfiles:
    return opened(tmp_path)


def forgotten(folder: Path, user: str) -> None:
    """As the first step of an erasure does it."""
    with Register(folder / "register.sqlite", Marker(KEY)) as register:
        register.mark(register.marker.users([user]), [], at=NOW)


def test_what_was_observed_is_read_in_the_order_of_time_by_this_process_and_the_next(
    live: LiveProfiles, tmp_path: Path, opened: Opened
) -> None:
    assert live.observe("ann", "b2", LIKED, at=NOW + 1)
    assert live.observe("ann", "b1", INTERACTION, at=NOW)
    assert live.observe("ann", "b3", DISMISSED, at=NOW + 2)
    assert live.observe("bob", "b1", LIKED, at=NOW)

    for one in (live, opened(tmp_path)):
        seen = one.of_user("ann")
        assert seen.items == ("b1", "b2", "b3")
        assert seen.kinds == (INTERACTION, LIKED, DISMISSED)
        assert seen.signs.tolist() == [1, 1, -1]
        assert seen.times == (NOW, NOW + 1, NOW + 2)
        assert one.of_user("bob").items == ("b1",)
        assert len(one.of_user("eve")) == 0


def test_the_same_observation_twice_is_one(live: LiveProfiles) -> None:
    assert live.observe("ann", "b1", LIKED, at=NOW)
    assert not live.observe("ann", "b1", LIKED, at=NOW)
    assert live.observe("ann", "b1", DISMISSED, at=NOW)

    assert live.of_user("ann").kinds == (LIKED, DISMISSED)


def test_reading_makes_no_file_and_the_file_is_its_owners_alone(live: LiveProfiles, tmp_path: Path) -> None:
    live.of_user("ann")
    live.links_of("ann")
    live.pseudonyms()
    live.forget(Marker(KEY).users(["ann"]))
    assert list(tmp_path.iterdir()) == []

    live.observe("ann", "b1", LIKED)

    files = sorted(tmp_path.iterdir())
    assert {path.name for path in files} >= {FILE}
    assert [oct(path.stat().st_mode & 0o777) for path in files] == ["0o600"] * len(files)


def test_no_id_of_a_user_is_in_the_file(live: LiveProfiles, tmp_path: Path) -> None:
    live.observe("ann@shop.example", "b1", LIKED)
    live.close()

    assert b"ann@shop" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_links_that_a_service_was_told_of_are_read_back_and_one_token_is_one_users(live: LiveProfiles) -> None:
    live.check_link("ann", "books", "token-1")
    assert live.links_of("ann") == {}
    assert live.link("ann", "books", "token-1")
    assert not live.link("ann", "books", "token-1")
    assert live.link("ann", "films", "token-2")
    assert live.link("ann", "books", "token-3")

    assert live.links_of("ann") == {"books": "token-3", "films": "token-2"}
    assert live.links_of("bob") == {}
    with pytest.raises(UsageError, match="another user's"):
        live.link("bob", "books", "token-3")
    live.link("bob", "books", "token-1")  # ann no longer has it


def test_a_forgotten_user_leaves_no_byte_and_nothing_of_theirs_is_taken_again(live: LiveProfiles, tmp_path: Path, opened: Opened) -> None:
    for at in range(50):
        live.observe("ann", f"item-of-ann-{at}", LIKED, at=NOW + at)
    live.link("ann", "books", "token-of-ann")
    live.observe("bob", "b1", LIKED, at=NOW)
    reading = opened(tmp_path)
    assert len(reading.of_user("ann")) == 50

    forgotten(tmp_path, "ann")
    live.forget(Marker(KEY).users(["ann"]))

    for what in (lambda: live.observe("ann", "b1", LIKED), lambda: reading.link("ann", "books", "token-of-ann")):
        with pytest.raises(ForgottenUser):
            what()
    assert len(reading.of_user("ann")) == 0
    assert reading.of_user("bob").items == ("b1",)
    assert reading.pseudonyms().tolist() == Marker(KEY).users(["bob"]).tolist()
    held = b"".join(path.read_bytes() for path in tmp_path.glob(f"{FILE}*"))
    assert b"of-ann" not in held
    assert bytes(Marker(KEY).users(["ann"])[0]) not in held


def test_the_bounds_hold_and_the_oldest_goes_first(live: LiveProfiles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.live_profiles.MOST_OF_A_USER", 3)
    monkeypatch.setattr("client.live_profiles.MOST", 5)
    for at in range(10):
        live.observe("ann", f"a{at}", LIKED, at=NOW + at)
    assert live.of_user("ann").items == ("a7", "a8", "a9")

    for at in range(4):
        live.observe(f"user-{at}", "b", LIKED, at=NOW)

    assert live.of_user("ann").items == ("a9",)  # of the last five observations
    assert len(live.pseudonyms()) == 5


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (("", "b1", LIKED), "user"),
        (("  ", "b1", LIKED), "user"),
        (("x" * 513, "b1", LIKED), "user"),
        (("ann\ud800", "b1", LIKED), "user"),
        (("ann", "", LIKED), "item"),
        (("ann", "b\0", LIKED), "item"),
        (("ann", "b1", "adored"), "kind"),
    ],
)
def test_what_cannot_be_is_refused_by_the_name_of_its_field(live: LiveProfiles, call: tuple[str, str, str], field: str) -> None:
    with pytest.raises(UsageError, match=f"'{field}'") as caught:
        live.observe(*call)
    assert "adored" not in str(caught.value)
    assert "xxx" not in str(caught.value)


def test_times_that_cannot_be_and_links_that_are_none_are_refused(live: LiveProfiles) -> None:
    for at in (-1, int(time.time()) + 7200):
        with pytest.raises(UsageError, match="'at'"):
            live.observe("ann", "b1", LIKED, at=at)
    with pytest.raises(UsageError, match="'link_id'"):
        live.link("ann", "books", "a token")
    with pytest.raises(PassportError, match="partner's name"):
        live.link("ann", "../books", "token")


def test_another_file_is_not_taken_for_it_and_stays_as_it_is(tmp_path: Path, live: LiveProfiles) -> None:
    other = sqlite3.connect(tmp_path / FILE)
    other.execute("CREATE TABLE theirs (x)")
    other.close()
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(StateError, match="another version"):
        live.observe("ann", "b1", LIKED)
    assert (tmp_path / FILE).read_bytes() == before

    (tmp_path / FILE).write_bytes(b"not a database at all, but long enough to be looked at" * 40)
    with pytest.raises(StateError, match="damaged"):
        live.of_user("ann")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_said_and_mended(tmp_path: Path, opened: Opened) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(StorageError):
        opened(closed).observe("ann", "b1", LIKED)


WRITER = """
import sys
from pathlib import Path
from client.live_profiles import FILE, LIKED, LiveProfiles
folder, user, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
live = LiveProfiles(folder / FILE, key=b"k" * 32, register=folder / "register.sqlite")
for at in range(count):
    live.observe(user, f"i{at}", LIKED, at=1_700_000_000 + at)
    print(at, flush=True)
"""


def writer(folder: Path, user: str, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(folder), user, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def test_two_processes_write_at_once_from_the_first_moment_on_and_nothing_is_lost(tmp_path: Path, opened: Opened) -> None:
    both = [writer(tmp_path, user, 60) for user in ("ann", "bob")]
    assert [one.communicate(timeout=120)[0].count("\n") for one in both] == [60, 60]
    assert [one.returncode for one in both] == [0, 0]

    assert [len(opened(tmp_path).of_user(user)) for user in ("ann", "bob")] == [60, 60]


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path, opened: Opened) -> None:
    with writer(tmp_path, "ann", 400) as process:
        assert process.stdout is not None
        acknowledged = next(int(line) for line in process.stdout if int(line) == 40)
        process.send_signal(signal.SIGKILL)
        acknowledged += len(process.stdout.read().splitlines())

    kept = opened(tmp_path)
    assert len(kept.of_user("ann")) in (acknowledged + 1, acknowledged + 2)  # the last may be on the disk and not yet said
    assert kept.of_user("ann").items[: acknowledged + 1] == tuple(f"i{at}" for at in range(acknowledged + 1))
    assert kept.observe("ann", "after", LIKED)


def test_a_batch_of_users_is_read_in_the_order_that_was_asked_for(live: LiveProfiles) -> None:
    users = [f"u{n}" for n in range(30)]
    for at, user in enumerate(users):
        live.observe(user, f"i{at}", LIKED)
    asked = Marker(KEY).users([*reversed(users), "nobody"])

    found = live.of_pseudonyms(asked)

    assert [one.items for one in found] == [*((f"i{at}",) for at in reversed(range(30))), ()]
    assert isinstance(found[0].signs, np.ndarray)
