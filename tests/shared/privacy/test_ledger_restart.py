"""A ledger that was lost counts as spent to its ceiling: epsilons, deltas and the count of intents add up from there."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BudgetExhausted, LedgerBroken, LedgerError, RolledBack, StorageError
from shared.privacy import ledger_file
from shared.privacy.accountant import epsilon_at_order, epsilon_pld, filter_order
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import Ledger
from shared.privacy.mechanism import Mechanism
from shared.privacy.receipts import SignedReceipt
from tests.shared.privacy.bookshop import KEYS, NEW_KEYS, STRANGER, audited, by_force, receipt_of_a_lost_ledger, write_anew

Make = Callable[..., Ledger]
Act = Callable[..., None]
Gaussian = Callable[..., Mechanism]

RECEIPT = receipt_of_a_lost_ledger(12)
PROVED = SignedReceipt.from_json(RECEIPT)


@pytest.fixture
def begin_again(path: Path) -> Make:
    """After a ledger with a ceiling of 8, at delta 1e-5, was lost."""

    def act(**changes: Any) -> Ledger:
        new = {"signer": KEYS, "domain": "books", "ceiling_epsilon": 12.0, "delta": 1e-6, "set_by": "the bookshop"}
        lost = {"booked_epsilon": 8.0, "booked_delta": 1e-5, "last_receipt": RECEIPT}
        return Ledger.restart(path, **{**new, **lost, **changes})

    return act


def test_the_whole_old_ceiling_counts_as_spent(begin_again: Make, path: Path) -> None:
    with begin_again() as ledger:
        assert (ledger.epsilon_spent(), ledger.epsilon_reserved(), ledger.booked_epsilon) == (8.0, 8.0, 8.0)
        assert (ledger.delta, ledger.claimed_delta) == (1e-6, 1e-6 + 1e-5)
        assert ledger.count_of_intents == 12
        assert not ledger.adaptive
    book, (genesis,) = audited(path)
    assert (book.raised, book.cites, book.booked_delta) == (True, PROVED, 1e-5)
    assert float.fromhex(genesis.payload["booked_epsilon"]) == 8.0


def test_intents_and_epsilon_go_on_from_what_is_booked(
    begin_again: Make, path: Path, admit: Act, do_round: Act, gaussian: Gaussian
) -> None:
    with begin_again(ceiling_epsilon=15.0) as ledger:
        admit(ledger)
        do_round(ledger, 1)
        assert ledger.count_of_intents == 13
        assert ledger.epsilon_spent() == 8.0 + epsilon_pld([gaussian()], 1e-6)
        assert ledger.spent_events() == [gaussian()]
    with Ledger.open(path, signer=KEYS) as ledger:
        admit(ledger, run_id="winter")
        order = ledger.filter_order
        assert order == filter_order(gaussian(), 15.0 - 8.0, 1e-6) != filter_order(gaussian(), 15.0, 1e-6)  # the best for what is left
        assert ledger.epsilon_spent() == 8.0 + epsilon_at_order([gaussian()], 1e-6, order)
        assert ledger.count_of_intents == 13


def test_only_what_lies_above_the_booked_ceiling_can_be_spent(begin_again: Make, admit: Act, gaussian: Gaussian) -> None:
    """A plan that would fit under the new ceiling alone does not fit above what is booked."""
    cost = epsilon_pld([gaussian(steps=200)], 1e-6)
    assert 4.0 < cost < 12.0
    with begin_again() as ledger:
        with pytest.raises(BudgetExhausted) as refusal:
            admit(ledger, rounds=20, reserve=0)
        assert (refusal.value.remaining, refusal.value.ceiling) == (4.0, 12.0)
        assert refusal.value.requested == pytest.approx(cost, abs=1e-9)
    with begin_again_elsewhere(ledger, ceiling=8.0 + cost + 1e-6) as ledger:
        admit(ledger, rounds=20, reserve=0)
        assert ledger.epsilon_reserved() <= ledger.ceiling_epsilon


def begin_again_elsewhere(ledger: Ledger, *, ceiling: float) -> Ledger:
    return Ledger.restart(
        ledger._file.path.with_name("other.sqlite"),
        signer=KEYS, domain="books", ceiling_epsilon=ceiling, delta=1e-6, set_by="x",
        booked_epsilon=8.0, booked_delta=1e-5, last_receipt=None,
    )  # fmt: skip


def test_a_loss_after_a_loss_books_both(begin_again: Make, path: Path) -> None:
    with begin_again() as ledger:
        ceiling, delta = ledger.ceiling_epsilon, ledger.claimed_delta
    path.unlink()
    with begin_again(ceiling_epsilon=20.0, booked_epsilon=ceiling, booked_delta=delta) as ledger:
        assert (ledger.epsilon_spent(), ledger.claimed_delta) == (12.0, 1e-6 + (1e-6 + 1e-5))


def test_a_new_key_and_no_receipt_may_be_all_that_is_left(begin_again: Make, path: Path) -> None:
    with begin_again(signer=NEW_KEYS, last_receipt=None) as ledger:
        assert (ledger.verify_key, ledger.count_of_intents, ledger.epsilon_spent()) == (NEW_KEYS.verify_key, 0, 8.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"booked_epsilon": 12.0},
        {"booked_epsilon": 13.0},
        {"booked_epsilon": 0.0},
        {"booked_epsilon": -1.0},
        {"booked_epsilon": math.nan},
        {"booked_epsilon": math.inf},
        {"ceiling_epsilon": 8.0},
        {"ceiling_epsilon": math.inf},
        {"ceiling_epsilon": math.nan},
        {"booked_delta": 0.0},
        {"booked_delta": -1e-5},
        {"booked_delta": 1.0},
        {"booked_delta": math.nan},
        {"booked_delta": 0.6, "delta": 0.5},
        {"delta": 0.0},
    ],
)
def test_numbers_without_meaning_are_refused_and_leave_no_file(begin_again: Make, path: Path, wrong: dict[str, float]) -> None:
    with pytest.raises(LedgerError):
        begin_again(**wrong)
    assert not path.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "x" * 2001,
        "no receipt",
        "[]",
        "[1, 2]",
        "12",
        "null",
        "{}",
        '{"count_of_intents":null}',
        '{"count_of_intents":"12"}',
        '{"count_of_intents":true}',
        '{"count_of_intents":-1}',
        '{"count_of_intents":12.0}',
        '{"count_of_intents":1e400}',
        '{"count_of_intents":NaN}',
        '{"count_of_intents":9007199254740992}',
        '{"count_of_intents":' + "9" * 1500 + "}",
        "[" * 1500,
        '{"count_of_intents":12}\0',
        b'{"count_of_intents":12}',
    ],
)
def test_a_receipt_that_is_none_is_refused_and_leaves_no_file(begin_again: Make, path: Path, wrong: str) -> None:
    with pytest.raises(LedgerError):
        begin_again(last_receipt=wrong)
    assert not path.exists()
    begin_again().close()  # and the same place still takes a right one


NOT_PROVED = {
    "more than is booked": receipt_of_a_lost_ledger(12, epsilon=8.01),
    "without bound": receipt_of_a_lost_ledger(12, epsilon=math.inf),
    "another domain": receipt_of_a_lost_ledger(12, domain="films"),
    "a broken signature": dataclasses.replace(PROVED, count_of_intents=11).to_json(),
    "another's signature": dataclasses.replace(PROVED, verify_key=STRANGER.verify_key).to_json(),
    "another spelling": RECEIPT.replace(",", ", "),
}


@pytest.mark.parametrize("cited", NOT_PROVED.values(), ids=NOT_PROVED)
def test_a_receipt_that_does_not_prove_what_is_booked_is_refused(begin_again: Make, path: Path, cited: str) -> None:
    """Before the file exists; and by a reader of a ledger that was written all the same."""
    with pytest.raises(LedgerError) as refused:
        begin_again(last_receipt=cited)
    assert refused.value.what.startswith(("the receipt that it cites is", "it books epsilon 8 for a lost ledger that spent"))
    assert not path.exists()
    begin_again().close()
    write_anew(path, lambda seq, said: {**said, "last_receipt": cited}, KEYS)
    path.with_name(path.name + ".lock").unlink()
    with pytest.raises(LedgerBroken, match="event 1"):
        Ledger.open(path, signer=KEYS)
    found = verify(path, key=KEYS.verify_key)
    assert (found.status, found.first_bad, found.epsilon_spent) == (Status.BROKEN, 1, 0.0)


def test_a_receipt_of_all_that_is_booked_and_of_another_key_is_taken(begin_again: Make) -> None:
    with begin_again(signer=NEW_KEYS, last_receipt=receipt_of_a_lost_ledger(12, epsilon=8.0)) as ledger:
        assert (ledger.verify_key, ledger.count_of_intents, ledger.epsilon_spent()) == (NEW_KEYS.verify_key, 12, 8.0)


@pytest.mark.parametrize(
    "changes",
    [
        {"booked_epsilon": None},
        {"booked_delta": None},
        {"booked_epsilon": None, "booked_delta": None},
        {"booked_epsilon": (12.0).hex()},
        {"booked_epsilon": (0.0).hex()},
        {"booked_epsilon": "inf"},
        {"booked_epsilon": 8.0},
        {"booked_epsilon": "0x8p+0"},
        {"booked_delta": (0.0).hex()},
        {"booked_delta": (1.0).hex()},
        {"last_receipt": "no receipt"},
    ],
)
def test_a_genesis_that_no_restart_could_have_written_is_refused(begin_again: Make, path: Path, changes: dict[str, Any]) -> None:
    begin_again().close()
    write_anew(path, lambda seq, said: {**said, **changes}, KEYS)
    path.with_name(path.name + ".lock").unlink()  # signed by the partner itself, and nobody remembers another one
    with pytest.raises(LedgerBroken, match="event 1"):
        Ledger.open(path, signer=KEYS)


def test_what_is_booked_cannot_be_made_smaller_afterwards(begin_again: Make, path: Path) -> None:
    begin_again().close()
    write_anew(path, lambda seq, said: {**said, "booked_epsilon": (1.0).hex()}, KEYS)
    with pytest.raises(RolledBack):
        Ledger.open(path, signer=KEYS)


def test_a_ledger_that_stands_is_not_lost(begin_again: Make, new_ledger: Make, path: Path) -> None:
    new_ledger().close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="already"):
        begin_again()
    assert path.read_bytes() == before


def test_a_lost_ledger_that_turns_up_again_does_not_pass_for_the_new_one(begin_again: Make, written: Path, tmp_path: Path) -> None:
    shutil.move(written, tmp_path / "found later")
    begin_again().close()
    shutil.copy(tmp_path / "found later", written)
    with pytest.raises(RolledBack):
        Ledger.open(written, signer=KEYS)


def test_a_place_where_a_ledger_was_lost_never_takes_a_plain_new_one(new_ledger: Make, written: Path) -> None:
    written.unlink()
    with pytest.raises(LedgerBroken, match="gone"):
        new_ledger()
    assert not written.exists()


def test_a_restart_that_was_cut_off_is_repeated(
    begin_again: Make, new_ledger: Make, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the mark and the file: neither does the old mark refuse the new ledger, nor may a plain one be made there."""
    written.unlink()

    def no_room(*_: object, **__: object) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "write_whole", no_room)
        with pytest.raises(StorageError):
            begin_again()
    assert not written.exists()
    with pytest.raises(LedgerBroken, match="gone"):
        new_ledger()
    with begin_again() as ledger:
        assert ledger.epsilon_spent() == 8.0


def test_a_restart_that_was_cut_off_behind_the_file_stands(begin_again: Make, written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written.unlink()
    write_whole = ledger_file.write_whole

    def write_and_lose_power(*arguments: Any, **more: Any) -> None:
        write_whole(*arguments, **more)
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(ledger_file, "write_whole", write_and_lose_power)
        with pytest.raises(StorageError):
            begin_again()
    with Ledger.open(written, signer=KEYS) as ledger:  # the mark of the lost ledger does not refuse it
        assert ledger.epsilon_spent() == 8.0


@pytest.mark.parametrize("part", ["-wal", "-journal"])
def test_a_part_of_the_lost_ledger_is_never_read_into_the_new_one(begin_again: Make, written: Path, part: str) -> None:
    """SQLite would: a write-ahead part that a killed process left belongs to whatever file stands beside it."""
    written.unlink()
    left = written.with_name(written.name + part)
    left.write_bytes(b"events that nothing else holds")
    with pytest.raises(LedgerError, match="a part of another ledger"):
        begin_again()
    assert left.read_bytes() == b"events that nothing else holds"
    assert not written.exists()
    left.rename(written.with_name("kept"))
    begin_again().close()


def test_a_restarted_ledger_is_as_hard_to_change_as_any(begin_again: Make, path: Path) -> None:
    begin_again().close()
    by_force(path, "UPDATE events SET payload = replace(payload, '0x1.0000000000000p+3', '0x1.0000000000000p+2')")
    with pytest.raises(LedgerBroken, match="changed after it was written"):
        Ledger.open(path, signer=KEYS)
