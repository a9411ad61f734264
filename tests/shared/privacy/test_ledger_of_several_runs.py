"""From the second run on parameters may depend on outputs: a Renyi filter decides, at an order fixed before the first run."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import BudgetExhausted, LedgerError
from shared.privacy.accountant import epsilon_at_order, epsilon_pld
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.mechanism import Mechanism
from tests.shared.privacy.bookshop import KEYS

Make = Callable[..., Ledger]
Act = Callable[..., None]
Gaussian = Callable[..., Mechanism]


@pytest.fixture
def do_run(admit: Act, do_round: Act) -> Act:
    def act(ledger: Ledger, run_id: str, *, rounds: int = 3, reserve: int = 1, done: int | None = None, **changes: Any) -> None:
        admit(ledger, run_id=run_id, rounds=rounds, reserve=reserve, **changes)
        for round in range(1, (rounds if done is None else done) + 1):
            do_round(ledger, round, run_id=run_id, **changes)

    return act


def test_two_runs_add_up(new_ledger: Make, do_run: Act, gaussian: Gaussian) -> None:
    with new_ledger(ceiling_epsilon=20.0) as ledger:
        do_run(ledger, "autumn")
        first = ledger.epsilon_spent()
        assert first == epsilon_pld([gaussian(steps=30)], 1e-5)
        do_run(ledger, "winter")
        order = ledger.filter_order
        assert ledger.adaptive
        assert order is not None
        assert ledger.epsilon_spent() == epsilon_at_order([gaussian(steps=60)], 1e-5, order) > first


def test_a_run_that_would_pass_the_ceiling_by_the_filter_trains_nothing(new_ledger: Make, path: Path, do_run: Act, admit: Act) -> None:
    with new_ledger(ceiling_epsilon=8.0) as ledger:
        do_run(ledger, "autumn", rounds=15)
        before = (ledger.count_of_intents, ledger.epsilon_spent())
        with pytest.raises(BudgetExhausted) as refusal:
            admit(ledger, run_id="winter", rounds=40)
        assert refusal.value.requested > refusal.value.remaining > 0
        assert (ledger.count_of_intents, ledger.epsilon_spent()) == before
        assert not ledger.adaptive  # a refused run changes nothing
    assert [event.kind for event in read_events(path)][-1] == "refused"


def test_a_second_run_that_pld_would_let_pass_is_up_to_the_filter(new_ledger: Make, do_run: Act, admit: Act, gaussian: Gaussian) -> None:
    rounds = 40
    ceiling = epsilon_pld([gaussian(steps=20 * rounds)], 1e-5) + 0.1
    with new_ledger(ceiling_epsilon=ceiling) as ledger:
        do_run(ledger, "autumn", rounds=rounds, reserve=0)
        with pytest.raises(BudgetExhausted):
            admit(ledger, run_id="winter", rounds=rounds, reserve=0)


def test_the_order_is_fixed_by_the_first_plan_and_never_changes(new_ledger: Make, path: Path, do_run: Act, gaussian: Gaussian) -> None:
    with new_ledger(ceiling_epsilon=20.0) as ledger:
        do_run(ledger, "autumn")
        order = ledger.filter_order
        do_run(ledger, "winter", mechanism=gaussian(noise_multiplier=6.0))
        ledger.raise_ceiling(30.0, raised_by="the bookshop", why="a third season")
        do_run(ledger, "spring")
        assert ledger.filter_order == order
    schedules = [event.payload for event in read_events(path) if event.kind == "schedule"]
    assert [schedule["decided_by"] for schedule in schedules] == ["pld", "rdp-filter", "rdp-filter"]
    assert {float.fromhex(schedule["filter_order"]) for schedule in schedules} == {order}


def test_what_an_unfinished_run_reserved_is_not_lent_to_another(new_ledger: Make, do_run: Act, admit: Act) -> None:
    with new_ledger(ceiling_epsilon=10.0) as ledger:
        do_run(ledger, "autumn", rounds=40, done=1)
        assert ledger.intents_left("autumn") == 40
        with pytest.raises(BudgetExhausted):
            admit(ledger, run_id="winter", rounds=40)
        ledger.end_run("autumn")
        admit(ledger, run_id="winter", rounds=40)


def test_a_run_that_was_ended_cannot_go_on(new_ledger: Make, path: Path, do_run: Act, do_round: Act, admit: Act) -> None:
    with new_ledger(ceiling_epsilon=10.0) as ledger:
        do_run(ledger, "autumn", rounds=5, done=1)
        spent = ledger.epsilon_spent()
        ledger.end_run("autumn")
        ledger.end_run("autumn")
        assert (ledger.epsilon_spent(), ledger.epsilon_reserved()) == (spent, spent)
    with Ledger.open(path, signer=KEYS) as ledger:
        with pytest.raises(BudgetExhausted):
            do_round(ledger, 2)
        with pytest.raises(LedgerError, match="ended"):
            admit(ledger, rounds=5)
        with pytest.raises(LedgerError, match="not admitted"):
            ledger.end_run("winter")


def test_the_reserve_of_a_completed_run_is_free_because_nothing_can_spend_it(new_ledger: Make, do_run: Act) -> None:
    with new_ledger(ceiling_epsilon=10.0) as ledger:
        do_run(ledger, "autumn", rounds=3, reserve=40)
        assert ledger.intents_left("autumn") == 0
        assert ledger.epsilon_reserved() == ledger.epsilon_spent()
        do_run(ledger, "winter", rounds=3, reserve=10)


def test_a_first_run_that_the_filter_does_not_cover_leaves_no_room_however_early_it_stopped(
    new_ledger: Make, path: Path, do_run: Act, admit: Act, gaussian: Gaussian
) -> None:
    ceiling = epsilon_pld([gaussian(steps=200)], 1e-5) + 1e-6  # PLD admits it, 4.77; at its best order RDP says 5.37
    with new_ledger(ceiling_epsilon=ceiling) as ledger:
        do_run(ledger, "autumn", rounds=20, reserve=0, done=1)
        ledger.end_run("autumn")
        with pytest.raises(BudgetExhausted) as refusal:
            admit(ledger, run_id="winter", rounds=1, reserve=0)
        assert refusal.value.remaining == 0.0
        assert "filter decides, which counts the first plan at 5.37 by itself, above the ceiling of 4.77" in refusal.value.what
        ledger.raise_ceiling(6.0, raised_by="the bookshop", why="a second run")
        admit(ledger, run_id="winter", rounds=1, reserve=0)


def test_a_raised_ceiling_is_on_record_and_only_goes_up(new_ledger: Make, path: Path, do_run: Act) -> None:
    with new_ledger(ceiling_epsilon=8.0) as ledger:
        do_run(ledger, "autumn")
        for wrong in (8.0, 1.0, math.inf, math.nan):
            with pytest.raises(LedgerError, match="raised"):
                ledger.raise_ceiling(wrong, raised_by="the bookshop", why="more")
        ledger.raise_ceiling(12.0, raised_by="the bookshop", why="a second run")
        assert (ledger.ceiling_epsilon, ledger.adaptive) == (12.0, True)
    said = read_events(path)[-1].payload
    assert (said["raised_by"], said["why"], float.fromhex(said["previous_epsilon"])) == ("the bookshop", "a second run", 8.0)


def test_runs_side_by_side_share_the_ceiling(new_ledger: Make, admit: Act, do_round: Act) -> None:
    with new_ledger(ceiling_epsilon=10.0) as ledger:
        admit(ledger, run_id="autumn", rounds=10)
        admit(ledger, run_id="winter", rounds=10)
        with pytest.raises(BudgetExhausted):
            admit(ledger, run_id="spring", rounds=80)
        for round in range(1, 11):
            do_round(ledger, round, run_id="autumn")
            do_round(ledger, round, run_id="winter")
        assert ledger.epsilon_spent() <= 10.0
