"""A ledger with one run: the plan is reserved as a whole, an intent is spent before anything is trained, nothing passes the ceiling."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import BudgetExhausted, LedgerBroken, LedgerError
from shared.privacy.accountant import epsilon_pld
from shared.privacy.ledger import Ledger, read_events
from shared.privacy.mechanism import Mechanism
from shared.privacy.signing import event_message, holds
from tests.shared.privacy.bookshop import KEYS

Make = Callable[..., Ledger]
Act = Callable[..., None]
Intend = Callable[..., int]
Gaussian = Callable[..., Mechanism]


def test_a_new_ledger_says_whose_budget_it_is_and_has_spent_nothing(new_ledger: Make, path: Path) -> None:
    with new_ledger() as ledger:
        assert (ledger.domain, ledger.ceiling_epsilon, ledger.delta, ledger.private) == ("books", 8.0, 1e-5, True)
        assert (ledger.count_of_intents, ledger.epsilon_spent(), ledger.spent_events()) == (0, 0.0, [])
    (genesis,) = read_events(path)
    assert genesis.payload["unit"] == "user"
    assert genesis.payload["set_by"] == "the bookshop"
    assert genesis.payload["last_receipt"] is None
    assert genesis.payload["verify_key"] == KEYS.verify_key
    assert holds(KEYS.verify_key, event_message(genesis.hash), genesis.signature or b"")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_domain_has_one_ledger_for_life(new_ledger: Make, path: Path) -> None:
    new_ledger().close()
    with pytest.raises(LedgerError, match="already"):
        new_ledger()
    path.unlink()
    with pytest.raises(LedgerBroken, match="gone"):
        new_ledger()
    with pytest.raises(LedgerError, match="no ledger"):
        Ledger.open(path, signer=KEYS)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0, 0.0, 5e-324])
def test_a_ceiling_without_meaning_is_refused(new_ledger: Make, path: Path, wrong: float) -> None:
    with pytest.raises(LedgerError, match="ceiling"):
        new_ledger(ceiling_epsilon=wrong)
    assert not path.exists()


@pytest.mark.parametrize("wrong", [math.nan, 0.0, 1.0, -1e-6, 5e-324])
def test_a_delta_without_meaning_is_refused(new_ledger: Make, path: Path, wrong: float) -> None:
    with pytest.raises(LedgerError, match="delta"):
        new_ledger(delta=wrong)
    assert not path.exists()


def test_a_round_is_spent_by_its_intent_whether_it_is_committed_or_not(new_ledger: Make, path: Path, admit: Act, intend: Intend) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        assert ledger.epsilon_spent() == 0.0
        assert intend(ledger, 1) == 1
        # ... and the power goes out before training
    with Ledger.open(path, signer=KEYS) as ledger:
        assert ledger.count_of_intents == 1
        assert ledger.epsilon_spent() == epsilon_pld(ledger.spent_events(), 1e-5) > 0
        assert intend(ledger, 1) == 2  # the attempt that was lost is debited again
        assert ledger.count_of_intents == 2


def test_the_epsilon_spent_is_that_of_all_intents_together(new_ledger: Make, admit: Act, do_round: Act, gaussian: Gaussian) -> None:
    with new_ledger() as ledger:
        admit(ledger, rounds=20, reserve=0)
        for round in range(1, 21):
            do_round(ledger, round)
        assert ledger.epsilon_spent() == pytest.approx(4.766, abs=1e-3)  # 20 rounds of 10 steps
        assert ledger.spent_events() == [gaussian()] * 20


def test_a_committed_round_is_never_computed_again(new_ledger: Make, path: Path, admit: Act, intend: Intend, do_round: Act) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        do_round(ledger, 1)
        with pytest.raises(LedgerError, match="committed"):
            intend(ledger, 1)
        assert ledger.count_of_intents == 1
    with Ledger.open(path, signer=KEYS) as ledger:
        assert ledger.committed("autumn", 1) == "d" * 64
        assert ledger.committed("autumn", 2) is None
        assert ledger.committed("winter", 1) is None


def test_a_commit_needs_the_last_attempt_and_says_one_thing_only(new_ledger: Make, admit: Act, intend: Intend) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        lost, last = intend(ledger, 1), intend(ledger, 1)
        for attempt in (lost, last + 1):
            with pytest.raises(LedgerError, match="no open attempt"):
                ledger.commit(run_id="autumn", round=1, attempt=attempt, payload_sha256="d" * 64)
        ledger.commit(run_id="autumn", round=1, attempt=last, payload_sha256="d" * 64)
        ledger.commit(run_id="autumn", round=1, attempt=last, payload_sha256="d" * 64)  # sent again: nothing happens
        with pytest.raises(LedgerError):
            ledger.commit(run_id="autumn", round=1, attempt=last, payload_sha256="e" * 64)
        with pytest.raises(LedgerError):
            ledger.commit(run_id="winter", round=1, attempt=1, payload_sha256="d" * 64)
        assert [event.kind for event in ledger.events()] == ["genesis", "schedule", "intent", "intent", "commit"]


@pytest.mark.parametrize("digest", ["", "d" * 63, "D" * 64, "a row of data", None])
def test_a_digest_that_is_none_is_refused(new_ledger: Make, admit: Act, intend: Intend, digest: str) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        intend(ledger, 1)
        with pytest.raises(LedgerError, match="payload_sha256"):
            ledger.commit(run_id="autumn", round=1, attempt=1, payload_sha256=digest)
        assert ledger.committed("autumn", 1) is None


def test_a_plan_above_the_ceiling_reserves_nothing_and_is_recorded(new_ledger: Make, path: Path, admit: Act, intend: Intend) -> None:
    with new_ledger(ceiling_epsilon=4.0) as ledger:
        with pytest.raises(BudgetExhausted, match=r"ceiling 4\.00") as refusal:
            admit(ledger, rounds=20, reserve=0)
        assert refusal.value.requested == pytest.approx(4.766, abs=1e-3)
        assert (refusal.value.remaining, refusal.value.ceiling) == (4.0, 4.0)
        with pytest.raises(BudgetExhausted):
            intend(ledger, 1)
        assert (ledger.count_of_intents, ledger.epsilon_spent()) == (0, 0.0)
    refused = [event for event in read_events(path) if event.kind == "refused"]
    assert [(event.payload["round"], event.payload["intents"]) for event in refused] == [(0, 20), (1, 1)]
    assert float.fromhex(refused[0].payload["requested"]) == refusal.value.requested


def test_the_reserve_counts_when_the_plan_is_admitted(new_ledger: Make, admit: Act, gaussian: Gaussian) -> None:
    ceiling = epsilon_pld([gaussian(steps=100)], 1e-5)
    with new_ledger(ceiling_epsilon=ceiling) as ledger:
        with pytest.raises(BudgetExhausted):
            admit(ledger, rounds=10, reserve=1)
        admit(ledger, rounds=9, reserve=1)
        assert ledger.epsilon_reserved() == ceiling


def test_the_reserve_pays_lost_attempts_until_it_is_used_up(new_ledger: Make, admit: Act, intend: Intend, do_round: Act) -> None:
    with new_ledger() as ledger:
        admit(ledger, rounds=3, reserve=1)
        intend(ledger, 1)  # lost
        for round in (1, 2):
            do_round(ledger, round)
        intend(ledger, 3)  # lost too, and there was one in reserve
        before = (ledger.count_of_intents, ledger.epsilon_spent(), ledger.spent_events())
        with pytest.raises(BudgetExhausted, match="used up") as refusal:
            intend(ledger, 3)
        assert refusal.value.remaining == 0.0
        assert refusal.value.requested > 0
        assert (ledger.count_of_intents, ledger.epsilon_spent(), ledger.spent_events()) == before


def test_asking_again_at_once_does_not_fill_the_disk_with_refusals(new_ledger: Make, admit: Act) -> None:
    with new_ledger(ceiling_epsilon=1.0) as ledger:
        for _ in range(5):
            with pytest.raises(BudgetExhausted):
                admit(ledger, rounds=20)
        assert [event.kind for event in ledger.events()] == ["genesis", "refused"]


def test_a_resumed_run_is_admitted_once(new_ledger: Make, path: Path, admit: Act, do_round: Act) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        do_round(ledger, 1)
    with Ledger.open(path, signer=KEYS) as ledger:
        admit(ledger)
        do_round(ledger, 2)
        assert [event.kind for event in ledger.events()].count("schedule") == 1
        assert not ledger.adaptive


@pytest.mark.parametrize("change", [{"rounds": 4}, {"reserve": 2}, {"config_hash": "e" * 64}, {"mechanism": {"noise_multiplier": 0.9}}])
def test_another_plan_under_the_same_run_id_is_refused(new_ledger: Make, admit: Act, gaussian: Gaussian, change: dict[str, object]) -> None:
    if isinstance(change.get("mechanism"), dict):
        change = {"mechanism": gaussian(noise_multiplier=0.9)}
    with new_ledger() as ledger:
        admit(ledger)
        with pytest.raises(LedgerError, match="another plan"):
            admit(ledger, **change)


@pytest.mark.parametrize("change", [{"config_hash": "e" * 64}, {"steps": 11}, {"noise_multiplier": 0.99}, {"clip_norm": 1.0}])
def test_an_intent_that_is_not_what_was_admitted_is_refused(
    new_ledger: Make, admit: Act, intend: Intend, gaussian: Gaussian, change: dict[str, object]
) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        with pytest.raises(LedgerError, match="another mechanism or configuration"):
            intend(ledger, 1, **(change if "config_hash" in change else {"mechanism": gaussian(**change)}))
        assert ledger.count_of_intents == 0


@pytest.mark.parametrize("round", [0, -1, 4, 1.0, True])
def test_a_round_outside_the_plan_is_refused(new_ledger: Make, admit: Act, intend: Intend, round: int) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        with pytest.raises(LedgerError, match="not one of the 3 rounds"):
            intend(ledger, round)
        assert ledger.count_of_intents == 0


@pytest.mark.parametrize(("rounds", "reserve"), [(0, 1), (-1, 0), (1, -1), (1.0, 0), (True, 0)])
def test_a_plan_of_no_rounds_is_refused(new_ledger: Make, admit: Act, rounds: int, reserve: int) -> None:
    with new_ledger() as ledger, pytest.raises(LedgerError, match="at least one round"):
        admit(ledger, rounds=rounds, reserve=reserve)


def test_a_step_without_noise_never_enters_a_private_ledger(new_ledger: Make, admit: Act, gaussian: Gaussian) -> None:
    with new_ledger() as ledger:
        with pytest.raises(LedgerError, match="without noise"):
            admit(ledger, mechanism=gaussian(kind="none"))
        assert [event.kind for event in ledger.events()] == ["genesis"]


def test_a_ledger_that_says_not_private_takes_it_and_answers_infinity(
    new_ledger: Make, path: Path, admit: Act, do_round: Act, gaussian: Gaussian
) -> None:
    silent = gaussian(kind="none", noise_multiplier=0.0)
    with new_ledger(private=False, ceiling_epsilon=math.inf) as ledger:
        admit(ledger, mechanism=silent)
        do_round(ledger, 1, mechanism=silent)
        assert ledger.epsilon_spent() == math.inf
    with Ledger.open(path, signer=KEYS) as ledger:
        assert (ledger.private, ledger.ceiling_epsilon, ledger.epsilon_spent()) == (False, math.inf, math.inf)
        admit(ledger, run_id="winter")  # a build with seeded noise carries an ordinary mechanism
        do_round(ledger, 1, run_id="winter")
        assert ledger.epsilon_spent() == math.inf


def test_a_build_with_seeded_noise_is_held_to_its_ceiling_too(new_ledger: Make, admit: Act) -> None:
    with new_ledger(private=False, ceiling_epsilon=1.0) as ledger, pytest.raises(BudgetExhausted):
        admit(ledger, rounds=20)


def test_reading_goes_on_beside_the_writer_and_writes_nothing(new_ledger: Make, path: Path, admit: Act, intend: Intend) -> None:
    with new_ledger() as ledger:
        admit(ledger)
        intend(ledger, 1)
        with Ledger.open(path, read_only=True) as reader:
            assert (reader.count_of_intents, reader.head_hash) == (1, ledger.head_hash)
            with pytest.raises(LedgerError, match="reading only"):
                intend(reader, 2)
        intend(ledger, 2)
        assert len(read_events(path)) == 4
        assert [event.payload["round"] for event in ledger.intents()] == [1, 2]


def test_a_closed_ledger_does_nothing_more(new_ledger: Make, admit: Act) -> None:
    ledger = new_ledger()
    ledger.close()
    ledger.close()
    with pytest.raises(LedgerError, match="closed"):
        admit(ledger)


def test_a_text_that_is_too_long_or_hides_control_characters_is_refused(new_ledger: Make) -> None:
    with new_ledger() as ledger:
        ledger.note("the run of autumn ended as planned")
        for text in ("", "x" * 2001, "a\0b", "\ud800", 7):
            with pytest.raises(LedgerError, match="'text'"):
                ledger.note(text)  # type: ignore[arg-type]
        assert [event.kind for event in ledger.events()] == ["genesis", "note"]
