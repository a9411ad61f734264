r"""What a list of mechanisms cost. Three accountants, all for add/remove-one neighbours at one fixed delta.

* `epsilon_pld` decides: Google's privacy loss distributions, a pessimistic bound in both directions.
* `epsilon_prv` checks: Opacus' accountant (Gopi, Lee, Wutschitz 2021), another code by other people; up to .01 above PLD by construction.
  Where it gives no answer in its time, the PLD of `second_pld` takes its place.
* `epsilon_rdp` checks from above, and at ONE order fixed in advance (`epsilon_at_order`) it is the filter that adaptive composition needs.

Opacus' GDP accountant understates (2.2 where 4.5 is true) and is not offered. Heavy libraries are imported inside the functions: opening a
ledger and booking an intent need none of them.
"""

from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError, UnreachableBudget
from .mechanism import Mechanism

RUNNING_INTERVAL = 1e-3
REPORT_INTERVAL = 1e-4
"""Widths of the PLD grid, in epsilon: while running, and in reports."""

FILTER_ORDERS = (*(float(order) for order in range(2, 65)), 96.0, 128.0, 256.0, 512.0, 1024.0)
"""Whole orders only: their divergence is a finite sum, so it cannot fail to converge for a mechanism that comes later."""

CHECK_ORDERS = tuple(sorted({*FILTER_ORDERS, *(quarter / 4 for quarter in range(6, 40))}))

PRV_TOLERANCE, PRV_RELATIVE_TOLERANCE = 0.02, 0.01

_NOISE_UNIT, _LEAST_NOISE, _MOST_NOISE = 1e-4, 0.05, 1e4
_NOISE_OF_NO_USE, _NOISE_THAT_COUNTS = 1e-6, 1e6
_MOST_CELLS = 1_000_000
MOST_STEPS = 10_000_000
_BEYOND_MEANING = 1000.0

_FINER_INTERVALS = (1e-5, 1e-6)
_MOST_FINE_CELLS = 8_000_000  # of all steps that differ, together: some seconds and 300 MB

Group = tuple[float, float, int]
"""(sampling rate, noise multiplier, steps)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epsilons:
    """The answers of three accountants, and whether they may be printed.

    Attributes:
        prv: None when the accountant did not answer within its time.
        second: upper bound of the second PLD, asked only where PRV did not answer; None where it was not asked or had no answer either.
        interval: width of the grid on which ``pld`` was found.
        agree: False means NOT VERIFIED: show no number as the epsilon.
        why: the reason, empty when they agree.
    """

    pld: float
    prv: float | None
    rdp: float
    agree: bool
    why: str
    second: float | None = None
    interval: float = REPORT_INTERVAL


def grouped(events: Iterable[Mechanism]) -> tuple[Group, ...] | None:
    """Equal steps put together, in a fixed order; None when one of the events protects nothing.

    Only q and sigma have a price: the sensitivity C + g sqrt(p) is already in the scale of the noise. A sigma above a million is priced as
    a million, an upper bound that no accountant overflows at.
    """
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        if event.kind == "none":
            return None
        key = (event.sampling_rate, min(event.noise_multiplier, _NOISE_THAT_COUNTS))
        steps[key] = steps.get(key, 0) + event.steps
    return tuple((q, sigma, n) for (q, sigma), n in sorted(steps.items()))


def running_interval(epsilon: float) -> float:
    """Width of the PLD grid for a budget of this size: a thousandth of it, at most `RUNNING_INTERVAL`."""
    return min(RUNNING_INTERVAL, epsilon / 1000)


def epsilon_pld(events: Sequence[Mechanism], delta: float, *, interval: float = RUNNING_INTERVAL) -> float:
    """Epsilon of all events together, by privacy loss distributions.

    An upper bound at every ``interval``. Where the noise is so small (sigma below about .02) that the grid would not fit into memory, a
    wider one is taken. Above 1,000, where no number protects anybody, and for more than 10 million steps, which no schedule may have, the
    bound of RDP stands for it. Both are upper bounds still.

    Args:
        events: any mechanisms; equal ones are grouped.
        delta: in (0, 1).
        interval: width of the grid, in epsilon.
    """
    _check_delta(delta)
    groups = grouped(events)
    return math.inf if groups is None else _pld(groups, delta, interval)


def epsilon_pld_for_report(events: Sequence[Mechanism], delta: float, *, interval: float = REPORT_INTERVAL) -> tuple[float, float]:
    """Epsilon by PLD and the width of the grid that it was found on: ``interval``, or a finer one where that lies above RDP.

    Rounding up to a grid of width h adds about h sqrt(T) over T steps: for many faint ones more than they cost. RDP knows no grid, so a
    PLD above it says that the grid is too wide. Every answer is an upper bound.
    """
    pld, rdp = epsilon_pld(events, delta, interval=interval), epsilon_rdp(events, delta)
    for finer in finer_intervals(events, interval):
        if rdp + interval < pld < math.inf:
            pld, interval = min(pld, epsilon_pld(events, delta, interval=finer)), finer
    return pld, interval


def finer_intervals(events: Sequence[Mechanism], interval: float) -> tuple[float, ...]:
    """Grids below ``interval`` for which some seconds and 300 MB are enough."""
    reach = sum(1.0 / sigma**2 + 20.0 / sigma for _, sigma, _ in grouped(events) or ())
    return tuple(finer for finer in _FINER_INTERVALS if finer < interval and reach / finer <= _MOST_FINE_CELLS)


def epsilon_replace_one(events: Sequence[Mechanism], delta: float, *, interval: float = REPORT_INTERVAL) -> float:
    """Epsilon by PLD where one user's contribution changes instead of vanishing: for people whose passport sits in a domain.

    Raises:
        ConfigError: when delta is no probability.
    """
    _check_delta(delta)
    groups = grouped(events)
    return math.inf if groups is None else _pld(groups, delta, interval, replace=True)


def epsilon_rdp(events: Sequence[Mechanism], delta: float) -> float:
    """Epsilon by Renyi differential privacy, at the best of many orders: correct, and 5-15 % above PLD."""
    _check_delta(delta)
    groups = grouped(events)
    return math.inf if groups is None else _rdp(groups, delta, CHECK_ORDERS)


def epsilon_at_order(events: Sequence[Mechanism], delta: float, order: float) -> float:
    """Epsilon by Renyi differential privacy at one order that was fixed before any data were touched: what the filter compares.

    For parameters that were chosen after seeing earlier outputs, a bound of this kind holds as long as the order was not chosen that way
    too (Feldman & Zrnic 2021, theorem 4.3; Lecuyer 2021).
    """
    _check_delta(delta)
    groups = grouped(events)
    return math.inf if groups is None else _rdp(groups, delta, (order,))


def renyi_divergence(events: Sequence[Mechanism], order: float) -> float:
    """Renyi divergence of all events together at one order; these add up, also over domains and adaptively."""
    groups = grouped(events)
    return math.inf if groups is None else sum(float(_rdp_of_one(q, sigma, (order,))[0]) * steps for q, sigma, steps in groups)


def epsilon_of_renyi(divergence: float, delta: float, order: float) -> float:
    """Epsilon that a Renyi divergence at one order gives."""
    from dp_accounting.rdp import compute_epsilon

    _check_delta(delta)
    return float(compute_epsilon((order,), [divergence], delta)[0]) if divergence < math.inf else math.inf


def filter_order(mechanism: Mechanism, ceiling_epsilon: float, delta: float) -> float:
    r"""The order at which the filter lets the most repetitions of ``mechanism`` pass below the ceiling.

    Order :math:`\alpha` permits :math:`n = (\epsilon - c_\alpha) / \rho_\alpha` of them, where :math:`\rho_\alpha` is the Renyi divergence
    of one and :math:`c_\alpha = \log(1 - 1/\alpha) - \log(\delta\alpha)/(\alpha - 1)` (Canonne, Kamath & Steinke 2020, proposition 12).
    """
    curve = _rdp_of_one(mechanism.sampling_rate, min(mechanism.noise_multiplier, _NOISE_THAT_COUNTS), FILTER_ORDERS)
    best, order = -math.inf, FILTER_ORDERS[0]
    for alpha, rho in zip(FILTER_ORDERS, curve.tolist(), strict=True):
        if not 0.0 < rho < math.inf:
            continue
        room = min(ceiling_epsilon, 1e6) - (math.log1p(-1 / alpha) - math.log(delta * alpha) / (alpha - 1))
        if room / rho > best:
            best, order = room / rho, alpha
    return order


def epsilon_prv(events: Sequence[Mechanism], delta: float, *, time_limit_s: float = 120.0) -> float | None:
    """Epsilon by Opacus' PRV accountant, in a process of its own that is ended after ``time_limit_s``.

    It takes minutes for very many steps and answers nothing for very large epsilon; then the result is None and a report says so.
    """
    _check_delta(delta)
    groups = grouped(events)
    if groups is None:
        return math.inf
    if not groups:
        return 0.0
    known = _prv_known.get((groups, delta))
    return _prv(groups, delta, time_limit_s) if known is None else known


def crosscheck(events: Sequence[Mechanism], delta: float, *, interval: float = REPORT_INTERVAL, time_limit_s: float = 120.0) -> Epsilons:
    """All three, and the rule of a report: no number unless \\|PRV - PLD\\| <= 0.02 (or 1 %) and PLD <= RDP.

    Where PRV gives no answer, the second PLD stands in for it; where the grid is too wide, PLD takes a finer one. The rule stays.
    """
    pld, interval = epsilon_pld_for_report(events, delta, interval=interval)
    rdp = epsilon_rdp(events, delta)
    if not math.isfinite(pld):
        return Epsilons(pld=pld, prv=math.inf, rdp=rdp, agree=False, why="NOT PRIVATE: at least one step added no noise", interval=interval)
    prv = epsilon_prv(events, delta, time_limit_s=time_limit_s)
    second = second_opinion(events, delta) if prv is None else None
    why = disagreement(pld, second if prv is None else prv, rdp, time_limit_s=time_limit_s, interval=interval)
    return Epsilons(pld=pld, prv=prv, rdp=rdp, agree=not why, why=why, second=second, interval=interval)


def second_opinion(events: Sequence[Mechanism], delta: float, *, replace: bool = False) -> float | None:
    """Upper bound of epsilon by `second_pld`; None where it has no answer, or its own error bound is too wide to compare."""
    from .second_pld import epsilon_bracket

    found = epsilon_bracket(events, delta, replace=replace)
    if found is None or not found.high - found.low <= tolerance(found.high):
        return None
    return found.high


def disagreement(pld: float, other: float | None, rdp: float, *, time_limit_s: float, interval: float = REPORT_INTERVAL) -> str:
    """Why three answers must not be printed, or nothing.

    Args:
        other: by PRV, or by the second PLD where PRV gave no answer.

    >>> disagreement(4.766, 4.776, 5.368, time_limit_s=60)
    ''
    >>> disagreement(4.010, 4.776, 5.368, time_limit_s=60)
    'NOT VERIFIED: two accountants disagree'
    """
    if other is None:
        return f"NOT VERIFIED: the second accountant gave no answer within {time_limit_s:g} s, and its stand-in none either"
    if not abs(other - pld) <= tolerance(pld):
        return "NOT VERIFIED: two accountants disagree"
    if not pld <= rdp + interval:  # PLD is rounded up to its grid
        return "NOT VERIFIED: PLD is above RDP"
    return ""


def tolerance(epsilon: float) -> float:
    """How far two accountants may be apart at this epsilon."""
    return max(PRV_TOLERANCE, PRV_RELATIVE_TOLERANCE * epsilon)


def noise_multiplier_for(*, epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """The smallest noise multiplier, rounded up to 4 digits after the point, with which all steps cost at most ``epsilon`` by PLD.

    Never below .05, where nothing is gained by still less noise.

    Raises:
        ConfigError: when a parameter has no meaning.
        UnreachableBudget: when even a noise multiplier of 10,000 costs more.
    """
    _check_delta(delta)
    if not (math.isfinite(epsilon) and epsilon > 0 and 0 < sampling_rate <= 1 and steps >= 1):
        raise ConfigError("noise is solved for a finite epsilon above 0, a sampling rate in (0, 1] and at least one step")
    if steps > MOST_STEPS:  # time and memory of PLD grow with them
        raise ConfigError(f"a schedule of more than {MOST_STEPS:,} steps is not priced", do="Ask for fewer rounds or steps.")
    interval = running_interval(epsilon)

    @cache
    def cost(noise_multiplier: float) -> float:
        return _pld(((sampling_rate, noise_multiplier, steps),), delta, interval)

    enough = _enough_noise_by_rdp(epsilon, delta, sampling_rate, steps)
    if cost(enough) > epsilon:  # only where both meet within the grid of PLD, or nothing is enough
        enough = _MOST_NOISE
    if cost(enough) > epsilon:
        raise UnreachableBudget(
            "no noise reaches the target epsilon with this sampling rate and number of steps",
            do="Ask for a larger epsilon or delta, fewer rounds or steps, or a smaller sampling rate.",
        )
    too_little = enough
    while too_little > _LEAST_NOISE and cost(too_little) <= epsilon:
        enough, too_little = too_little, max(_LEAST_NOISE, 0.9 * too_little)
    if cost(too_little) <= epsilon:
        return _LEAST_NOISE

    from scipy.optimize import brentq

    root = brentq(lambda log_noise: cost(math.exp(log_noise)) - epsilon, math.log(too_little), math.log(enough), xtol=1e-6)
    units = math.floor(math.exp(root) / _NOISE_UNIT)
    while cost(round(units * _NOISE_UNIT, 4)) > epsilon:
        units += 1
    return round(units * _NOISE_UNIT, 4)


def _enough_noise_by_rdp(epsilon: float, delta: float, sampling_rate: float, steps: int) -> float:
    """Noise with which RDP, never below PLD, permits all steps; within 5 % of the least. Fast, and only a place to start from."""
    low, high = _LEAST_NOISE, _MOST_NOISE
    while high > 1.05 * low:
        middle = math.sqrt(low * high)
        if _rdp(((sampling_rate, middle, steps),), delta, FILTER_ORDERS) <= epsilon:
            high = middle
        else:
            low = middle
    return high


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise ConfigError("delta is a probability between 0 and 1, both excluded")


def _event(sampling_rate: float, noise_multiplier: float) -> Any:
    import dp_accounting

    return dp_accounting.PoissonSampledDpEvent(sampling_rate, dp_accounting.GaussianDpEvent(noise_multiplier))


@lru_cache(maxsize=4096)
def _pld(groups: tuple[Group, ...], delta: float, interval: float, *, replace: bool = False) -> float:
    if not groups:
        return 0.0
    from dp_accounting.pld.privacy_loss_distribution import identity

    least = min(sigma for _, sigma, _ in groups)
    bound = _rdp(groups, delta, FILTER_ORDERS)
    if bound > _BEYOND_MEANING or sum(steps for *_, steps in groups) > MOST_STEPS:
        return math.inf if replace else bound  # the bound of RDP is for add/remove
    reach = 0.5 / least**2 + 10.0 / least  # largest privacy loss of one step that matters
    width = max(interval, reach / _MOST_CELLS)
    total = identity(value_discretization_interval=width)
    for sampling_rate, noise_multiplier, steps in groups:
        total = total.compose(_pld_of_one(sampling_rate, noise_multiplier, width, replace).self_compose(steps))
    return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=12)
def _pld_of_one(sampling_rate: float, noise_multiplier: float, interval: float, replace: bool) -> Any:
    """One step, as dp_accounting's own accountant builds it anew for every number of steps; most of the time goes into it."""
    from dp_accounting import NeighboringRelation
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    return from_gaussian_mechanism(
        standard_deviation=noise_multiplier,
        value_discretization_interval=interval,
        sampling_prob=sampling_rate,
        neighboring_relation=NeighboringRelation.REPLACE_ONE if replace else NeighboringRelation.ADD_OR_REMOVE_ONE,
    )


@lru_cache(maxsize=4096)
def _rdp(groups: tuple[Group, ...], delta: float, orders: tuple[float, ...]) -> float:
    if not groups:
        return 0.0
    from dp_accounting.rdp import compute_epsilon

    total = sum(_rdp_of_one(sampling_rate, noise_multiplier, orders) * steps for sampling_rate, noise_multiplier, steps in groups)
    return float(compute_epsilon(orders, total, delta)[0])


@lru_cache(maxsize=4096)
def _rdp_of_one(sampling_rate: float, noise_multiplier: float, orders: tuple[float, ...]) -> Any:
    """(n_orders,) Renyi divergence of one step; infinite at an order where the series does not converge, which is safe."""
    import numpy as np
    from dp_accounting.rdp import RdpAccountant

    if noise_multiplier < _NOISE_OF_NO_USE:
        return np.full(len(orders), np.inf)
    accountant = RdpAccountant(orders=list(orders))
    log = logging.getLogger("absl")
    log.addFilter(_is_news)
    try:
        accountant.compose(_event(sampling_rate, noise_multiplier), 1)
    finally:
        log.removeFilter(_is_news)
    return accountant.rdp


def _is_news(record: logging.LogRecord) -> bool:
    return "failed to converge" not in str(record.msg)


_prv_known: dict[tuple[tuple[Group, ...], float], float] = {}


def _prv(groups: tuple[Group, ...], delta: float, time_limit_s: float) -> float | None:
    question = json.dumps({"groups": [[q.hex(), sigma.hex(), steps] for q, sigma, steps in groups], "delta": delta.hex()})
    command = [sys.executable, "-P", str(Path(__file__).with_name("prv_process.py"))]
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=time_limit_s, check=False)
    except subprocess.TimeoutExpired:
        return None
    if done.returncode != 0:
        return None
    answer = float(done.stdout)
    if not math.isfinite(answer):
        return None
    _prv_known[groups, delta] = answer
    return answer
