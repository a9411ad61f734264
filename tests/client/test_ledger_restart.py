"""A ledger is lost, and the domain begins again: the whole old ceiling counts as spent, and nothing of the old files is deleted."""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from client.key_rotation import own_keys, rotate
from client.keys import KEY_FILE, Keys
from client.ledger_life import create, raise_ceiling
from client.ledger_lookup import check_last_receipt
from client.ledger_loss import remains_of
from client.ledger_restart import Restarted, restart
from client.settings import ClientSettings
from shared.errors import ForeignReceipts, LedgerError, LedgerLocked, NewerLedger, UsageError
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.receipts import SignedReceipt
from tests.client import ledger_home as home

Lose = Callable[[ClientSettings], None]


@pytest.fixture
def books(tmp_path: Path) -> ClientSettings:
    settings = home.settle(tmp_path)
    home.admit(settings)
    return settings


def again(settings: ClientSettings, receipt: SignedReceipt | None, booked: float | None = 8.0, epsilon: float = 12.0) -> Restarted:
    return restart(settings, receipt, booked_epsilon=booked, epsilon=epsilon, by="A. Officer", why="the disk died")


def remove(settings: ClientSettings) -> None:
    for path in settings.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()


def cut_short(settings: ClientSettings) -> None:
    settings.ledger_path.write_bytes(settings.ledger_path.read_bytes()[:3000])


def empty(settings: ClientSettings) -> None:
    settings.ledger_path.write_bytes(b"")


def garble(settings: ClientSettings) -> None:
    settings.ledger_path.write_bytes(b"\x00\xff" * 5000)


def edit(settings: ClientSettings) -> None:
    """One byte of an event: the file stays a database, and the chain breaks."""
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)):
        pass
    data = settings.ledger_path.read_bytes()
    at = data.index(b"the bookshop")
    settings.ledger_path.write_bytes(data[:at] + b"T" + data[at + 1 :])


@pytest.mark.parametrize("lose", [remove, cut_short, empty, garble, edit])
def test_a_lost_ledger_counts_as_spent_up_to_its_ceiling(books: ClientSettings, lose: Lose) -> None:
    receipt = home.answer(books, 1)
    lose(books)

    made = again(books, receipt)

    assert (made.booked_epsilon, made.booked_delta, made.ceiling_epsilon, made.intents) == (8.0, 1e-5, 12.0, 1)
    with Ledger.open(books.ledger_path, signer=own_keys(books)) as ledger:
        assert (ledger.booked_epsilon, ledger.epsilon_spent(), ledger.ceiling_epsilon) == (8.0, 8.0, 12.0)
        assert ledger.claimed_delta == 2e-5  # basic composition: the deltas add up as well
        check_last_receipt(ledger, receipt.to_json())
    (genesis,) = read_events(books.ledger_path)
    assert genesis.payload["last_receipt"] == receipt.to_json()
    assert genesis.payload["set_by"] == "A. Officer: the disk died"
    assert books.ledger_path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("lose", [cut_short, empty, garble, edit])
def test_remains_are_moved_aside_and_kept_byte_for_byte(books: ClientSettings, lose: Lose) -> None:
    lose(books)
    before = books.ledger_path.read_bytes()

    made = again(books, None)

    assert made.aside[0] == books.ledger_path.with_name("ledger.sqlite.lost-1")
    assert made.aside[0].read_bytes() == before
    assert made.aside[-1].name == "ledger.sqlite.lost-1.lock"


def test_a_backup_that_is_older_than_the_receipt_is_lost(books: ClientSettings) -> None:
    """The mark was restored together with the ledger, as a backup of a whole machine does: only the receipt can tell."""
    home.answer(books, 1)
    backup = home.files(books.ledger_path)
    receipt = home.answer(books, 2)
    remove(books)
    for name, data in backup.items():
        (books.ledger_path.parent / name).write_bytes(data)

    with pytest.raises(LedgerError, match=r"it is intact\n"):
        again(books, None)
    made = again(books, receipt, booked=None)  # the remains say what their ceiling was

    assert (made.booked_epsilon, made.intents) == (8.0, 2)
    assert [event.kind for event in read_events(made.aside[0])] == ["genesis", "schedule", "intent", "commit"]


def test_a_backup_that_is_older_than_its_mark_is_lost_without_any_receipt(books: ClientSettings) -> None:
    backup = home.files(books.ledger_path)
    home.answer(books, 1)
    home.put_back(books.ledger_path, backup)

    assert "rolled back" in again(books, None, booked=None).lost


def test_an_intact_ledger_is_never_replaced(books: ClientSettings) -> None:
    receipt = home.answer(books, 1)
    home.answer(books, 2)
    before = read_events(books.ledger_path)

    for cited in (receipt, None):
        with pytest.raises(LedgerError, match="not lost"):
            again(books, cited)
    assert read_events(books.ledger_path) == before
    assert remains_of(books.ledger_path) == []


def test_an_intact_ledger_is_not_replaced_for_a_receipt_that_somebody_else_signed(books: ClientSettings, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    stranger = home.settle(other)
    home.admit(stranger)

    with pytest.raises(ForeignReceipts):
        again(books, home.answer(stranger, 1))


def test_a_receipt_of_an_earlier_key_still_counts(books: ClientSettings) -> None:
    receipt = home.answer(books, 1)
    rotate(books)

    with pytest.raises(LedgerError, match="not lost"):
        again(books, receipt)


def test_a_domain_that_began_again_is_not_begun_again_with_the_same_receipt(books: ClientSettings) -> None:
    receipt = home.answer(books, 1)
    remove(books)
    again(books, receipt)

    with pytest.raises(LedgerError, match="not lost"):
        again(books, receipt, booked=12.0, epsilon=20.0)


def test_a_second_loss_books_the_first_as_well(books: ClientSettings) -> None:
    for booked, epsilon in ((8.0, 12.0), (12.0, 20.0)):
        garble(books)
        made = again(books, None, booked=booked, epsilon=epsilon)
    assert [path.name for path in remains_of(books.ledger_path)] == ["ledger.sqlite.lost-1", "ledger.sqlite.lost-2"]
    assert (made.booked_epsilon, made.ceiling_epsilon) == (12.0, 20.0)


def test_a_second_loss_that_leaves_a_readable_ledger_books_both_deltas(books: ClientSettings) -> None:
    garble(books)
    again(books, None)
    backup = home.files(books.ledger_path)
    home.admit(books)
    home.put_back(books.ledger_path, backup)

    made = again(books, None, booked=None, epsilon=20.0)

    assert (made.booked_epsilon, made.booked_delta) == (12.0, 2e-5)
    assert made.claimed_delta == pytest.approx(3e-5)


@pytest.mark.parametrize(("booked", "epsilon", "why"), [(7.9, 12.0, "partner.toml"), (8.0, 8.0, "not above"), (12.0, 12.0, "not above")])
def test_booking_less_than_is_known_is_refused_and_moves_nothing(books: ClientSettings, booked: float, epsilon: float, why: str) -> None:
    garble(books)

    with pytest.raises(LedgerError, match=why):
        again(books, None, booked=booked, epsilon=epsilon)
    assert remains_of(books.ledger_path) == []
    assert books.ledger_path.read_bytes() == b"\x00\xff" * 5000


def test_a_raised_ceiling_that_remains_show_is_booked(books: ClientSettings) -> None:
    raise_ceiling(books, 10.0, by="A. Officer", why="a second season")
    backup = home.files(books.ledger_path)
    home.answer(books, 1)
    home.put_back(books.ledger_path, backup)

    with pytest.raises(LedgerError, match="the ceiling that its remains show: 10"):
        again(books, None, booked=8.0)
    assert again(books, None, booked=None).booked_epsilon == 10.0


def test_what_the_receipt_says_was_spent_is_booked(books: ClientSettings) -> None:
    spent = SignedReceipt.signed(
        own_keys(books), domain="books", count_of_intents=9, head_hash="1" * 64, payload_sha256="2" * 64, mechanism="{}", epsilon_spent=9.5
    )
    remove(books)

    with pytest.raises(LedgerError, match=r"receipt says was spent: 9\.5"):
        again(books, spent)


def test_without_remains_the_lost_ceiling_has_to_be_named(books: ClientSettings) -> None:
    remove(books)

    with pytest.raises(UsageError, match="does not say what its ceiling was"):
        again(books, None, booked=None)


def test_a_ledger_whose_key_is_gone_is_lost(books: ClientSettings) -> None:
    receipt = home.answer(books, 1)
    (books.at_home("keys") / KEY_FILE).unlink()

    made = again(books, receipt, booked=None)

    assert "key is gone" in made.lost
    assert not made.known_key
    assert made.verify_key == own_keys(books).verify_key != receipt.verify_key


def test_a_ledger_of_a_newer_format_is_not_lost(books: ClientSettings) -> None:
    with sqlite3.connect(books.ledger_path) as database:
        database.execute("PRAGMA user_version=3")
    database.close()

    with pytest.raises(NewerLedger):
        again(books, None)


def test_a_ledger_of_the_old_format_is_not_lost(books: ClientSettings) -> None:
    remove(books)
    home.old_format(books.ledger_path)

    with pytest.raises(LedgerError, match="format 1"):
        again(books, None)


def test_a_ledger_that_a_process_holds_is_not_lost(books: ClientSettings) -> None:
    with Ledger.open(books.ledger_path, signer=own_keys(books)), pytest.raises(LedgerLocked):
        again(books, None)


def test_remains_that_a_process_holds_are_not_moved(books: ClientSettings) -> None:
    with Ledger.open(books.ledger_path, signer=own_keys(books)):
        garble(books)
        with pytest.raises(LedgerLocked):
            again(books, None)
    assert remains_of(books.ledger_path) == []
    again(books, None)


def test_a_folder_in_place_of_the_ledger_is_left_alone(books: ClientSettings) -> None:
    remove(books)
    books.ledger_path.mkdir()

    with pytest.raises(LedgerError, match="not a file"):
        again(books, None)
    assert books.ledger_path.is_dir()


def test_a_link_in_place_of_the_ledger_stays_a_link(books: ClientSettings, tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    remove(books)
    books.ledger_path.symlink_to(real / "books.sqlite")
    (real / "books.sqlite").write_bytes(b"no ledger")

    again(books, None)

    assert books.ledger_path.is_symlink()
    assert (real / "books.sqlite.lost-1").read_bytes() == b"no ledger"


def test_after_a_loss_no_ledger_is_created_as_if_nothing_had_been_spent(books: ClientSettings) -> None:
    remove(books)
    books.ledger_path.with_name("ledger.sqlite.lost-1").write_bytes(b"remains")

    with pytest.raises(LedgerError, match="was lost before"):
        create(books)


def test_of_two_who_begin_again_at_once_one_does(books: ClientSettings) -> None:
    garble(books)
    said: list[str] = []

    def one() -> None:
        try:
            again(books, None)
            said.append("begun")
        except LedgerError as error:
            said.append(error.what)

    both = [threading.Thread(target=one) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(timeout=60)

    assert sorted(said) == ["begun", "the ledger is not lost: it is intact"]
    assert len(remains_of(books.ledger_path)) == 1


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SignedReceipt]:
    """A ledger cut short, with what stands beside it."""
    folder = tmp_path_factory.mktemp("broken")
    settings = home.settle(folder)
    home.admit(settings)
    receipt = home.answer(settings, 1)
    cut_short(settings)
    settings.ledger_path.with_name("ledger.sqlite-wal").write_bytes(b"the write-ahead part")
    return folder, receipt


def kill_and_check(
    broken: tuple[Path, SignedReceipt], place: Path, *, rooms: tuple[str, ...], stride: int
) -> tuple[int, set[tuple[bool, int]]]:
    """Kills a restart at many lines; how often, and what was found: whether there was a ledger, and how many pieces lay aside."""
    at_rest, receipt = broken
    old = home.files(home.at(at_rest).ledger_path)
    found = set()

    def check(place: Path, returned: bool) -> None:
        settings = home.at(place)
        whole = settings.ledger_path.exists() and settings.ledger_path.read_bytes() != old["ledger.sqlite"]
        aside = list(settings.ledger_path.parent.glob("ledger.sqlite.lost-*"))
        found.add((whole, len(aside)))
        assert whole or not returned
        if not whole:
            with pytest.raises(LedgerError):
                create(settings)  # never a ledger that has forgotten what was spent
            again(settings, receipt)
        with pytest.raises(LedgerError, match="not lost"):
            again(settings, receipt)
        with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
            assert (ledger.booked_epsilon, ledger.count_of_intents) == (8.0, 1)
            ledger.note("the domain goes on")
        (left,) = remains_of(settings.ledger_path)
        assert left.read_bytes() == old["ledger.sqlite"]
        assert left.with_name(left.name + ".lock").read_bytes() == old["ledger.sqlite.lock"]

    step = lambda place: again(home.at(place), receipt)  # noqa: E731
    return home.killed_everywhere(at_rest, place, step, check, rooms=rooms, stride=stride), found


def test_a_restart_killed_at_some_lines_goes_on_where_it_stopped(tmp_path: Path, broken: tuple[Path, SignedReceipt]) -> None:
    times, _ = kill_and_check(broken, tmp_path / "killed", rooms=home.ROOMS, stride=97)
    assert times > 10


@pytest.mark.journey
@pytest.mark.parametrize(("rooms", "stride"), [((f"{home.CLIENT}/ledger_restart.py",), 1), ((home.PRIVACY,), 31)])
def test_a_restart_killed_at_any_line_goes_on_where_it_stopped(
    tmp_path: Path, broken: tuple[Path, SignedReceipt], rooms: tuple[str, ...], stride: int
) -> None:
    times, found = kill_and_check(broken, tmp_path / "killed", rooms=rooms, stride=stride)
    assert times > 30
    assert {whole for whole, _ in found} == {True, False}
    if stride == 1:
        assert {count for whole, count in found if not whole} >= {0, 1, 2, 3}  # between any two of the pieces


def test_a_key_that_is_only_copied_back_does_not_open_the_new_ledger(books: ClientSettings) -> None:
    old = books.at_home("keys") / KEY_FILE
    kept = old.read_bytes()
    old.unlink()
    again(books, None, booked=None)
    old.write_bytes(kept)

    with pytest.raises(Exception, match="another key"):
        Ledger.open(books.ledger_path, signer=Keys.load(old))
    shutil.rmtree(books.at_home("keys"))
