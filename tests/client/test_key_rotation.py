"""New keys in place of old ones: one file and one ledger that agree, wherever the process that changes them is killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import threading
import time
from pathlib import Path

import pytest

from client import key_rotation
from client.key_rotation import NEXT, own_keys, rotate
from client.keys import KEY_FILE, Keys, seal
from client.settings import ClientSettings
from shared.errors import LedgerError, LedgerLocked, PassportError, WrongKey
from shared.privacy.ledger import Ledger
from shared.privacy.signing import SigningPair, event_message, holds
from tests.client import ledger_home as home


@pytest.fixture
def books(tmp_path: Path) -> ClientSettings:
    return home.settle(tmp_path)


@pytest.fixture(scope="module")
def at_rest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("at-rest")
    home.settle(folder)
    return folder


def agree(settings: ClientSettings) -> Keys:
    """The keys there are; the ledger can be written with them, and nothing is left over."""
    keys = own_keys(settings)
    with Ledger.open(settings.ledger_path, signer=keys) as ledger:
        assert ledger.verify_key == keys.verify_key
        ledger.note("the key fits")
    folder = settings.at_home("keys")
    assert not (folder / NEXT).exists()
    assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
    return keys


def test_the_old_key_signs_the_new_one_and_the_new_one_signs_what_follows(books: ClientSettings) -> None:
    changed = rotate(books)
    agree(books)

    with Ledger.open(books.ledger_path, read_only=True) as ledger:
        genesis, key, note = ledger.events()
    assert (key.payload["old_verify_key"], key.payload["new_verify_key"]) == (changed.old.verify_key, changed.new.verify_key)
    assert holds(changed.old.verify_key, event_message(key.hash), key.signature or b"")
    assert holds(changed.new.verify_key, event_message(note.hash), note.signature or b"")
    assert not holds(changed.new.verify_key, event_message(genesis.hash), genesis.signature or b"")


def test_both_keys_are_new_and_the_old_private_halves_are_nowhere(books: ClientSettings) -> None:
    old = own_keys(books)
    secret = (books.at_home("keys") / KEY_FILE).read_text()
    sealed = seal(b"a passport", old.public("books").box_key)

    changed = rotate(books)

    assert changed.old == old.public("books")
    assert changed.old.box_key != changed.new.box_key
    assert own_keys(books).public("books") == changed.new
    with pytest.raises(PassportError, match="not sealed to this partner's key"):
        own_keys(books).open_sealed(sealed)
    left = [path.read_bytes() for path in books.at_home("").rglob("*") if path.is_file()]
    assert not any(part.encode() in content for part in secret.split('"') if len(part) == 64 for content in left)


def test_keys_can_be_changed_again_and_again(books: ClientSettings) -> None:
    seen = {own_keys(books).verify_key}
    for _ in range(3):
        seen.add(rotate(books).new.verify_key)
    assert len(seen) == 4
    agree(books)


def test_a_ledger_in_use_keeps_its_key(books: ClientSettings) -> None:
    before = own_keys(books).verify_key
    with Ledger.open(books.ledger_path, signer=own_keys(books)), pytest.raises(LedgerLocked):
        rotate(books)
    assert agree(books).verify_key == before


def test_a_ledger_of_somebody_else_is_left_alone(books: ClientSettings) -> None:
    Keys.write_new(books.at_home("keys") / KEY_FILE)
    before = home.files(books.ledger_path)["ledger.sqlite"]

    with pytest.raises(WrongKey):
        rotate(books)
    assert not (books.at_home("keys") / NEXT).exists()
    assert home.files(books.ledger_path)["ledger.sqlite"] == before


def test_without_a_ledger_there_is_nothing_to_change(books: ClientSettings) -> None:
    for path in books.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()
    before = own_keys(books).verify_key

    with pytest.raises(LedgerError, match="no ledger"):
        rotate(books)
    assert own_keys(books).verify_key == before


@pytest.mark.parametrize("broken", ["no ledger", "garbage", "another's"])
def test_where_the_ledger_cannot_say_which_key_counts_both_stay(books: ClientSettings, broken: str) -> None:
    following = books.at_home("keys") / NEXT
    Keys.write_new(following)
    for path in books.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()
    if broken == "garbage":
        books.ledger_path.write_bytes(b"\x00\xff" * 5000)
    if broken == "another's":
        stranger = SigningPair.generate()
        Ledger.create(books.ledger_path, signer=stranger, domain="books", ceiling_epsilon=8.0, delta=1e-5, set_by="x").close()
    before = following.read_bytes(), (books.at_home("keys") / KEY_FILE).read_bytes()

    own_keys(books)

    assert (following.read_bytes(), (books.at_home("keys") / KEY_FILE).read_bytes()) == before


def test_whoever_asks_for_the_keys_waits_for_a_rotation_that_is_under_way(books: ClientSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one who asks finds the new file before the event is written, and must not take it for a left-over."""
    asked: list[str] = []
    event = Ledger.rotate_key

    def slowly(ledger: Ledger, new: Keys) -> None:
        other = threading.Thread(target=lambda: asked.append(own_keys(books).verify_key))
        other.start()
        time.sleep(0.3)
        assert asked == []
        event(ledger, new)
        threads.append(other)

    threads: list[threading.Thread] = []
    monkeypatch.setattr(Ledger, "rotate_key", slowly)
    changed = rotate(books)
    threads[0].join(timeout=60)

    assert asked == [changed.new.verify_key]
    agree(books)


def test_who_never_gets_a_turn_is_told(books: ClientSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_rotation, "_PATIENCE_S", 0.1)
    handle = os.open(books.at_home("keys") / "partner.keys.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)

    with pytest.raises(LedgerLocked, match="changing the keys"):
        rotate(books)
    os.close(handle)
    rotate(books)


def kill_and_check(at_rest: Path, place: Path, *, rooms: tuple[str, ...], stride: int) -> tuple[int, set[str]]:
    """Kills a rotation at many lines; how often, and how it was found: ``untouched``, ``undone``, ``finished`` or ``done``."""
    before = own_keys(home.at(at_rest)).public("books")
    found = set()

    def check(place: Path, returned: bool) -> None:
        settings = home.at(place)
        left_over = (settings.at_home("keys") / NEXT).exists()
        with Ledger.open(settings.ledger_path, read_only=True) as ledger:
            changed = ledger.verify_key != before.verify_key
        assert changed or not returned, "a change that was confirmed is gone"
        keys = agree(settings).public("books")
        assert (keys.verify_key != before.verify_key) == (keys.box_key != before.box_key) == changed
        found.add({(0, 0): "untouched", (0, 1): "undone", (1, 1): "finished", (1, 0): "done"}[changed, left_over])
        rotate(settings)  # and the next change goes on from there

    return home.killed_everywhere(at_rest, place, lambda place: rotate(home.at(place)), check, rooms=rooms, stride=stride), found


def test_a_rotation_killed_at_some_lines_is_finished_or_undone_by_the_next_command(tmp_path: Path, at_rest: Path) -> None:
    times, _ = kill_and_check(at_rest, tmp_path / "killed", rooms=home.ROOMS, stride=61)
    assert times > 10


KEYS_CODE = tuple(f"{home.CLIENT}/{name}.py" for name in ("key_rotation", "durable_files"))


@pytest.mark.journey
@pytest.mark.parametrize(("rooms", "stride"), [(KEYS_CODE, 1), ((home.PRIVACY,), 47)])
def test_a_rotation_killed_at_any_line_is_finished_or_undone_by_the_next_command(
    tmp_path: Path, at_rest: Path, rooms: tuple[str, ...], stride: int
) -> None:
    times, found = kill_and_check(at_rest, tmp_path / "killed", rooms=rooms, stride=stride)
    assert times > 10
    assert found >= ({"untouched", "undone", "finished", "done"} if stride == 1 else {"undone", "finished"})


@pytest.mark.journey
def test_a_rotation_that_is_being_finished_can_be_killed_as_well(tmp_path: Path, at_rest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(at_rest, cut)
    with monkeypatch.context() as patched:
        patched.setattr(key_rotation, "_settle", lambda settings, folder: None)  # as if killed right after the event
        new = rotate(home.at(cut)).new

    def check(place: Path, returned: bool) -> None:
        assert agree(home.at(place)).verify_key == new.verify_key

    assert home.killed_everywhere(cut, tmp_path / "killed", lambda place: own_keys(home.at(place)), check, rooms=KEYS_CODE, stride=1) > 10
