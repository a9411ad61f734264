r"""Epsilon from the records alone: what was spent in one domain, and what that means for a person who is in several of them.

**One ledger.** PLD at `REPORT_INTERVAL`, PRV (or the second PLD, where PRV gives no answer) and RDP, under the rule of `accountant`.
Where the parameters of a life may have depended on outputs, the Renyi filter's number is the claim and PLD is information. What a ledger
books for a lost one is added by basic composition, epsilon to epsilon and delta to delta.

**A person in k domains.** Their event lists are composed, and the row is the worst set of k ledgers. Where a filter decides in one of
them, the filters are composed: a filter that bounds the Renyi divergence at its order :math:`\alpha_i` bounds it at every lower order too,
because the divergence grows with the order; so at :math:`\alpha = \min_i \alpha_i` the divergences add up, those of other domains taken
at :math:`\alpha` itself. With one ledger, the rows say what k domains like it would add up to.

**REPLACE_ONE.** For people whose passport sits in a domain: there their record changes instead of vanishing.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import AuditError, MixedDeltas, UsageError
from . import accountant
from .accountant import REPORT_INTERVAL, Epsilons, Group
from .budget import NOTHING, PLD, RDP_FILTER
from .ledger_book import Book
from .ledger_file import LedgerFile
from .mechanism import Mechanism

MOST_LEDGERS = 10
"""All sets of them are looked at: 1,023."""

_COARSE = 1e-2
_MOST_PRICED = 8  # sets of one size that are priced on the fine grid


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEpsilons:
    """What one ledger's events cost, without what it books for a lost one.

    Attributes:
        domain: as genesis names it.
        epsilons: by three accountants, and whether they agree.
        filter_epsilon: by the filter, where it decides; None elsewhere.
        filter_order: its order.
        decided_by: pld, rdp-filter or none.
        delta: of these numbers.
        booked: epsilon that is booked for a lost ledger, 0 without one.
        claimed_delta: delta of the statement about the whole life.
        ceiling_epsilon: as it stands at the end.
        private: what genesis says.
        replace_one: epsilon where a record changes instead of vanishing, booked included; None unless both PLDs agree.
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
    steps: int
    groups: tuple[Group, ...]

    @property
    def claim(self) -> float | None:
        """Epsilon of the whole life at ``claimed_delta``; None where the accountants do not vouch for one another."""
        if not self.epsilons.agree:
            return None
        return self.booked + (self.epsilons.pld if self.filter_epsilon is None else self.filter_epsilon)


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonRow:
    """A person in k domains.

    Attributes:
        epsilon: of the worst k domains together, at ``delta``; None where it is not verified.
        pld: by PLD and what is booked; information where a filter decides.
        delta: claimed, with what lost ledgers add.
        domains: the worst k; the one domain's name k times where the table is hypothetical.
        agree: whether a second accountant confirms it.
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
    why += [f"{one.domain}: REPLACE_ONE is NOT VERIFIED" for one in ledgers if one.replace_one is None]
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
        found = Epsilons(
            pld=found.pld, prv=found.prv, rdp=found.rdp, agree=False, why="NOT PRIVATE: the ledger says so", second=found.second
        )
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
        replace_one=_replace_one(one),
        steps=sum(event.steps for event in one.events),
        groups=accountant.grouped(one.events) or (),
    )


def _replace_one(one: _Spent) -> float | None:
    if not one.private:
        return None
    first = accountant.epsilon_replace_one(one.events, one.delta, interval=REPORT_INTERVAL)
    second = accountant.second_opinion(one.events, one.delta, replace=True)
    if second is None or not abs(first - second) <= accountant.tolerance(first):
        return None
    return one.booked + first


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
        if bound <= best:
            break
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
    return tuple(sorted(repr((accountant.grouped(one.events), one.booked, one.order)) for one in chosen))


def _row(chosen: tuple[_Spent, ...], cost: float, alone: LedgerEpsilons | None) -> PersonRow:
    delta, events = chosen[0].delta, _events(chosen)
    pld = accountant.epsilon_pld(events, delta, interval=REPORT_INTERVAL)
    if not all(one.private for one in chosen) or not math.isfinite(cost):
        agree = False
    elif alone is not None:
        agree = alone.epsilons.agree
    else:
        other, rdp = accountant.second_opinion(events, delta), accountant.epsilon_rdp(events, delta)
        agree = not accountant.disagreement(pld, other, rdp, time_limit_s=0.0, interval=REPORT_INTERVAL)
    return PersonRow(
        k=len(chosen),
        epsilon=cost if agree else None,
        pld=pld + _booked(chosen),
        delta=delta + sum(one.booked_delta for one in chosen),
        domains=tuple(one.domain for one in chosen),
        agree=agree,
    )


def _cost(chosen: tuple[_Spent, ...], interval: float) -> float:
    """Epsilon of these domains together, by the filters where one decides, else by PLD."""
    if any(order is not None for order in _orders(chosen)):
        return _bound(chosen)
    return _booked(chosen) + accountant.epsilon_pld(_events(chosen), chosen[0].delta, interval=interval)


def _bound(chosen: tuple[_Spent, ...]) -> float:
    """Never below `_cost`, and quick: by Renyi divergences."""
    delta = chosen[0].delta
    orders = [order for order in _orders(chosen) if order is not None]
    if not orders:
        return _booked(chosen) + accountant.epsilon_rdp(_events(chosen), delta) + REPORT_INTERVAL
    order = min(orders)
    total = sum(accountant.renyi_divergence(one.events, order if one.order is None else one.order) for one in chosen)
    return _booked(chosen) + accountant.epsilon_of_renyi(total, delta, order)


def _events(chosen: tuple[_Spent, ...]) -> tuple[Mechanism, ...]:
    return tuple(event for one in chosen for event in one.events)


def _orders(chosen: tuple[_Spent, ...]) -> tuple[float | None, ...]:
    return tuple(one.order for one in chosen)


def _booked(chosen: tuple[_Spent, ...]) -> float:
    return sum(one.booked for one in chosen)
