r"""May a debit still be made? The ceiling, and the two ways to decide.

**While a domain's whole life is one schedule, fixed before any data are touched, PLD decides**: the cost of all its intents, reserve
included, is known in advance, and stopping early or losing attempts only leaves some of them out.

**From the second run on** (or after a raise of the ceiling, or a release outside the schedule) parameters may have been chosen after seeing
earlier outputs. Then a Renyi filter decides: the sum of the divergences of everything spent and everything still reserved, at one order
:math:`\alpha`, stays below the ceiling's :math:`\epsilon - c_\alpha` (Feldman & Zrnic 2021, theorem 4.3; Lecuyer 2021). Three conditions
make that sound, and all three are kept here:

1. :math:`\alpha` does not depend on outputs: it is chosen at the FIRST schedule, from that schedule and the ceiling, and recorded in it.
2. The filter covers the first run too. A first schedule that PLD admits but the filter would not, leaves no room for a second run, however
   early it stopped: otherwise one claim would rest on PLD along some paths and on the filter along others, and their deltas would add up.
3. What was reserved is counted until it can no longer be spent: until every round of the run is committed, or its plan was cut short.
   Giving back what a run did not spend is what a filter, unlike a fixed composition, permits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BudgetExhausted, LedgerError
from .accountant import epsilon_at_order, epsilon_pld, filter_order, running_interval
from .mechanism import Mechanism

_LEAST = 1e-100
"""Far below any meaning, and far above the numbers that lose digits."""

PLD = "pld"
RDP_FILTER = "rdp-filter"
NOTHING = "none"
"""Who decided: `NOTHING` only where the genesis says NOT PRIVATE and a step adds no noise."""

SPENT = "spent"
CEILING = "ceiling"
"""Which number is the claim. Where PLD decides, what is spent. Where the filter does, the ceiling: the theorem vouches for the bound that
was fixed in advance; a claim about what adaptive steps have spent so far would need an odometer, which costs more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a partner permits over the life of a domain.

    Attributes:
        ceiling_epsilon: above 0; infinite only where the ledger is not private.
        delta: fixed for life.
        interval: width of the PLD grid that decides, fixed at genesis so that a recomputation gives the same number.
        booked: epsilon that counts as spent from the start, because an earlier ledger was lost. It adds up with everything after by basic
            composition, and so do the deltas.
    """

    ceiling_epsilon: float
    delta: float
    interval: float
    booked: float = 0.0

    @classmethod
    def of(cls, ceiling_epsilon: float, delta: float) -> Budget:
        if not ceiling_epsilon >= _LEAST:
            raise LedgerError("the ceiling is not an epsilon above 0")
        if not _LEAST <= delta < 1.0:
            raise LedgerError("delta is not a probability between 0 and 1, both excluded")
        return cls(ceiling_epsilon=ceiling_epsilon, delta=delta, interval=running_interval(ceiling_epsilon))


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """Everything that may have been, or may still be, spent in a domain; equal mechanisms already put together.

    Attributes:
        spent: every intent and release, committed or not.
        reserved: what admitted plans may still spend.
        first_plan: the whole first schedule (or release) as it was admitted, reserve included; None before it.
        adaptive: whether parameters may have depended on outputs, so that the filter decides.
        order: Renyi order of the filter, as the first schedule (or release) recorded it; None before it.
    """

    spent: tuple[Mechanism, ...]
    reserved: tuple[Mechanism, ...]
    first_plan: Mechanism | None
    adaptive: bool
    order: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A permitted plan.

    Attributes:
        permitted_intents: how many intents of the plan may be made; from here on each of them is a comparison of two whole numbers.
        decided_by: `PLD`, `RDP_FILTER` or `NOTHING`.
        order: Renyi order of the filter for the rest of the life; None as long as no noise was ever added.
        epsilon_reserved: cost of all that is spent or reserved, this plan included.
    """

    permitted_intents: int
    decided_by: str
    order: float | None
    epsilon_reserved: float


def epsilon_of(events: Sequence[Mechanism], budget: Budget, *, adaptive: bool, order: float | None) -> float:
    """Cost of events by the accountant that decides in this life, and of what was booked."""
    if adaptive and order is not None:
        return budget.booked + epsilon_at_order(events, budget.delta, order)
    return budget.booked + epsilon_pld(events, budget.delta, interval=budget.interval)


def decide(budget: Budget, life: Life, mechanism: Mechanism, intents: int, *, what: str) -> Decision:
    """Permits a whole plan of ``intents`` times ``mechanism``, or none of it.

    Args:
        life: as it is before the plan.
        mechanism: of one intent.
        what: who asks, for the message of the refusal.

    Raises:
        BudgetExhausted: with what was requested, what remains, and the ceiling.
    """
    plan = mechanism.for_steps(mechanism.steps * intents)
    adaptive = life.adaptive or life.first_plan is not None
    order = life.order
    if order is None and mechanism.kind != "none":
        order = filter_order(mechanism, budget.ceiling_epsilon - budget.booked, budget.delta)
    before = (*life.spent, *life.reserved)
    after = epsilon_of((*before, plan), budget, adaptive=adaptive, order=order)
    if any(event.kind == "none" for event in (*before, plan)):
        return Decision(permitted_intents=intents, decided_by=NOTHING, order=order, epsilon_reserved=after)

    taken = epsilon_of(before, budget, adaptive=adaptive, order=order)
    remaining = max(0.0, budget.ceiling_epsilon - taken) if filter_covers_first_plan(budget, life) else 0.0
    if not after <= budget.ceiling_epsilon or remaining == 0.0:
        if why := why_nothing_follows(budget, life):
            what += f"\n  {why}"
        more = max(0.0, after - taken)
        raise BudgetExhausted(what, requested=more, remaining=remaining, ceiling=budget.ceiling_epsilon, delta=budget.delta)
    return Decision(permitted_intents=intents, decided_by=RDP_FILTER if adaptive else PLD, order=order, epsilon_reserved=after)


def decide_release(budget: Budget, life: Life, mechanism: Mechanism, *, what: str) -> Decision:
    """Permits a release or refuses it; it lies outside every plan, so the filter answers for it and for everything after it.

    Raises:
        BudgetExhausted: as `decide` does.
    """
    return decide(budget, dataclasses.replace(life, adaptive=True), mechanism, 1, what=what)


def filter_covers_first_plan(budget: Budget, life: Life) -> bool:
    """Condition 2 above; without it nothing may follow the first schedule."""
    return _first_plan_by_filter(budget, life) <= budget.ceiling_epsilon


def why_nothing_follows(budget: Budget, life: Life) -> str:
    """Why no second run and no release can be admitted, however little was spent; empty where that is not so."""
    if filter_covers_first_plan(budget, life):
        return ""
    counted = _first_plan_by_filter(budget, life)
    return (
        f"from a second run or a release on the Renyi filter decides, which counts the first plan at {counted:.2f} by itself, above the "
        f"ceiling of {budget.ceiling_epsilon:.2f}: nothing can follow it, however little was spent"
    )


def _first_plan_by_filter(budget: Budget, life: Life) -> float:
    """Epsilon of the first plan as the filter counts it, and of what was booked."""
    if life.first_plan is None or life.order is None:
        return budget.booked
    return budget.booked + epsilon_at_order([life.first_plan], budget.delta, life.order)
