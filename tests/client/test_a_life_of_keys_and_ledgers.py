"""A real partner in the middle of a run: its keys change, its ledger is lost, and rounds go on or stop as they must."""

from __future__ import annotations

import dataclasses

import pytest

from client import key_rotation, queries, rounds
from client.key_rotation import own_keys, rotate
from client.ledger_restart import restart
from client.settings import ClientSettings
from shared import wire
from shared.errors import ForeignReceipts, Refusal, RolledBack
from shared.privacy.ledger import Ledger
from shared.privacy.receipts import SignedReceipt
from tests.client import ledger_home as home
from tests.client.partner_world import CONFIG, World, instruction


def train(settings: ClientSettings, round: int, last: SignedReceipt | None, run_id: str = "run-1") -> SignedReceipt:
    """A real round, begun with the receipt that the coordinator holds; the receipt that comes back."""
    asked = dataclasses.replace(instruction(round, run_id), last_receipt="" if last is None else last.to_json())
    update = rounds.train(settings, asked, bundle_digest="b" * 64, code_version="0")
    assert update.receipt.holds()
    return update.receipt


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_goes_on_with_new_keys_and_its_receipts_of_the_old_ones(world: World, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    books = world["books"]
    first = train(books, 1, None)
    with monkeypatch.context() as patched:
        if killed:  # right after the event: the round is the next command, and finishes the rotation
            patched.setattr(key_rotation, "_settle", lambda settings, folder: None)
        changed = rotate(books)

    second = train(books, 2, first)

    assert (first.verify_key, second.verify_key) == (changed.old.verify_key, changed.new.verify_key)
    assert second.goes_on_from(first)
    assert own_keys(books).verify_key == changed.new.verify_key


def test_a_lost_ledger_ends_its_run_and_another_run_begins_from_the_same_receipt(world: World) -> None:
    books = world["books"]
    backup = home.files(books.ledger_path)
    first = train(books, 1, None)
    home.put_back(books.ledger_path, backup)
    books.ledger_path.with_name("ledger.sqlite.lock").write_bytes(backup["ledger.sqlite.lock"])  # a backup of the whole machine
    with pytest.raises(RolledBack):
        train(books, 1, first)

    restart(books, first, booked_epsilon=None, epsilon=30.0, by="A. Officer", why="restored from an old backup")

    with pytest.raises(Refusal, match="not admitted") as refused:
        train(books, 2, first)  # the new ledger never admitted this run
    assert refused.value.code == "ceiling"
    queries.hello(books, wire.Hello(run_id="run-2", config_toml=CONFIG.to_toml()))
    with Ledger.open(books.ledger_path, read_only=True) as ledger:
        assert (ledger.booked_epsilon, ledger.count_of_intents, ledger.intents_left("run-2")) == (
            8.0,
            first.count_of_intents,
            CONFIG.privacy.rounds + CONFIG.privacy.reserve_rounds,
        )


def test_a_receipt_of_a_key_that_this_ledger_never_had_is_foreign(world: World) -> None:
    receipt = train(world["films"], 1, None)
    with pytest.raises(ForeignReceipts):
        train(world["books"], 1, receipt)
