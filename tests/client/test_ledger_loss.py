"""A ledger that is lost, or older than it was: whatever else this domain kept says so, and the preflight names the way out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client.check_line import Line
from client.egress_manifest import Manifest
from client.key_rotation import own_keys
from client.ledger_life import create
from client.ledger_restart import restart
from client.preflight import preflight
from client.settings import ClientSettings
from shared.errors import LedgerError
from shared.privacy.ledger import Ledger, read_events
from tests.client import ledger_home


@pytest.fixture
def books(tmp_path: Path) -> ClientSettings:
    return ledger_home.settle(tmp_path)


def ledger_line(settings: ClientSettings) -> Line:
    """What the preflight says about the ledger."""
    report = preflight(settings.base / "partner.toml", data=False, server=False)
    return next(line for line in report.lines if line.name == "ledger")


def gone(settings: ClientSettings) -> None:
    settings.ledger_path.unlink()


def empty(settings: ClientSettings) -> None:
    settings.ledger_path.write_bytes(b"")


def broken(settings: ClientSettings) -> None:
    data = bytearray(settings.ledger_path.read_bytes())
    data[-200:] = b"\xff" * 200
    settings.ledger_path.write_bytes(bytes(data))


def update_left(settings: ClientSettings, event: str) -> None:
    Manifest(settings.at_home("egress.jsonl")).left(
        kind="train", why="dp", schema="TransferUpdate", size=9, sha256="0" * 64, round=3, ledger_event=event
    )


def moved_aside(settings: ClientSettings) -> None:
    os.rename(settings.ledger_path, f"{settings.ledger_path}.lost-1")
    os.unlink(f"{settings.ledger_path}.lock")


def gone_with_its_mark(settings: ClientSettings) -> None:
    update_left(settings, "b" * 64)
    for path in settings.ledger_path.parent.glob("ledger.sqlite*"):
        path.unlink()


def older_than_its_mark(settings: ClientSettings) -> None:
    before = ledger_home.files(settings.ledger_path)
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
        ledger.raise_ceiling(9.0, raised_by="a test", why="a test")
    ledger_home.put_back(settings.ledger_path, before)


def older_than_the_manifest(settings: ClientSettings) -> None:
    update_left(settings, "b" * 64)


@pytest.mark.parametrize(
    ("lose", "what"),
    [
        (gone, "the ledger is gone: ledger.sqlite.lock"),
        (moved_aside, "was lost before: ledger.sqlite.lost-1"),
        (gone_with_its_mark, "an update of round 3 left at"),
        (older_than_its_mark, "it ends at event 1, but event 2 was written here"),
        (older_than_the_manifest, "it is an older copy"),
        (empty, "the file is empty"),
        (broken, ""),
    ],
)
def test_a_ledger_that_is_lost_or_older_than_it_was_is_red_and_a_restart_is_named(
    books: ClientSettings, lose: Callable[[ClientSettings], None], what: str
) -> None:
    lose(books)

    line = ledger_line(books)

    assert not line.ok
    assert what in line.what
    assert "isthmus-client ledger restart" in line.do
    with pytest.raises(LedgerError):  # nor does anything else make a second first ledger
        create(books)


def test_after_a_restart_nothing_that_left_before_is_held_against_the_ledger(books: ClientSettings) -> None:
    gone_with_its_mark(books)
    assert not ledger_line(books).ok

    restart(books, None, booked_epsilon=8.0, epsilon=12.0, by="a test", why="the disk died")

    assert ledger_line(books).ok
    update_left(books, read_events(books.ledger_path)[-1].hash)
    assert ledger_line(books).ok
