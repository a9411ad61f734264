r"""Epsilon from the records alone: what was spent in one domain, and what that means for a person who is in several of them.

**One ledger.** PLD at `REPORT_INTERVAL`, PRV (or the second PLD, where PRV gives no answer) and RDP, under the rule of `accountant`.
Where the parameters of a life may have depended on outputs, a Renyi filter decides, and the claim is the ceiling that it keeps: its theorem
vouches for the bound fixed in advance. What it counts as spent, and PLD, are information. What a ledger books for a lost one is added by
basic composition, epsilon to epsilon and delta to delta.

**A person in k domains.** Their event lists are composed, and the row is the worst set of k ledgers. Where a filter decides in one of
them, the filters are composed, each with all that its ceiling permits: a filter that bounds the Renyi divergence at its order
:math:`\alpha_i` bounds it at every lower order too, because the divergence grows with the order; so at :math:`\alpha = \min_i \alpha_i`
the divergences add up, those of other domains taken at :math:`\alpha` itself. With one ledger, the rows say what k domains like it would
add up to.

**REPLACE_ONE.** For people whose passport sits in a domain: there their record changes instead of vanishing. Given only where PLD decides
and nothing is booked. What a lost ledger cost in this sense nobody knows: that it was (e, d)-DP for add/remove gives (2e, (1 + exp(e)) d)
and no more. And the filter bounds divergences between add/remove neighbours only.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AuditError, MixedDeltas, UsageError
from . import accountant
from .accountant import REPORT_INTERVAL, Epsilons, Group
from .budget import CEILING, NOTHING, PLD, RDP_FILTER, SPENT
from .ledger_book import Book
from .ledger_file import LedgerFile
from .mechanism import Mechanism

MOST_LEDGERS = 10
"""All sets of them are looked at: 1,023."""

_COARSE = 1e-2
_MOST_PRICED = 8  # sets of one size that are priced on the fine grid


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEpsilons:
    """What one ledger's events cost, and what may be claimed of its whole life.

    Attributes:
        domain: as genesis names it.
        epsilons: by three accountants, and whether they agree.
        filter_epsilon: spent by the count of the filter, where it decides, without what is booked; None elsewhere.
        filter_order: its order.
        decided_by: pld, rdp-filter or none.
        delta: of these numbers.
        booked: epsilon that is booked for a lost ledger, 0 without one.
        claimed_delta: delta of the statement about the whole life.
        ceiling_epsilon: as it stands at the end.
        private: what genesis says.
        replace_one: epsilon where a record changes instead of vanishing; None where there is none.
        replace_one_why: why there is none; empty where there is one.
        replace_one_disputed: there could be one, and the two PLDs do not agree on it.
        steps: of all intents and releases.
        groups: (sampling rate, noise multiplier, steps) of equal ones; empty where one of them adds no noise.
    """

    domain: str
    epsilons: Epsilons
    filter_epsilon: float | None
    filter_order: float | None
    decided_by: str
    delta: float
    booked: float
    claimed_delta: float
    ceiling_epsilon: float
    private: bool
    replace_one: float | None
    replace_one_why: str
    replace_one_disputed: bool
    steps: int
    groups: tuple[Group, ...]

    @property
    def spent(self) -> float | None:
        """By who decides, with what is booked; None where the accountants do not vouch for one another."""
        if not self.epsilons.agree:
            return None
        return self.booked + (self.epsilons.pld if self.filter_epsilon is None else self.filter_epsilon)

    @property
    def claim_is(self) -> str | None:
        """`SPENT` or `CEILING`; None where nothing is claimed: no number is vouched for, or a filter's ceiling was passed."""
        if self.spent is None:
            return None
        if self.filter_epsilon is None:
            return SPENT
        return None if _passed(self.spent, self.ceiling_epsilon) else CEILING

    @property
    def claim(self) -> float | None:
        """Epsilon of the whole life at ``claimed_delta``; None where nothing is claimed."""
        return {SPENT: self.spent, CEILING: self.ceiling_epsilon}.get(self.claim_is or "")


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonRow:
    """A person in k domains.

    Attributes:
        epsilon: claimed of the worst k domains together, at ``delta``; None where it is not verified.
        pld: of what is spent, by PLD, and what is booked; information where a filter decides.
        delta: claimed, with what lost ledgers add.
        domains: the worst k; the one domain's name k times where the table is hypothetical.
        agree: whether a second accountant confirms it, and no filter's ceiling was passed.
    """

    k: int
    epsilon: float | None
    pld: float
    delta: float
    domains: tuple[str, ...]
    agree: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputation:
    """Everything that follows from the records.

    Attributes:
        ledgers: in the order they were given.
        persons: k = 1..K.
        hypothetical: there was one ledger, so that the rows from k = 2 on are of domains like it.
        replace_one: domain -> epsilon of the REPLACE_ONE line; None where it is not verified.
        agree: every number is vouched for.
        why: what is not; empty where all is.
    """

    ledgers: tuple[LedgerEpsilons, ...]
    persons: tuple[PersonRow, ...]
    hypothetical: bool
    replace_one: dict[str, float | None]
    agree: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spent:
    """What one ledger's records say."""

    domain: str
    events: tuple[Mechanism, ...]
    delta: float
    booked: float
    booked_delta: float
    ceiling_epsilon: float
    private: bool
    order: float | None  # of the filter, where it decides

    @property
    def passed(self) -> bool:
        """Whether a filter decides and more is spent than it may permit: then it bounds nothing."""
        if self.order is None:
            return False
        return _passed(self.booked + accountant.epsilon_at_order(self.events, self.delta, self.order), self.ceiling_epsilon)


def recompute(paths: Sequence[Path], *, copies: int = 5, time_limit_s: float = 120.0) -> Recomputation:
    """Epsilon of each ledger, and of persons in several of them. The ledgers stay as they are, byte for byte; their signatures are not
    asked for here: `audit.verify` does that.

    Args:
        paths: ledgers of different domains, at most `MOST_LEDGERS`.
        copies: K of the table, where there is one ledger.
        time_limit_s: for PRV, for each ledger.

    Raises:
        UsageError: no ledger, too many, or less than one copy.
        LedgerError: a file is no ledger, or does not hold.
        AuditError: two ledgers of one domain.
        MixedDeltas: they claim different deltas, which cannot be added up at one.
    """
    if not 1 <= len(paths) <= MOST_LEDGERS or copies < 1:
        raise UsageError(f"epsilon is recomputed from 1 to {MOST_LEDGERS} ledgers, for at least one domain")
    spent = [_read(Path(path)) for path in paths]
    _must_add_up(spent)
    ledgers = tuple(_of_one(one, time_limit_s) for one in spent)
    everybody = spent if len(spent) > 1 else spent * copies
    persons = tuple(_worst(everybody, k, ledgers, hypothetical=len(spent) == 1) for k in range(1, len(everybody) + 1))
    why = [f"{one.domain}: {one.epsilons.why}" for one in ledgers if not one.epsilons.agree]
    why += [f"a person in {row.k} domains: NOT VERIFIED" for row in persons if not row.agree]
    why += [f"{one.domain}: REPLACE_ONE is NOT VERIFIED" for one in ledgers if one.replace_one_disputed]
    return Recomputation(
        ledgers=ledgers,
        persons=persons,
        hypothetical=len(spent) == 1,
        replace_one={one.domain: one.replace_one for one in ledgers},
        agree=not why,
        why="; ".join(why),
    )


def _read(path: Path) -> _Spent:
    book = Book()
    file = LedgerFile.examine(path)
    try:
        book.apply_all(file.load())
    finally:
        file.close()
    return _Spent(
        domain=book.domain,
        events=book.spent,
        delta=book.budget.delta,
        booked=book.budget.booked,
        booked_delta=book.booked_delta,
        ceiling_epsilon=book.budget.ceiling_epsilon,
        private=book.private,
        order=book.order if book.adaptive else None,
    )


def _must_add_up(spent: Sequence[_Spent]) -> None:
    names = [one.domain for one in spent]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise AuditError(f"two of the ledgers are of domain '{twice}'", do="A domain has one ledger: give each of them once.")
    if len({one.delta for one in spent}) > 1:
        said = ", ".join(f"'{one.domain}' {one.delta:g}" for one in spent)
        raise MixedDeltas(f"the ledgers are about different deltas: {said}", do="Recompute each of them by itself.")


def _of_one(one: _Spent, time_limit_s: float) -> LedgerEpsilons:
    found = accountant.crosscheck(one.events, one.delta, interval=REPORT_INTERVAL, time_limit_s=time_limit_s)
    nothing = any(event.kind == "none" for event in one.events)
    if not one.private and found.agree:
        found = dataclasses.replace(found, agree=False, why="NOT PRIVATE: the ledger says so")
    replaced, why, disputed = _replace_one(one)
    return LedgerEpsilons(
        domain=one.domain,
        epsilons=found,
        filter_epsilon=None if one.order is None else accountant.epsilon_at_order(one.events, one.delta, one.order),
        filter_order=one.order,
        decided_by=NOTHING if nothing else PLD if one.order is None else RDP_FILTER,
        delta=one.delta,
        booked=one.booked,
        claimed_delta=one.delta + one.booked_delta,
        ceiling_epsilon=one.ceiling_epsilon,
        private=one.private,
        replace_one=replaced,
        replace_one_why=why,
        replace_one_disputed=disputed,
        steps=sum(event.steps for event in one.events),
        groups=accountant.grouped(one.events) or (),
    )


def _replace_one(one: _Spent) -> tuple[float | None, str, bool]:
    """The number; why there is none; whether that is because two accountants do not agree."""
    if not one.private or any(event.kind == "none" for event in one.events):
        return None, "NOT PRIVATE", False
    if one.booked:
        return None, "a lost ledger is booked, and what that one cost in this sense is not known", False
    if one.order is not None:
        return None, "the Renyi filter decides, and it bounds what adding or removing a user changes, not this", False
    second = accountant.second_opinion(one.events, one.delta, replace=True)
    for interval in (REPORT_INTERVAL, *accountant.finer_intervals(one.events, REPORT_INTERVAL)):
        first = accountant.epsilon_replace_one(one.events, one.delta, interval=interval)
        if second is not None and abs(first - second) <= accountant.tolerance(first):
            return first, "", False
    return None, "NOT VERIFIED: no second accountant confirms it", True


def _passed(spent: float, ceiling: float) -> bool:
    return not spent <= ceiling * (1.0 + 1e-9)


# --- a person in k domains ---------------------------------------------------------------------------------------------------------------
def _worst(everybody: Sequence[_Spent], k: int, ledgers: Sequence[LedgerEpsilons], *, hypothetical: bool) -> PersonRow:
    sets: Iterable[tuple[_Spent, ...]] = [tuple(everybody[:k])] if hypothetical else itertools.combinations(everybody, k)
    worst, cost = _dearest(list(sets))
    alone = next((one for one in ledgers if one.domain == worst[0].domain), None) if k == 1 else None
    return _row(worst, cost, alone)


def _dearest(sets: list[tuple[_Spent, ...]]) -> tuple[tuple[_Spent, ...], float]:
    """The set that costs most, and what it costs; every step below is an upper bound of the next one."""
    different = {_spent_alike(chosen): at for at, chosen in reversed([*enumerate(sets)])}
    by_renyi = sorted(((_bound(sets[at]), at) for at in different.values()), reverse=True)
    best, coarse, width = -math.inf, [], min(_COARSE, by_renyi[0][0] / 2000.0) or REPORT_INTERVAL
    for bound, at in by_renyi if len(by_renyi) > 1 else ():
        if bound <= best:  # what a coarse grid says is an upper bound, so these may still be dearer on the fine one
            coarse.append((bound, at))
            continue
        found = _cost(sets[at], width)
        best = max(best, found)
        coarse.append((found, at))
    worst, cost = 0, -math.inf
    for number, (bound, at) in enumerate(sorted(coarse, reverse=True) or [(math.inf, 0)]):
        if bound <= cost:
            break
        if number == _MOST_PRICED:  # near ties: the bound of the next one covers all of them
            return sets[worst], bound
        if (found := _cost(sets[at], REPORT_INTERVAL)) > cost:
            worst, cost = at, found
    return sets[worst], cost


def _spent_alike(chosen: tuple[_Spent, ...]) -> tuple[str, ...]:
    """The same for sets of domains that spent the same: often they all follow one schedule."""
    permits = [one.ceiling_epsilon if one.order is not None else None for one in chosen]
    return tuple(
        sorted(repr((accountant.grouped(one.events), one.booked, one.order, most)) for one, most in zip(chosen, permits, strict=True))
    )


def _row(chosen: tuple[_Spent, ...], cost: float, alone: LedgerEpsilons | None) -> PersonRow:
    delta, events = chosen[0].delta, _events(chosen)
    pld, interval = accountant.epsilon_pld_for_report(events, delta, interval=REPORT_INTERVAL)
    if any(one.passed or not one.private for one in chosen) or not math.isfinite(cost):
        agree = False
    elif alone is not None:
        agree = alone.epsilons.agree
    else:
        other, rdp = accountant.second_opinion(events, delta), accountant.epsilon_rdp(events, delta)
        agree = not accountant.disagreement(pld, other, rdp, time_limit_s=0.0, interval=interval)
    return PersonRow(
        k=len(chosen),
        epsilon=cost if agree else None,
        pld=pld + _booked(chosen),
        delta=delta + sum(one.booked_delta for one in chosen),
        domains=tuple(one.domain for one in chosen),
        agree=agree,
    )


def _cost(chosen: tuple[_Spent, ...], interval: float) -> float:
    """What is claimed of these domains together: by the filters' ceilings where one decides, else by PLD of what is spent."""
    if any(order is not None for order in _orders(chosen)):
        return _bound(chosen)
    price = accountant.epsilon_pld_for_report if interval == REPORT_INTERVAL else _on_a_grid
    return _booked(chosen) + price(_events(chosen), chosen[0].delta, interval=interval)[0]


def _on_a_grid(events: Sequence[Mechanism], delta: float, *, interval: float) -> tuple[float, float]:
    return accountant.epsilon_pld(events, delta, interval=interval), interval


def _bound(chosen: tuple[_Spent, ...]) -> float:
    """Never below `_cost`, and quick: by Renyi divergences."""
    delta = chosen[0].delta
    orders = [order for order in _orders(chosen) if order is not None]
    if not orders:
        return _booked(chosen) + accountant.epsilon_rdp(_events(chosen), delta) + REPORT_INTERVAL
    if len(chosen) == 1:
        return chosen[0].ceiling_epsilon
    order = min(orders)
    total = sum(accountant.renyi_divergence(one.events, order) if one.order is None else _permitted(one, one.order) for one in chosen)
    return _booked(chosen) + accountant.epsilon_of_renyi(total, delta, order)


def _permitted(one: _Spent, order: float) -> float:
    """The Renyi divergence that a filter at this order may let pass below its ceiling; never less than what passed."""
    room = one.ceiling_epsilon - one.booked - (math.log1p(-1.0 / order) - math.log(one.delta * order) / (order - 1.0))
    return max(room, accountant.renyi_divergence(one.events, order))


def _events(chosen: tuple[_Spent, ...]) -> tuple[Mechanism, ...]:
    return tuple(event for one in chosen for event in one.events)


def _orders(chosen: tuple[_Spent, ...]) -> tuple[float | None, ...]:
    return tuple(one.order for one in chosen)


def _booked(chosen: tuple[_Spent, ...]) -> float:
    return sum(one.booked for one in chosen)
