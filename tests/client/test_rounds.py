"""A round at one partner: what it opens, what it books, and what it never looks at."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from client import rounds
from client.passport_exchange import export, own_keys
from client.preparation import TRAIN, prepare
from client.settings import ClientSettings
from client.state import StateFolder
from client.training.local_round import round_mechanism
from shared import wire
from shared.errors import Refusal, StateError
from shared.privacy.ledger import Ledger
from tests.client.partner_world import CONFIG, World, exchange, instruction

_OPENED: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if _OPENED is not None and event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, Path)):
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_note)


def train(settings: ClientSettings, round: int = 1, run_id: str = "run-1") -> wire.TransferUpdate:
    return rounds.train(settings, instruction(round, run_id), bundle_digest="b" * 64, code_version="0")


def events(settings: ClientSettings) -> list[str]:
    with Ledger.open(settings.ledger_path, read_only=True) as ledger:
        return [event.kind for event in ledger.events()]


def test_an_update_carries_the_receipt_of_what_was_booked(world: World) -> None:
    exchange(world)
    update = train(world["films"])

    with Ledger.open(world["films"].ledger_path, read_only=True) as ledger:
        assert events(world["films"])[-2:] == ["intent", "commit"]
        assert (update.receipt.head_hash, update.receipt.epsilon_spent) == (ledger.head_hash, ledger.epsilon_spent())
    assert update.receipt.payload_sha256 == update.digest()


def test_a_round_that_was_answered_is_answered_from_disk_and_paid_once(world: World) -> None:
    first = train(world["films"])
    for name in ("items.csv", "interactions.csv", "links.csv"):
        (world.root / "films" / name).unlink()  # nothing is opened for the second answer

    assert train(world["films"]).digest() == first.digest()
    assert events(world["films"]).count("intent") == 1


def test_a_round_of_another_run_is_refused_and_books_nothing(world: World) -> None:
    before = events(world["films"])

    with pytest.raises(StateError, match="another run"):
        train(world["films"], run_id="run-2")
    assert events(world["films"]) == before


def test_a_run_whose_plan_is_used_up_is_refused_before_any_data_are_opened(world: World) -> None:
    global _OPENED
    settings, privacy = world["films"], CONFIG.privacy
    with Ledger.open(settings.ledger_path, signer=own_keys(settings)) as ledger:
        for _ in range(privacy.rounds + privacy.reserve_rounds):  # attempts that were lost
            ledger.intent(
                run_id="run-1",
                round=1,
                mechanism=round_mechanism(CONFIG),
                config_hash=CONFIG.config_hash,
                bundle_digest="b" * 64,
                code_version="0",
            )
    _OPENED = []
    try:
        with pytest.raises(Refusal) as refused:
            train(settings)
        opened = list(_OPENED)
    finally:
        _OPENED = None

    assert refused.value.code == "ceiling"
    assert not any(name in path for path in opened for name in ("prepared", "interactions", "items.csv", "links"))
    assert events(settings)[-2:] == ["intent", "refused"]


def test_training_sees_training_users_and_their_passports_only(world: World) -> None:
    exchange(world)
    seen = rounds.training_data(world["films"])
    prepared = prepare(world["films"], CONFIG)

    assert len(seen.histories) == len(seen.passports.rows) == int((prepared.roles == TRAIN).sum())
    assert [field.name for field in dataclasses.fields(seen)] == [
        "domain",
        "histories",
        "coordinates",
        "passports",
        "descriptor",
        "space_version",
        "prototypes",
        "item_tokens",
    ]


def test_training_never_opens_the_serving_folder(done: World) -> None:
    global _OPENED
    settings = done["films"]
    shutil.rmtree(settings.at_home("state"))  # the round has to be computed again
    ledger = Ledger.open(settings.ledger_path, signer=own_keys(settings))
    ledger.close()
    _OPENED = []
    try:
        with pytest.raises(Exception, match="is committed"):  # it was paid, and its state is gone: nothing may be made up
            train(settings)
        data = rounds.training_data(settings)
        opened = list(_OPENED)
    finally:
        _OPENED = None

    assert len(data.histories) > 0
    assert any("prepared" in path for path in opened)
    assert not any("serving" in path for path in opened)


def test_a_whole_round_opens_nothing_of_the_serving_folder(world: World, done: World) -> None:
    global _OPENED
    settings = world["films"]
    shutil.copytree(done["films"].at_home("serving"), settings.at_home("serving"))
    _OPENED = []
    try:
        train(settings)
        opened = list(_OPENED)
    finally:
        _OPENED = None

    assert any("state" in path for path in opened)
    assert not any("serving" in path for path in opened)


def test_automatic_passports_are_taken_in_before_the_first_round_only(world: World) -> None:
    books, films = world["books"], world["films"]
    made = export(books, CONFIG, prepare(books, CONFIG), "films", world.space_version)
    films = dataclasses.replace(films, passports=dataclasses.replace(films.passports, automatic=True, inbox=str(made.path.parent)))
    assert len(rounds.training_data(films).passports.vectors) == 0

    train(films)

    assert len(rounds.training_data(films).passports.vectors) > 0
    made.path.write_bytes(b"garbage")  # what happens to the file later is nobody's business
    train(films, round=2)


def test_a_state_holds_the_key_of_what_it_answered(world: World) -> None:
    train(world["films"])
    state = StateFolder(world["films"].at_home("state")).current()

    assert state is not None
    assert state.key is not None
    assert (state.key.run_id, state.key.round, state.space_version) == ("run-1", 1, world.space_version)
