"""Recorded numbers and decisions, computed anew: what an event says it cost, against what the events before it give.

The accountants are libraries, and a later version of them may give another digit. So a number may be off by two widths of the grid; a
decision, or a number further off, is one that no run has made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import BudgetExhausted
from .accountant import running_interval
from .budget import Budget, Decision, Life, decide, decide_release, epsilon_of
from .findings import Finding, Status
from .ledger_book import Book
from .ledger_schema import Event, mechanism_of
from .mechanism import Mechanism

KINDS = frozenset({"genesis", "schedule", "release", "ceiling", "refused"})
"""Events that record a number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """What a decision was made from.

    Attributes:
        others: open plans of other runs than the event's; None where the event's run is new.
    """

    budget: Budget
    life: Life
    others: tuple[Mechanism, ...] | None

    @classmethod
    def of(cls, book: Book, event: Event) -> Before:
        run = event.payload.get("run_id")
        open_plans = [plan for plan in book.plans.values() if plan.open_intents and plan.run_id != run]
        known = event.kind == "schedule" and run in book.plans
        return cls(budget=book.budget, life=book.life, others=tuple(plan.reserved for plan in open_plans) if known else None)


def check_numbers(event: Event, before: Before) -> Iterator[Finding]:
    """What an event of `KINDS`, which the book has accepted, records wrongly."""
    if event.kind == "genesis":
        yield from _genesis(event)
    elif event.kind == "schedule" and before.others is not None:
        yield from _cut(event, before, before.others)
    elif event.kind in ("schedule", "release"):
        yield from _decision(event, before)
    elif event.kind == "ceiling":
        spent = _epsilon(before, before.life.spent)
        yield from _same(event, "epsilon_spent", spent, before.budget)
    elif event.payload["ceiling_epsilon"] != before.budget.ceiling_epsilon.hex():
        yield _wrong(event, "it records another ceiling than the one that was in force")


def close(recorded: float, computed: float, budget: Budget) -> bool:
    """Whether two epsilons are the same number, from the same accountant in two versions."""
    return recorded == computed or abs(recorded - computed) <= 2.0 * budget.interval + 1e-9 * abs(computed)


def _genesis(event: Event) -> Iterator[Finding]:
    ceiling, interval = (float.fromhex(event.payload[name]) for name in ("ceiling_epsilon", "pld_interval"))
    if interval != running_interval(ceiling):
        yield _wrong(event, "its grid is not the one that goes with its ceiling")


def _decision(event: Event, before: Before) -> Iterator[Finding]:
    said = event.payload
    order = None if said["filter_order"] is None else float.fromhex(said["filter_order"])
    if order is not None and not 1.0 < order < math.inf:
        yield _wrong(event, "the order of the filter is none that a divergence has")
        return
    mechanism = mechanism_of(said["mechanism"])
    try:
        if event.kind == "release":
            made = decide_release(before.budget, before.life, mechanism, what="")
        else:
            made = decide(before.budget, before.life, mechanism, said["permitted_intents"], what="")
    except BudgetExhausted as refusal:
        taken = before.budget.ceiling_epsilon - refusal.remaining
        what = (
            f"a {'plan' if event.kind == 'schedule' else 'release'} was admitted that does not fit: it needs epsilon "
            f"{refusal.requested:.4g} beside {taken:.4g} spent and reserved, and the ceiling is {refusal.ceiling:.4g}"
        )
        yield Finding(code="ceiling", event=event.seq, what=what, status=Status.EXCEEDED)
        return
    yield from _as_recorded(event, made, order, before)


def _as_recorded(event: Event, made: Decision, order: float | None, before: Before) -> Iterator[Finding]:
    said = event.payload
    if said["decided_by"] != made.decided_by:
        yield _wrong(event, f"it says that '{said['decided_by']}' decided, and '{made.decided_by}' did")
    if order != made.order:
        what = "the order of the filter is not the one that permits most; sound all the same, as it was fixed before any data"
        yield Finding(code="number", event=event.seq, what=what)
    if event.kind == "schedule":
        yield from _same(event, "epsilon_reserved", made.epsilon_reserved, before.budget)


def _cut(event: Event, before: Before, others: tuple[Mechanism, ...]) -> Iterator[Finding]:
    yield from _same(event, "epsilon_reserved", _epsilon(before, (*before.life.spent, *others)), before.budget)


def _epsilon(before: Before, events: tuple[Mechanism, ...]) -> float:
    return epsilon_of(events, before.budget, adaptive=before.life.adaptive, order=before.life.order)


def _same(event: Event, name: str, computed: float, budget: Budget) -> Iterator[Finding]:
    recorded = float.fromhex(event.payload[name])
    if not close(recorded, computed, budget):
        yield _wrong(event, f"it records '{name}' {recorded:.6g}, and the events before it give {computed:.6g}")


def _wrong(event: Event, why: str) -> Finding:
    return Finding(code="number", event=event.seq, what=f"event {event.seq} ({event.kind}): {why}", status=Status.BROKEN)
