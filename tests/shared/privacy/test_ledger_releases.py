"""A release is a mechanism of its own: spent before any data are touched, at most once, and the filter answers for everything after it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting
import pytest
from dp_accounting.rdp import RdpAccountant

from shared.errors import BudgetExhausted, LedgerBroken, LedgerError
from shared.privacy.accountant import epsilon_at_order, epsilon_pld
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_schema import Event
from shared.privacy.mechanism import Mechanism
from tests.shared.privacy.bookshop import KEYS, audited

Make = Callable[..., Ledger]
Act = Callable[..., None]
Gaussian = Callable[..., Mechanism]
Release = Callable[..., Event]

DELTA = 1e-5


def counting(sigma: float = 8.0) -> Mechanism:
    return Mechanism(kind="gaussian", sampling_rate=1.0, noise_multiplier=sigma, clip_norm=1.0, grid=0.0, dimension=1, steps=1)


def release(ledger: Ledger, release_id: str = "how many", **changes: Any) -> Event:
    return ledger.release(**{"release_id": release_id, "purpose": "count", "mechanism": counting(), "config_hash": "r" * 64, **changes})


def kinds(ledger: Ledger) -> list[str]:
    return [event.kind for event in ledger.events()]


def test_a_release_is_spent_when_it_is_booked(new_ledger: Make, path: Path) -> None:
    with new_ledger() as ledger:
        event = release(ledger)
        assert (event.kind, event.seq, ledger.head_hash) == ("release", 2, event.hash)
        order = ledger.filter_order
        assert order is not None
        assert ledger.epsilon_spent() == epsilon_at_order([counting()], DELTA, order) > 0
        assert (ledger.count_of_intents, ledger.spent_events()) == (0, [counting()])
        spent = ledger.epsilon_spent()
    with Ledger.open(path, signer=KEYS) as ledger:
        assert (ledger.epsilon_spent(), ledger.spent_events()) == (spent, [counting()])


def test_the_same_release_is_debited_once(new_ledger: Make, path: Path) -> None:
    with new_ledger() as ledger:
        first, spent = release(ledger), ledger.epsilon_spent()
        assert release(ledger) == first
        assert kinds(ledger) == ["genesis", "release"]
    with Ledger.open(path, signer=KEYS) as ledger:
        assert release(ledger) == first
        assert (kinds(ledger), ledger.epsilon_spent()) == (["genesis", "release"], spent)
        release(ledger, "how many again")
        assert ledger.epsilon_spent() > spent


@pytest.mark.parametrize("change", [{"purpose": "metric"}, {"mechanism": counting(7.0)}, {"config_hash": "s" * 64}])
def test_another_release_never_hides_behind_an_id(new_ledger: Make, change: dict[str, Any]) -> None:
    with new_ledger() as ledger:
        release(ledger)
        before = (ledger.epsilon_spent(), ledger.head_hash)
        with pytest.raises(LedgerError, match="another release"):
            release(ledger, **change)
        assert (ledger.epsilon_spent(), ledger.head_hash) == before


def test_runs_and_releases_compose_as_the_library_composes_them(new_ledger: Make, admit: Act, do_round: Act, gaussian: Gaussian) -> None:
    with new_ledger(ceiling_epsilon=20.0) as ledger:
        admit(ledger, rounds=5, reserve=1)
        for round in range(1, 6):
            do_round(ledger, round)
        release(ledger, "how many")
        release(ledger, "what is liked", purpose="popularity", mechanism=counting(4.0))
        release(ledger, "how well", purpose="metric")
        order, spent = ledger.filter_order, ledger.epsilon_spent()
    accountant = RdpAccountant(orders=[order])
    accountant.compose(dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(1.0)), 50)
    for sigma in (8.0, 4.0, 8.0):
        accountant.compose(dp_accounting.GaussianDpEvent(sigma))
    assert spent == pytest.approx(float(accountant.get_epsilon(DELTA)), abs=1e-9)
    assert spent > epsilon_pld([gaussian(steps=50), counting(), counting(4.0), counting()], DELTA)


def test_a_release_makes_the_life_adaptive(new_ledger: Make, admit: Act, path: Path) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        assert not ledger.adaptive
        release(ledger)
        assert ledger.adaptive
        admit(ledger, run_id="winter")
    decided = [event.payload["decided_by"] for event in audited(path)[1] if "decided_by" in event.payload]
    assert decided == ["pld", "rdp-filter", "rdp-filter"]


def test_after_a_release_the_first_plan_is_up_to_the_filter(new_ledger: Make, admit: Act, gaussian: Gaussian) -> None:
    ceiling = epsilon_pld([gaussian(steps=200)], DELTA) + 0.2
    with new_ledger(ceiling_epsilon=ceiling) as ledger:
        admit(ledger, rounds=20, reserve=0)  # alone, by PLD, it fits
    with Ledger.create(
        ledger._file.path.with_name("second.sqlite"), signer=KEYS, domain="books", ceiling_epsilon=ceiling, delta=DELTA, set_by="x"
    ) as ledger:
        release(ledger, mechanism=counting(100.0))
        with pytest.raises(BudgetExhausted):
            admit(ledger, rounds=20, reserve=0)


def test_a_first_release_is_held_to_what_it_counts_for_afterwards(new_ledger: Make) -> None:
    """PLD lets it pass, the filter does not; were PLD asked, more would be spent by the filter than the ceiling permits."""
    large = counting(5.0)
    with new_ledger(ceiling_epsilon=epsilon_pld([large], DELTA) + 0.01) as ledger:
        with pytest.raises(BudgetExhausted) as refusal:
            release(ledger, mechanism=large)
        assert refusal.value.requested > refusal.value.remaining
        assert (kinds(ledger), ledger.spent_events(), ledger.adaptive) == (["genesis", "refused"], [], False)


def test_a_release_above_the_ceiling_is_recorded_and_spends_nothing(new_ledger: Make, path: Path, admit: Act, do_round: Act) -> None:
    with new_ledger(ceiling_epsilon=6.0) as ledger:
        admit(ledger, rounds=3, reserve=1)
        do_round(ledger, 1)
        before = (ledger.epsilon_spent(), ledger.epsilon_reserved(), ledger.spent_events(), ledger.adaptive, ledger.intents_left("autumn"))
        for _ in range(3):
            with pytest.raises(BudgetExhausted) as refusal:
                release(ledger, mechanism=counting(0.5))
        now = (ledger.epsilon_spent(), ledger.epsilon_reserved(), ledger.spent_events(), ledger.adaptive, ledger.intents_left("autumn"))
        assert now == before
        do_round(ledger, 2)
    refused = [event.payload for event in audited(path)[1] if event.kind == "refused"]
    assert [(said["run_id"], said["round"], said["intents"]) for said in refused] == [("how many", 0, 1)]
    assert float.fromhex(refused[0]["requested"]) == refusal.value.requested > refusal.value.remaining


def test_what_a_run_reserved_is_not_there_for_a_release(new_ledger: Make, admit: Act) -> None:
    with new_ledger(ceiling_epsilon=5.6) as ledger:
        admit(ledger, rounds=20, reserve=0)
        with pytest.raises(BudgetExhausted):
            release(ledger, mechanism=counting(2.0))
        ledger.end_run("autumn")
        release(ledger, mechanism=counting(2.0))


def test_a_first_plan_that_the_filter_does_not_cover_leaves_no_room_for_a_release(new_ledger: Make, admit: Act, gaussian: Gaussian) -> None:
    with new_ledger(ceiling_epsilon=epsilon_pld([gaussian(steps=200)], DELTA) + 1e-6) as ledger:
        admit(ledger, rounds=20, reserve=0)
        ledger.end_run("autumn")  # nothing was spent, yet
        with pytest.raises(BudgetExhausted) as refusal:
            release(ledger, mechanism=counting(1000.0))
        assert refusal.value.remaining == 0.0
        assert "filter decides, which counts the first plan at 5.37 by itself" in refusal.value.what


def test_the_order_that_a_first_release_fixes_holds_for_life(new_ledger: Make, admit: Act, path: Path) -> None:
    with new_ledger(ceiling_epsilon=30.0) as ledger:
        release(ledger)
        order = ledger.filter_order
        admit(ledger)
        ledger.raise_ceiling(40.0, raised_by="the bookshop", why="more seasons")
        release(ledger, "another", mechanism=counting(1.0))
        assert ledger.filter_order == order
    orders = {event.payload["filter_order"] for event in audited(path)[1] if "filter_order" in event.payload}
    assert orders == {order.hex() if order is not None else None}


@pytest.mark.parametrize(
    "change", [{"purpose": "curiosity"}, {"release_id": ""}, {"release_id": "x" * 2001}, {"config_hash": ""}, {"release_id": "a\0b"}]
)
def test_a_release_that_cannot_be_written_down_is_refused_and_not_spent(new_ledger: Make, change: dict[str, Any]) -> None:
    with new_ledger() as ledger:
        with pytest.raises(LedgerError):
            release(ledger, **change)
        assert (kinds(ledger), ledger.spent_events(), ledger.epsilon_spent()) == (["genesis"], [], 0.0)


def test_a_release_without_noise_never_enters_a_private_ledger(new_ledger: Make, gaussian: Gaussian) -> None:
    with new_ledger() as ledger:
        with pytest.raises(LedgerError, match="without noise"):
            release(ledger, mechanism=gaussian(kind="none", noise_multiplier=0.0))
        assert kinds(ledger) == ["genesis"]


def test_a_ledger_that_says_not_private_takes_it_and_answers_infinity(new_ledger: Make, path: Path, gaussian: Gaussian) -> None:
    with new_ledger(private=False, ceiling_epsilon=math.inf) as ledger:
        event = release(ledger, mechanism=gaussian(kind="none", noise_multiplier=0.0))
        assert (event.payload["decided_by"], event.payload["filter_order"]) == ("none", None)
        assert ledger.epsilon_spent() == math.inf
        release(ledger, "with noise")
        assert ledger.epsilon_spent() == math.inf
    assert not audited(path)[0].private


def forged(**changes: Any) -> dict[str, Any]:
    said = {"release_id": "how many", "purpose": "count", "mechanism": counting().to_record(), "config_hash": "r" * 64}
    return {**said, "decided_by": "rdp-filter", "filter_order": None, "payload_sha256": None, **changes}


@pytest.mark.parametrize(
    "change",
    [
        {"release_id": "how many", "filter_order": "same"},
        {"release_id": "other", "filter_order": (63.0).hex()},
        {"release_id": "other", "purpose": "curiosity", "filter_order": "same"},
        {"release_id": "other", "decided_by": "nobody", "filter_order": "same"},
        {"release_id": "other", "epsilon": (0.0).hex(), "filter_order": "same"},
        {"release_id": "other", "mechanism": {**counting().to_record(), "kind": "none"}, "filter_order": "same"},
        {"release_id": "other", "mechanism": {**counting().to_record(), "noise_multiplier": "inf"}, "filter_order": "same"},
    ],
)
def test_a_release_that_no_release_could_have_written_is_refused(
    new_ledger: Make, path: Path, forge: Callable[..., None], change: dict[str, Any]
) -> None:
    with new_ledger() as ledger:
        release(ledger)
        order = ledger.filter_order
    assert order is not None
    if change.get("filter_order") == "same":
        change = {**change, "filter_order": order.hex()}
    forge(path, "release", forged(**change))
    with pytest.raises(LedgerBroken, match="event 3"):
        Ledger.open(path, signer=KEYS)


def test_the_first_release_fixes_the_order_or_the_file_is_refused(new_ledger: Make, path: Path, forge: Callable[..., None]) -> None:
    new_ledger().close()
    forge(path, "release", forged())
    with pytest.raises(LedgerBroken, match="fixes the order"):
        Ledger.open(path, signer=KEYS)


def test_a_raise_below_what_the_filter_counts_already_is_refused(new_ledger: Make, admit: Act, gaussian: Gaussian) -> None:
    ceiling = epsilon_pld([gaussian(steps=200)], DELTA) + 1e-6  # 4.77; the filter counts 5.37 for the same plan
    with new_ledger(ceiling_epsilon=ceiling) as ledger:
        admit(ledger, rounds=20, reserve=0)
        with pytest.raises(LedgerError, match=r"counts 5\.37"):
            ledger.raise_ceiling(5.0, raised_by="the bookshop", why="a little more")
        assert (ledger.ceiling_epsilon, ledger.adaptive) == (ceiling, False)
        ledger.raise_ceiling(5.4, raised_by="the bookshop", why="enough")
        assert ledger.epsilon_spent() <= ledger.epsilon_reserved() <= ledger.ceiling_epsilon
