"""A run's plan carries the coordinator's signature for life: the run goes on under it, or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import LedgerBroken, LedgerError
from shared.privacy.audit import verify
from shared.privacy.findings import Status
from shared.privacy.ledger import Ledger, read_events
from tests.shared.privacy.bookshop import KEYS

Make = Callable[..., Any]
Act = Callable[..., None]
FIRST, OTHER = "1a" * 64, "2b" * 64


def recorded(path: Path) -> list[Any]:
    return [event.payload["plan_signature"] for event in read_events(path) if event.kind == "schedule"]


@pytest.mark.parametrize("signature", [None, FIRST])
def test_a_resumed_run_is_admitted_once_under_its_contract(
    new_ledger: Make, path: Path, admit: Act, do_round: Act, signature: str | None
) -> None:
    with new_ledger() as ledger:
        admit(ledger, plan_signature=signature)
        do_round(ledger, 1)
    with Ledger.open(path, signer=KEYS) as ledger:
        admit(ledger, plan_signature=signature)
        do_round(ledger, 2)
    assert recorded(path) == [signature]


@pytest.mark.parametrize(("before", "after"), [(FIRST, OTHER), (FIRST, None), (None, FIRST)])
def test_another_contract_under_the_same_run_id_is_another_plan(
    new_ledger: Make, path: Path, admit: Act, before: str | None, after: str | None
) -> None:
    with new_ledger() as ledger:
        admit(ledger, plan_signature=before)
    with Ledger.open(path, signer=KEYS) as ledger, pytest.raises(LedgerError, match="another plan"):
        admit(ledger, plan_signature=after)
    assert recorded(path) == [before]


@pytest.mark.parametrize("signature", ["", "00", "g" * 128, FIRST.upper(), FIRST + "00", 7, True, b"1a" * 64])
def test_what_is_no_signature_is_never_written(new_ledger: Make, path: Path, admit: Act, signature: Any) -> None:
    with new_ledger() as ledger, pytest.raises(LedgerError, match="'plan_signature'"):
        admit(ledger, plan_signature=signature)
    assert recorded(path) == []


def test_a_run_that_is_ended_keeps_its_contract(new_ledger: Make, path: Path, admit: Act, do_round: Act) -> None:
    with new_ledger() as ledger:
        admit(ledger, plan_signature=FIRST)
        do_round(ledger, 1)
        ledger.end_run("autumn")
    assert recorded(path) == [FIRST, FIRST]
    with Ledger.open(path, signer=KEYS) as ledger, pytest.raises(LedgerError, match="was ended"):
        admit(ledger, plan_signature=FIRST)


@pytest.mark.parametrize("signature", [None, OTHER])
def test_a_ledger_that_ends_a_run_under_another_contract_does_not_hold(
    new_ledger: Make, path: Path, admit: Act, do_round: Act, forge: Make, signature: str | None
) -> None:
    with new_ledger() as ledger:
        admit(ledger, plan_signature=FIRST)
        do_round(ledger, 1)
    (plan,) = (event.payload for event in read_events(path) if event.kind == "schedule")
    forge(path, "schedule", {**plan, "permitted_intents": 1, "plan_signature": signature})
    with pytest.raises(LedgerBroken, match="a plan may only be cut short"):
        Ledger.open(path, signer=KEYS)


def test_an_audit_says_of_each_plan_once_whether_it_was_signed(new_ledger: Make, path: Path, admit: Act, do_round: Act) -> None:
    with new_ledger() as ledger:
        admit(ledger, run_id="autumn", plan_signature=FIRST)
        do_round(ledger, 1)
        ledger.end_run("autumn")
        admit(ledger, run_id="winter")
    found = verify(path, key=KEYS.verify_key)
    said = [(one.event, one.what) for one in found.findings if one.code == "contract"]
    assert said == [
        (2, f"the plan of run autumn was signed by the coordinator ({FIRST[:16]})"),
        (6, "the plan of run winter carries no coordinator's signature"),
    ]
    assert found.status is Status.INTACT  # a remark: whether unsigned runs are wanted is the partner's affair
