"""A process is killed, or the disk is full, at every place of what happens a few times in a ledger's life: nothing is lost or half done."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import EmptyLedger, LedgerBroken, LedgerError, StorageError, WrongKey
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_file import LedgerFile
from shared.privacy.ledger_handover import hand_over, head_of
from shared.privacy.mechanism import Mechanism
from tests.shared.privacy.bookshop import KEYS, NEW_KEYS, audited, receipt_of_a_lost_ledger
from tests.shared.privacy.killing import NEVER, Step, in_child, killed_everywhere

Act = Callable[[Path], Step]
Check = Callable[[Path, bool], None]

NAME, AWAY = "ledger.sqlite", "handed-over.sqlite"
EVENTS, OLD_EVENTS = 5, 24


def release(ledger: Ledger) -> None:
    wide = Mechanism(kind="gaussian", sampling_rate=1.0, noise_multiplier=20.0, clip_norm=1.0, grid=0.0, dimension=1, steps=1)
    ledger.release(release_id="how many", purpose="count", mechanism=wide, config_hash="r" * 64)


def raise_ceiling(ledger: Ledger) -> None:
    ledger.raise_ceiling(12.0, raised_by="the bookshop", why="a second season")


def restart(place: Path) -> Ledger:
    return Ledger.restart(
        place / NAME, signer=KEYS, domain="books", ceiling_epsilon=12.0, delta=1e-5, set_by="the bookshop",
        booked_epsilon=8.0, booked_delta=1e-5, last_receipt=receipt_of_a_lost_ledger(2),
    )  # fmt: skip


def upgrade(place: Path) -> None:
    Ledger.upgrade(place / NAME, signer=KEYS, why="this release signs its ledgers")


def opened(act: Callable[[Ledger], object]) -> Act:
    """Opens the ledger first, so that only the act itself is cut off."""

    def prepare(place: Path) -> Step:
        ledger = Ledger.open(place / NAME, signer=KEYS)
        return lambda: act(ledger)

    return prepare


def after_release(place: Path, returned: bool) -> None:
    with Ledger.open(place / NAME, signer=KEYS) as ledger:
        there = ledger.count_of_events - EVENTS
        assert there in (0, 1)
        assert there == 1 or not returned, "a release that was confirmed is gone"
        assert (len(ledger.spent_events()), ledger.adaptive) == (2 + there, there == 1)
        release(ledger)  # the same one: debited once, whatever was cut off
        assert (ledger.count_of_events, len(ledger.spent_events())) == (EVENTS + 1, 3)


def after_raise(place: Path, returned: bool) -> None:
    with Ledger.open(place / NAME, signer=KEYS) as ledger:
        assert ledger.ceiling_epsilon in (12.0, *(() if returned else (8.0,)))
        assert (ledger.count_of_events, ledger.adaptive) == (EVENTS + (ledger.ceiling_epsilon == 12.0), ledger.ceiling_epsilon == 12.0)
        ledger.note("goes on")


def after_rotation(place: Path, returned: bool) -> None:
    found = []
    for key in (KEYS, NEW_KEYS):
        try:
            Ledger.open(place / NAME, signer=key).close()
            found.append(key)
        except WrongKey:
            continue
    assert len(found) == 1, "one key is in force, and only one"
    assert found == [NEW_KEYS] or not returned
    with Ledger.open(place / NAME, signer=found[0]) as ledger:
        assert ledger.count_of_events == EVENTS + (found == [NEW_KEYS])
        if found == [KEYS]:
            ledger.rotate_key(NEW_KEYS)
        ledger.note("goes on")


def after_upgrade(place: Path, returned: bool) -> None:
    with Ledger.open(place / NAME, read_only=True) as ledger:
        assert ledger.verify_key in (KEYS.verify_key, *(() if returned else (None,)))
        spent = ledger.epsilon_spent()
    upgrade(place)
    with Ledger.open(place / NAME, signer=KEYS) as ledger:
        assert (ledger.count_of_events, ledger.epsilon_spent()) == (OLD_EVENTS + 1, spent)
        ledger.note("goes on")


def after_restart(place: Path, returned: bool) -> None:
    if not (place / NAME).exists():
        assert not returned
        with pytest.raises(LedgerBroken, match="gone"):  # nobody forgets that something was lost here
            Ledger.create(place / NAME, signer=KEYS, domain="books", ceiling_epsilon=12.0, delta=1e-5, set_by="the bookshop")
        restart(place).close()
    with Ledger.open(place / NAME, signer=KEYS) as ledger:
        assert (ledger.count_of_events, ledger.count_of_intents, ledger.epsilon_spent()) == (1, 2, 8.0)
        ledger.note("goes on")


def after_hand_over(place: Path, returned: bool) -> None:
    away = place / AWAY
    assert away.exists() or not returned
    if not away.exists():
        hand_over(place / NAME, away, signer=KEYS)
    book, events = audited(away)
    file = LedgerFile.examine(away)
    head = head_of(file, book.domain)
    file.close()
    assert head is not None
    assert head.holds(KEYS.verify_key)
    assert (head.seq, head.hash, len(events)) == (EVENTS, events[-1].hash, EVENTS)
    with Ledger.open(place / NAME, signer=KEYS) as ledger:
        assert ledger.count_of_events == EVENTS
        ledger.note("goes on")


ACTS: dict[str, tuple[Act, Check]] = {
    "a release": (opened(release), after_release),
    "a raise": (opened(raise_ceiling), after_raise),
    "a new key": (opened(lambda ledger: ledger.rotate_key(NEW_KEYS)), after_rotation),
    "an upgrade": (lambda place: lambda: upgrade(place), after_upgrade),
    "a restart": (lambda place: lambda: restart(place).close(), after_restart),
    "a hand-over": (lambda place: lambda: hand_over(place / NAME, place / AWAY, signer=KEYS), after_hand_over),
}


@pytest.fixture
def at_rest(request: pytest.FixtureRequest, tmp_path: Path, written_once: Path) -> Callable[[str], Path]:
    """The folder as it is before an act: a ledger, one of format 1, or what is left of a lost one."""

    def make(name: str) -> Path:
        folder = tmp_path / "at rest"
        if name == "an upgrade":
            old: Path = request.getfixturevalue("old")
            folder.mkdir()
            for one in (old, old.with_name(old.name + ".lock")):
                one.rename(folder / one.name)
            return folder
        shutil.copytree(written_once, folder)
        if name == "a restart":
            (folder / NAME).unlink()
        return folder

    return make


def whole(check: Check) -> Check:
    """And afterwards every event of the ledger holds, signature by signature."""

    def act(place: Path, returned: bool) -> None:
        check(place, returned)
        assert audited(place / NAME)[1][-1].kind in ("note", "release")

    return act


@pytest.mark.parametrize("name", ACTS)
def test_a_process_killed_in_some_places_leaves_all_or_nothing(tmp_path: Path, at_rest: Callable[[str], Path], name: str) -> None:
    act, check = ACTS[name]
    assert killed_everywhere(tmp_path, at_rest(name), act, whole(check), stride=211) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTS)
def test_a_process_killed_at_every_place_leaves_all_or_nothing(tmp_path: Path, at_rest: Callable[[str], Path], name: str) -> None:
    act, check = ACTS[name]
    stride = 7 if name in ("an upgrade", "a hand-over") else 1
    times = killed_everywhere(tmp_path, at_rest(name), act, whole(check), stride=stride)
    print(f"{name}: killed {times} times")
    assert times > 60


def on_a_disk_of(place: Path, act: Act, limit: int) -> str:
    """What an act ends with where no file may grow beyond a number of bytes; after an error, more room lets it succeed."""
    said, saying = os.pipe()

    def run() -> None:
        step = act(place)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            step()
            os.write(saying, b"done")
        except StorageError:
            os.write(saying, b"half" if (place / AWAY).exists() else b"full")

    returned, _ = in_child(lambda: run, NEVER)
    os.close(saying)
    answer = os.read(said, 10).decode()
    os.close(said)
    assert returned
    return answer


@pytest.mark.parametrize("name", ACTS)
def test_a_disk_without_room_stops_it_and_loses_nothing(tmp_path: Path, at_rest: Callable[[str], Path], name: str) -> None:
    act, check = ACTS[name]
    place = at_rest(name)
    assert on_a_disk_of(place, act, 1000) == "full"
    assert not list(place.glob("*.new*")), "nothing half made is left"
    check(place, False)


@pytest.mark.journey
@pytest.mark.parametrize("name", ACTS)
def test_a_disk_that_is_full_after_any_number_of_bytes_loses_nothing(tmp_path: Path, at_rest: Callable[[str], Path], name: str) -> None:
    act, check = ACTS[name]
    rest, place, seen = at_rest(name), tmp_path / "place", set()
    for limit in range(0, 60_000, 1777):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(rest, place)
        answer = on_a_disk_of(place, act, limit)
        seen.add(answer)
        whole(check)(place, answer == "done")
    assert seen == {"full", "done"}


def test_what_was_refused_for_room_succeeds_in_the_same_process_when_there_is_some(written: Path) -> None:
    def run() -> None:
        with Ledger.open(written, signer=KEYS) as ledger:
            _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            before = (ledger.head_hash, ledger.ceiling_epsilon, ledger.verify_key, ledger.adaptive, ledger.epsilon_spent())
            for act in (release, raise_ceiling, lambda ledger: ledger.rotate_key(NEW_KEYS)):
                resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))
                with pytest.raises(StorageError):
                    act(ledger)
                now = (ledger.head_hash, ledger.ceiling_epsilon, ledger.verify_key, ledger.adaptive, ledger.epsilon_spent())
                assert now == before
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            release(ledger)
            raise_ceiling(ledger)
            ledger.rotate_key(NEW_KEYS)
            ledger.note("by the new key")

    returned, _ = in_child(lambda: run, NEVER)
    assert returned
    book, events = audited(written)
    assert [event.kind for event in events[EVENTS:]] == ["release", "ceiling", "key", "note"]
    assert book.verify_key == NEW_KEYS.verify_key


def test_a_clock_that_jumps_back_changes_nothing_but_the_times(written: Path, forge: Callable[..., None], intend: Any) -> None:
    """An event was written with the clock years ahead; those after it are earlier, and still come after it."""
    forge(written, "note", {"text": "written in 2031"})
    with Ledger.open(written, signer=KEYS) as ledger:
        intend(ledger, 3)
        release(ledger)
        raise_ceiling(ledger)
        spent = ledger.epsilon_spent()
    with Ledger.open(written, signer=KEYS) as ledger:
        assert (ledger.count_of_intents, ledger.epsilon_spent()) == (3, spent)
        assert [event.seq for event in ledger.events()] == list(range(1, EVENTS + 5))
        assert [event.seq for event in ledger.newest_first()] == list(range(EVENTS + 4, 0, -1))
    _, events = audited(written)
    times = [event.time_utc for event in events]
    assert times[EVENTS] == "2031-01-01T00:00:00.000000Z" > max(times[EVENTS + 1 :])
    head = hand_over(written, written.with_name(AWAY), signer=KEYS)
    assert (head.seq, head.holds(KEYS.verify_key)) == (EVENTS + 4, True)


def test_an_empty_file_that_a_crash_left_is_no_ledger_and_is_not_filled(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"")
    with pytest.raises(EmptyLedger):
        Ledger.open(tmp_path / NAME, signer=KEYS)
    with pytest.raises(LedgerError, match="already"):
        Ledger.create(tmp_path / NAME, signer=KEYS, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="the bookshop")
    assert (tmp_path / NAME).read_bytes() == b""
