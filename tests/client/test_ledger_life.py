"""The life of a ledger at its partner: made once, shown, handed over, its ceiling raised, brought to a newer format."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from client import ledger_life
from client.key_rotation import own_keys, rotate
from client.keys import PublicKeys
from client.ledger_life import create, export, overview, raise_ceiling, upgrade
from client.settings import ClientSettings
from shared.errors import LedgerBroken, LedgerError, LedgerLocked, UsageError
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.ledger_file import LedgerFile
from shared.privacy.ledger_handover import head_of
from tests.client import ledger_home as home


@pytest.fixture
def books(tmp_path: Path) -> ClientSettings:
    return home.settle(tmp_path)


@pytest.fixture
def used(books: ClientSettings) -> ClientSettings:
    """Two of three rounds are done."""
    home.admit(books)
    for round in (1, 2):
        home.answer(books, round)
    return books


def test_the_ceiling_of_the_settings_is_used_once(books: ClientSettings, tmp_path: Path) -> None:
    toml = tmp_path / "partner.toml"
    toml.write_text(toml.read_text().replace("8.0", "80.0"))
    assert (ClientSettings.read(toml).ceiling.epsilon, overview(home.at(tmp_path)).ceiling) == (80.0, 8.0)

    (genesis,) = read_events(books.ledger_path)
    assert (genesis.payload["set_by"], genesis.payload["private"]) == ("the bookshop", True)
    assert genesis.payload["verify_key"] == own_keys(books).verify_key


def test_a_ledger_is_made_once_and_only_its_owner_can_read_it(books: ClientSettings) -> None:
    before = books.ledger_path.read_bytes()

    with pytest.raises(LedgerError, match="a ledger already"):
        create(books)
    assert books.ledger_path.read_bytes() == before
    assert stat.S_IMODE(books.ledger_path.stat().st_mode) == 0o600


def test_a_ledger_that_is_gone_is_not_made_anew(books: ClientSettings) -> None:
    books.ledger_path.unlink()

    with pytest.raises(LedgerBroken, match="gone"):
        create(books)


def test_an_overview_adds_up_what_the_ledger_says(used: ClientSettings) -> None:
    rotate(used)
    with Ledger.open(used.ledger_path, signer=own_keys(used)) as ledger:
        for tier, verdict in ((1, "passed"), (2, "refuted"), (1, "refuted")):
            ledger.audited(tier=tier, verdict=verdict, code_digest="a" * 64, code_version="0.1.0", summary="{}", report_sha256="e" * 64)
        spent, reserved = ledger.epsilon_spent(), ledger.epsilon_reserved()

    found = overview(used)

    assert (found.spent, found.reserved) == (spent, reserved)
    assert found.remaining == 8.0 - reserved
    assert 0.0 < spent < reserved < 8.0
    (run,) = found.runs
    assert (run.run_id, run.rounds, run.reserve, run.permitted, run.attempts, run.committed) == ("autumn", 3, 1, 4, 2, 2)
    assert found.events == {"genesis": 1, "schedule": 1, "intent": 2, "commit": 2, "key": 1, "audit": 3}
    assert found.decided_by == "pld"
    assert [seq for seq, _ in found.keys] == [1, 7]
    assert found.keys[-1][1] == own_keys(used).verify_key
    assert [(event.payload["tier"], event.payload["verdict"]) for event in found.audits] == [(1, "refuted"), (2, "refuted")]


def test_an_overview_is_read_beside_a_writer_and_changes_nothing(used: ClientSettings) -> None:
    before = overview(used)
    with Ledger.open(used.ledger_path, signer=own_keys(used)):
        assert overview(used) == before
    assert overview(used) == before


def test_a_raised_ceiling_names_who_and_why_and_lets_the_filter_decide(used: ClientSettings) -> None:
    before = overview(used)

    raise_ceiling(used, 10.0, by="A. Officer", why="a second season")

    after = overview(used)
    assert (after.ceiling, after.first_ceiling, after.decided_by) == (10.0, 8.0, "rdp-filter")
    assert after.spent > before.spent  # the filter counts the same steps higher than PLD
    event = read_events(used.ledger_path)[-1]
    assert (event.payload["raised_by"], event.payload["why"]) == ("A. Officer", "a second season")


@pytest.mark.parametrize("epsilon", [8.0, 7.0, 0.0, -1.0, float("inf"), float("nan")])
def test_a_ceiling_is_only_raised_and_stays_finite(books: ClientSettings, epsilon: float) -> None:
    with pytest.raises(LedgerError, match="not above the ceiling 8"):
        raise_ceiling(books, epsilon, by="A. Officer", why="a second season")
    assert overview(books).events == {"genesis": 1}


@pytest.mark.parametrize(("by", "why"), [("", "x"), ("x", " "), ("x", "a" * 2001), ("x\x00", "x")])
def test_a_ceiling_is_not_raised_by_nobody_or_for_no_reason(books: ClientSettings, by: str, why: str) -> None:
    with pytest.raises(UsageError):
        raise_ceiling(books, 10.0, by=by, why=why)
    assert overview(books).events == {"genesis": 1}


def test_a_hand_over_is_one_file_with_every_event_and_a_signed_head(used: ClientSettings, tmp_path: Path) -> None:
    reader = Ledger.open(used.ledger_path, read_only=True)  # somebody looks at it meanwhile
    made = export(used, tmp_path / "books-ledger.sqlite")
    reader.close()

    assert read_events(made.ledger) == read_events(used.ledger_path)
    file = LedgerFile.examine(made.ledger)
    head = head_of(file, "books")
    file.close()
    public = PublicKeys.from_json(made.keys.read_text())
    assert head is not None
    assert head.holds(public.verify_key)
    assert (head.seq, head.hash) == (made.head_seq, made.head_hash) == (6, read_events(used.ledger_path)[-1].hash)
    assert public == own_keys(used).public("books")
    words = made.words.read_text()
    assert f"isthmus-audit verify {made.ledger.name} --key {made.keys.name}" in words
    assert public.fingerprint in words
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made.ledger, made.keys, made.words)] == [0o600] * 3
    assert sorted(path.name for path in tmp_path.glob("books-ledger*")) == sorted(p.name for p in (made.ledger, made.keys, made.words))


def test_a_hand_over_holds_no_secret(used: ClientSettings, tmp_path: Path) -> None:
    secrets = [part for part in (used.at_home("keys") / "partner.keys").read_text().split('"') if len(part) == 64]
    made = export(used, tmp_path / "books.sqlite")

    assert len(secrets) == 2
    for path in (made.ledger, made.keys, made.words):
        assert not any(secret.encode() in path.read_bytes() or bytes.fromhex(secret) in path.read_bytes() for secret in secrets)


@pytest.mark.parametrize("name", ["books.sqlite", "books.keys.json", "books.txt"])
def test_a_hand_over_replaces_no_file(used: ClientSettings, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("of somebody else")

    with pytest.raises(UsageError, match="exists already"):
        export(used, tmp_path / "books.sqlite")
    assert (tmp_path / name).read_text() == "of somebody else"
    assert [path.name for path in tmp_path.glob("books.*")] == [name]


def test_a_hand_over_that_is_refused_leaves_no_file(used: ClientSettings, tmp_path: Path) -> None:
    with Ledger.open(used.ledger_path, signer=own_keys(used)), pytest.raises(LedgerLocked):
        export(used, tmp_path / "books.sqlite")
    assert list(tmp_path.glob("books.*")) == []


def test_a_hand_over_killed_at_some_lines_can_be_repeated(used: ClientSettings, tmp_path: Path) -> None:
    """The ledger comes last: what is there of an attempt that was cut off is the same as what the next one writes."""

    def check(place: Path, returned: bool) -> None:
        settings, to = home.at(place), place / "books.sqlite"
        assert to.exists() or not returned
        if not to.exists():
            export(settings, to)
        assert read_events(to) == read_events(settings.ledger_path)
        assert (place / "books.keys.json").exists()

    at_rest = used.base
    step = lambda place: export(home.at(place), place / "books.sqlite")  # noqa: E731
    place = tmp_path.parent / f"{tmp_path.name}-killed"
    assert home.killed_everywhere(at_rest, place, step, check, stride=97) > 10


def test_a_hand_over_waits_for_no_writer_and_makes_no_ledger(used: ClientSettings, tmp_path: Path) -> None:
    program = "import sys; from pathlib import Path; from client.key_rotation import own_keys; from client.settings import ClientSettings\n"
    program += "from shared.privacy.ledger import Ledger\ns = ClientSettings.read(Path(sys.argv[1]))\n"
    program += "l = Ledger.open(s.ledger_path, signer=own_keys(s)); print('open', flush=True); sys.stdin.read()"
    root = Path(ledger_life.__file__).parent.parent
    words = [sys.executable, "-c", program, str(tmp_path / "partner.toml")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(LedgerLocked):
            export(used, tmp_path / "books.sqlite")
        writer.communicate("")
    assert not (tmp_path / "books.sqlite").exists()
    export(used, tmp_path / "books.sqlite")


def test_a_broken_ledger_is_not_handed_over(used: ClientSettings, tmp_path: Path) -> None:
    data = used.ledger_path.read_bytes()
    at = data.index(b"the bookshop")
    used.ledger_path.write_bytes(data[:at] + b"T" + data[at + 1 :])

    with pytest.raises(LedgerBroken):
        export(used, tmp_path / "books.sqlite")
    assert not (tmp_path / "books.sqlite").exists()


def test_a_ledger_of_the_old_format_is_signed_from_its_upgrade_on(tmp_path: Path) -> None:
    books = home.settle(tmp_path)
    for path in books.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()
    home.old_format(books.ledger_path)
    assert (overview(books).format, overview(books).keys) == (1, ())

    changed = [upgrade(books, why="a newer version"), upgrade(books, why="a newer version")]
    home.admit(books)

    found = overview(books)
    assert changed == [True, False]
    assert (found.format, found.keys) == (2, ((3, own_keys(books).verify_key),))
    assert [event.kind for event in read_events(books.ledger_path)] == ["genesis", "note", "migration", "schedule"]
    assert [event.signature is not None for event in read_events(books.ledger_path)] == [False, False, True, True]


def test_an_upgrade_killed_at_some_lines_is_whole_or_absent(tmp_path: Path) -> None:
    at_rest = tmp_path / "at rest"
    at_rest.mkdir()
    books = home.settle(at_rest)
    for path in books.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()
    home.old_format(books.ledger_path)

    def check(place: Path, returned: bool) -> None:
        settings = home.at(place)
        before = overview(settings).format
        assert before == 2 or not returned
        assert upgrade(settings, why="again") == (before == 1)
        home.admit(settings)

    step = lambda place: upgrade(home.at(place), why="a newer version")  # noqa: E731
    assert home.killed_everywhere(at_rest, tmp_path / "killed", step, check, stride=53) > 10


def test_the_database_of_a_hand_over_needs_no_file_beside_it(used: ClientSettings, tmp_path: Path) -> None:
    made = export(used, tmp_path / "books.sqlite")
    database = sqlite3.connect(made.ledger)
    mode = database.execute("PRAGMA journal_mode").fetchone()
    database.close()
    assert mode == ("delete",)
