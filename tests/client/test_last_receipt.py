"""The coordinator's last receipt, before a round: a ledger that does not hold it is an older copy, and nothing is opened or booked."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import queries, rounds
from client.ledger_lookup import Committed, check_last_receipt, find_round, round_record
from client.passport_exchange import own_keys
from client.settings import ClientSettings
from shared import wire
from shared.errors import ForeignReceipts, IsthmusError, RolledBack
from shared.privacy import ledger_file
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.ledger_schema import Event
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt
from shared.privacy.signing import SigningPair
from tests.client.partner_world import CONFIG, World, instruction

KEY, NEXT, STRANGER = (SigningPair(bytes([number]) * 32) for number in (1, 2, 3))
ONE = Mechanism(kind="poisson_gaussian", sampling_rate=0.1, noise_multiplier=2.0, clip_norm=0.5, grid=0.0, dimension=8, steps=1)
HASH = "c" * 64


def make(path: Path, *, domain: str = "books") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Ledger.create(path, signer=KEY, domain=domain, ceiling_epsilon=50.0, delta=1e-6, set_by="a test").close()
    return path


def admit(ledger: Ledger, run: str, rounds: int = 4) -> None:
    ledger.admit(run_id=run, config_hash=HASH, mechanism=ONE, rounds=rounds, reserve=2)


def intend(ledger: Ledger, run: str, round: int) -> int:
    return ledger.intent(run_id=run, round=round, mechanism=ONE, config_hash=HASH, bundle_digest=HASH, code_version="0")


def answer(ledger: Ledger, run: str, round: int, key: SigningPair = KEY) -> SignedReceipt:
    """One round from intent to receipt."""
    ledger.commit(run_id=run, round=round, attempt=intend(ledger, run, round), payload_sha256=f"{round:064x}")
    committed = find_round(ledger, run, round).committed
    assert committed is not None
    return committed.receipt(ledger.domain, key)


def backup(path: Path, to: Path) -> Path:
    """The ledger with everything beside it, as a backup of the whole folder has it."""
    to.mkdir(parents=True)
    for file in path.parent.glob(path.name + "*"):
        shutil.copy2(file, to / file.name)
    return to / path.name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make(tmp_path / "now" / "ledger.sqlite")


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger for tests that only read it."""
    return make(tmp_path_factory.mktemp("ledger") / "ledger.sqlite")


# --- a whole round at a partner ---


def shown(receipt: wire.Receipt | None, round: int, run_id: str = "run-1") -> wire.RoundInstruction:
    return dataclasses.replace(instruction(round, run_id), last_receipt="" if receipt is None else receipt.to_json())


def train(settings: ClientSettings, message: wire.RoundInstruction) -> wire.TransferUpdate:
    return rounds.train(settings, message, bundle_digest="b" * 64, code_version="0")


def kinds(settings: ClientSettings) -> list[str]:
    return [event.kind for event in read_events(settings.ledger_path)]


def restore(settings: ClientSettings, copy: Path) -> None:
    for file in settings.ledger_path.parent.glob(settings.ledger_path.name + "*"):
        file.unlink()
    for file in copy.parent.iterdir():
        shutil.copy2(file, settings.ledger_path.parent / file.name)


def test_a_ledger_from_a_backup_stops_before_data_are_opened_and_before_an_intent(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = world["films"]
    first = train(films, shown(None, 1))
    copy = backup(films.ledger_path, tmp_path / "backup")
    second = train(films, shown(first.receipt, 2))
    restore(films, copy)
    before, state = kinds(films), sorted(films.at_home("state").iterdir())

    def opened(*_: object, **__: object) -> Any:
        raise AssertionError("data were opened")

    monkeypatch.setattr(rounds, "training_data", opened)
    monkeypatch.setattr(rounds, "take_in_all", opened)
    for message in (shown(second.receipt, 2), shown(second.receipt, 1)):  # neither a new round nor one that is answered from the disk
        with pytest.raises(RolledBack, match="older copy"):
            train(films, message)
    assert (kinds(films), sorted(films.at_home("state").iterdir())) == (before, state)


def test_nor_does_it_train_in_the_next_run(world: World, tmp_path: Path) -> None:
    films = world["films"]
    copy = backup(films.ledger_path, tmp_path / "backup")
    last = train(films, shown(train(films, shown(None, 1)).receipt, 2)).receipt
    restore(films, copy)
    version = (films.at_home("run") / "space_version").read_text()
    queries.hello(films, wire.Hello(run_id="run-2", config_toml=CONFIG.to_toml()))
    queries.CurrentRun(films).fix_space(version)
    with pytest.raises(RolledBack):
        train(films, shown(last, 1, "run-2"))
    assert kinds(films) == ["genesis", "schedule", "schedule"]


def test_a_round_goes_on_from_the_receipt_of_the_round_before(world: World) -> None:
    films = world["films"]
    first = train(films, shown(None, 1))
    again = train(films, shown(first.receipt, 1))
    second = train(films, shown(first.receipt, 2))
    assert (first.receipt, first.receipt.holds()) == (again.receipt, True)
    assert first.receipt.verify_key == own_keys(films).verify_key
    assert second.receipt.goes_on_from(first.receipt)
    with Ledger.open(films.ledger_path, read_only=True) as ledger:
        assert second.receipt.epsilon_spent == ledger.epsilon_spent()


# --- which receipts a ledger holds ---


def refused(path: Path, text: str) -> type[IsthmusError] | None:
    with Ledger.open(path, read_only=True) as ledger:
        try:
            check_last_receipt(ledger, text)
        except IsthmusError as error:
            return type(error)
    return None


def test_every_receipt_there_ever_was_is_found_and_an_older_copy_holds_only_its_own(path: Path, tmp_path: Path) -> None:
    receipts, copies = [], []
    with Ledger.open(path, signer=KEY) as ledger:
        for run in ("run-1", "run-2"):
            admit(ledger, run)
            for round in (1, 2, 3):
                copies.append(backup(path, tmp_path / f"before-{run}-{round}"))
                intend(ledger, run, round) if round == 2 else None  # an attempt that was lost
                receipts.append(answer(ledger, run, round).to_json())
    assert [SignedReceipt.from_json(text).count_of_intents for text in receipts] == [1, 3, 4, 5, 7, 8]
    assert [refused(path, text) for text in ["", *receipts]] == [None] * 7
    for number, copy in enumerate(copies):
        assert [refused(copy, text) for text in receipts] == [None] * number + [RolledBack] * (6 - number)


def test_a_ledger_that_went_another_way_after_the_backup_is_found(path: Path, tmp_path: Path) -> None:
    with Ledger.open(path, signer=KEY) as ledger:
        admit(ledger, "run-1")
        answer(ledger, "run-1", 1)
        copy = backup(path, tmp_path / "backup")
        last = answer(ledger, "run-1", 2)
    with Ledger.open(copy, signer=KEY) as ledger:
        for round in (2, 3):
            answer(ledger, "run-1", round)  # as many intents as before, and more
        assert ledger.count_of_intents > last.count_of_intents
    assert refused(copy, last.to_json()) is RolledBack


def _again(**changes: Any) -> Callable[[SignedReceipt], SignedReceipt]:
    """The partner's own key says something else than its ledger."""

    def say(receipt: SignedReceipt) -> SignedReceipt:
        values = {field.name: getattr(receipt, field.name) for field in dataclasses.fields(receipt)} | changes
        signer = values.pop("signer", KEY)
        del values["verify_key"], values["signature"]
        return SignedReceipt.signed(signer, **values)

    return say


LIES: dict[str, tuple[Callable[[SignedReceipt], SignedReceipt], type[IsthmusError]]] = {
    "an event that is not there": (_again(head_hash="d" * 64), RolledBack),
    "another payload": (_again(payload_sha256="d" * 64), RolledBack),
    "more intents": (_again(count_of_intents=9), RolledBack),
    "fewer intents": (_again(count_of_intents=0), RolledBack),
    "another domain": (_again(domain="films"), ForeignReceipts),
    "the key of a stranger": (_again(signer=STRANGER), ForeignReceipts),
    "a signature that does not hold": (lambda receipt: dataclasses.replace(receipt, epsilon_spent=0.0), ForeignReceipts),
}


@pytest.mark.parametrize(("lie", "error"), LIES.values(), ids=LIES.keys())
def test_a_receipt_is_not_held_that_says(path: Path, lie: Callable[[SignedReceipt], SignedReceipt], error: type[IsthmusError]) -> None:
    with Ledger.open(path, signer=KEY) as ledger:
        admit(ledger, "run-1")
        receipt = answer(ledger, "run-1", 1)
    assert refused(path, receipt.to_json()) is None
    assert refused(path, lie(receipt).to_json()) is error


@given(st.text(max_size=60) | st.sampled_from(["{}", "[]", "null", '{"domain":"books"}']))
def test_a_text_that_is_no_receipt_is_refused(begun: Path, text: str) -> None:
    assert refused(begun, text) is (ForeignReceipts if text else None)


def test_receipts_from_before_a_change_of_keys_are_still_the_partners_own(path: Path) -> None:
    with Ledger.open(path, signer=KEY) as ledger:
        admit(ledger, "run-1")
        before = answer(ledger, "run-1", 1)
        ledger.rotate_key(NEXT)
        after = answer(ledger, "run-1", 2, NEXT)
    assert [refused(path, text) for text in (before.to_json(), after.to_json())] == [None, None]
    assert refused(path, _again(signer=STRANGER)(before).to_json()) is ForeignReceipts


def test_a_ledger_after_a_loss_is_recognised_by_the_receipt_that_its_genesis_cites(path: Path, tmp_path: Path) -> None:
    with Ledger.open(path, signer=KEY) as ledger:
        admit(ledger, "run-1")
        older = answer(ledger, "run-1", 1)
        last = answer(ledger, "run-1", 2)
    new = tmp_path / "after" / "ledger.sqlite"
    new.parent.mkdir()
    booked = {"booked_epsilon": 50.0, "booked_delta": 1e-6}
    said = {"domain": "books", "ceiling_epsilon": 60.0, "delta": 1e-6, "set_by": "a test"}
    with Ledger.restart(new, signer=NEXT, **said, **booked, last_receipt=last.to_json()) as ledger:
        admit(ledger, "run-2", rounds=1)
        first = answer(ledger, "run-2", 1, NEXT)
    assert first.goes_on_from(last)
    assert [refused(new, receipt.to_json()) for receipt in (last, first)] == [None, None]
    assert refused(new, older.to_json()) is ForeignReceipts  # of another key, and not the one that was cited
    assert refused(make(tmp_path / "secretly" / "ledger.sqlite"), last.to_json()) is RolledBack  # begun again without citing it


# --- what is found near the head ---


def test_a_round_is_found_as_the_whole_ledger_would_say(path: Path) -> None:
    with Ledger.open(path, signer=KEY) as ledger:
        admit(ledger, "run-1")
        admit(ledger, "run-2")
        answer(ledger, "run-2", 1)
        lost = intend(ledger, "run-1", 1)
        assert find_round(ledger, "run-1", 1).committed is None
        receipt = answer(ledger, "run-1", 1)
        intend(ledger, "run-1", 2)
        answer(ledger, "run-2", 2)
        ledger.raise_ceiling(60.0, raised_by="a test", why="a longer life")
        ledger.end_run("run-1")
        found = find_round(ledger, "run-1", 1)
        assert found == round_record(path, "run-1", 1)
        assert (lost, found.intents, found.last_intent) == (1, 2, 7)
        assert found.committed == Committed(
            payload_sha256=f"{1:064x}",
            head_hash=receipt.head_hash,
            count_of_intents=3,
            mechanism=receipt.mechanism,
            epsilon_spent=ledger.epsilon_spent(),
            verify_key=KEY.verify_key,
        )
        assert (find_round(ledger, "run-1", 2).intents, find_round(ledger, "run-1", 2).committed) == (1, None)
        assert find_round(ledger, "run-1", 3) == find_round(ledger, "run-9", 1)
        assert (find_round(ledger, "run-9", 1).intents, find_round(ledger, "run-9", 1).last_intent) == (0, 0)


def test_what_a_round_asks_a_long_ledger_costs_a_few_events(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Ledger.open(path, signer=KEY) as ledger:
        admit(ledger, "run-1", rounds=100)
        last = ""
        for round in range(1, 101):
            last = answer(ledger, "run-1", round).to_json()
    read: list[int] = []
    plain = ledger_file.event_from_row

    def counting(row: tuple[Any, ...], **how: Any) -> Event:
        read.append(row[0])
        return plain(row, **how)

    with Ledger.open(path, read_only=True) as ledger:
        monkeypatch.setattr(ledger_file, "event_from_row", counting)
        check_last_receipt(ledger, last)
        assert find_round(ledger, "run-1", 100).intents == 1
        assert read == [202, 202, 201]
