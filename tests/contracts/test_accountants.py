"""What every accountant must do, and what they must do together. Check values: delta 1e-5, sigma 1, q .05."""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence

import pytest

from shared.errors import ConfigError, UnreachableBudget
from shared.privacy.accountant import (
    FILTER_ORDERS,
    crosscheck,
    disagreement,
    epsilon_at_order,
    epsilon_pld,
    epsilon_prv,
    epsilon_rdp,
    epsilon_replace_one,
    filter_order,
    noise_multiplier_for,
)
from shared.privacy.mechanism import Mechanism
from shared.privacy.second_pld import epsilon_bracket

DELTA = 1e-5
Accountant = Callable[[Sequence[Mechanism], float], float]


def steps(n: int, *, q: float = 0.05, sigma: float = 1.0, kind: str = "poisson_gaussian") -> Mechanism:
    return Mechanism(kind=kind, sampling_rate=q, noise_multiplier=sigma, clip_norm=0.5, grid=2.0**-21, dimension=1000, steps=n)


def at_order_three(events: Sequence[Mechanism], delta: float) -> float:
    return epsilon_at_order(events, delta, 3.0)


def by_second_pld(events: Sequence[Mechanism], delta: float) -> float:
    found = epsilon_bracket(events, delta)
    assert found is not None
    return found.high


def by_prv_accountant(events: Sequence[Mechanism], delta: float) -> float:
    """The library of Gopi, Lee and Wutschitz themselves."""
    from prv_accountant import PoissonSubsampledGaussianMechanism as Step
    from prv_accountant import PRVAccountant

    each = [Step(sampling_probability=event.sampling_rate, noise_multiplier=event.noise_multiplier) for event in events]
    counts = [event.steps for event in events]
    accountant = PRVAccountant(prvs=each, max_self_compositions=counts, eps_error=0.005, delta_error=delta * 1e-3)
    return float(accountant.compute_epsilon(delta, counts)[1])


by_others = [by_second_pld, *([by_prv_accountant] if importlib.util.find_spec("prv_accountant") else [])]
"""Those that must give what PLD gives. `prv_accountant` is optional: where it is installed it is asked."""

in_process = pytest.mark.parametrize("accountant", [epsilon_pld, epsilon_rdp, at_order_three, by_second_pld])


@in_process
def test_equal_records_cost_the_same_however_they_are_cut(accountant: Accountant) -> None:
    whole, cut = accountant([steps(200)], DELTA), accountant([steps(50), steps(100), steps(50)], DELTA)
    assert whole == cut


@in_process
def test_another_step_never_costs_less(accountant: Accountant) -> None:
    costs = [accountant([steps(n)], DELTA) for n in (1, 10, 50, 51, 200)]
    assert costs == sorted(costs)


@in_process
def test_more_noise_never_costs_more(accountant: Accountant) -> None:
    costs = [accountant([steps(100, sigma=sigma)], DELTA) for sigma in (0.7, 1.0, 1.5, 4.0)]
    assert costs == sorted(costs, reverse=True)


@in_process
def test_nothing_costs_nothing_and_a_step_without_noise_costs_everything(accountant: Accountant) -> None:
    assert accountant([], DELTA) == 0.0
    assert accountant([steps(10), steps(1, kind="none")], DELTA) == math.inf


@in_process
@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_a_delta_that_is_no_probability_is_refused(accountant: Accountant, delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        accountant([steps(1)], delta)


@pytest.mark.parametrize(("n", "expected"), [(200, 4.766), (1000, 10.987)])
def test_pld_gives_the_known_values(n: int, expected: float) -> None:
    assert epsilon_pld([steps(n)], DELTA) == pytest.approx(expected, abs=1e-3)
    assert epsilon_pld([steps(n)], DELTA, interval=1e-4) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("domains", "expected"), [(1, 4.77), (2, 6.70), (3, 8.29), (5, 10.99)])
def test_a_person_in_k_domains_is_covered_by_the_composition_not_by_the_maximum(domains: int, expected: float) -> None:
    assert epsilon_pld([steps(200)] * domains, DELTA) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("accountant", by_others)
@pytest.mark.parametrize(
    "events",
    [
        [steps(200)],
        [steps(1000)],
        [steps(200, sigma=2.0)],
        [steps(200, q=0.01, sigma=0.6)],
        [steps(100), steps(100, sigma=2.0), steps(50, q=0.1)],
        [steps(1)],
    ],
)
def test_other_accountants_give_what_pld_gives(accountant: Accountant, events: list[Mechanism]) -> None:
    assert accountant(events, DELTA) == pytest.approx(epsilon_pld(events, DELTA, interval=1e-4), abs=3e-3)


def test_a_person_whose_record_changes_instead_of_vanishing_pays_more() -> None:
    assert epsilon_replace_one([steps(200)], DELTA) == pytest.approx(7.107, abs=1e-3)
    assert epsilon_replace_one([], DELTA) == 0.0
    assert epsilon_replace_one([steps(1, kind="none")], DELTA) == math.inf


def test_mixed_histories_compose() -> None:
    alone = [epsilon_pld([event], DELTA) for event in (steps(100), steps(100, sigma=2.0))]
    both = epsilon_pld([steps(100), steps(100, sigma=2.0)], DELTA)
    assert max(alone) < both < sum(alone)


@pytest.mark.journey
def test_the_three_accountants_agree_on_the_known_value() -> None:
    answer = crosscheck([steps(200)], DELTA, time_limit_s=120)
    assert answer.agree, answer.why
    assert answer.prv is not None
    assert abs(answer.prv - answer.pld) <= 0.02
    assert answer.pld <= answer.rdp
    assert answer.pld == pytest.approx(4.766, abs=1e-3)


@pytest.mark.journey
@pytest.mark.parametrize(
    "events",
    [
        [steps(100), steps(100, sigma=2.0), steps(50, q=0.1)],
        pytest.param([steps(1000)], marks=pytest.mark.slow),
        pytest.param([steps(200, sigma=2.0)], marks=pytest.mark.slow),
        pytest.param([steps(200, q=0.01, sigma=0.6)], marks=pytest.mark.slow),
        pytest.param([steps(9, q=1.0, sigma=3.0, kind="gaussian")], marks=pytest.mark.slow),
    ],
)
def test_the_three_accountants_agree_on_other_histories(events: list[Mechanism]) -> None:
    answer = crosscheck(events, DELTA, time_limit_s=120)
    assert answer.agree, answer.why


def test_where_the_grid_hides_the_steps_a_finer_one_is_taken_and_the_rule_stays() -> None:
    """Above RDP on 1e-4 only by rounding. Nothing finer is taken where PLD is below RDP already."""
    faint = crosscheck([steps(500_000, q=1e-4, sigma=5.0)], DELTA, time_limit_s=0.0)
    assert faint.agree, faint.why
    assert (faint.interval, faint.pld <= faint.rdp + faint.interval) == (1e-5, True)
    assert crosscheck([steps(200)], DELTA, time_limit_s=0.0).interval == 1e-4


def test_an_understatement_like_that_of_the_gaussian_approximation_is_refused() -> None:
    pld, prv, rdp = 4.766, 4.776, 5.368
    assert disagreement(pld, prv, rdp, time_limit_s=60) == ""
    assert "disagree" in disagreement(4.010, prv, rdp, time_limit_s=60)  # what the central limit theorem would say
    assert "disagree" in disagreement(pld, 4.010, rdp, time_limit_s=60)
    assert "above RDP" in disagreement(pld, prv, 4.7, time_limit_s=60)
    assert "no answer" in disagreement(pld, None, rdp, time_limit_s=60)
    assert "disagree" in disagreement(pld, math.nan, rdp, time_limit_s=60)


def test_an_accountant_that_does_not_come_back_is_ended_and_another_takes_its_place() -> None:
    started = time.monotonic()
    answer = crosscheck([steps(77_777)], DELTA, interval=1e-3, time_limit_s=0.2)  # takes a minute when it is let
    assert time.monotonic() - started < 30
    assert answer.prv is None
    assert answer.second == pytest.approx(answer.pld, rel=1e-3)
    assert answer.agree


def test_no_number_is_printed_where_neither_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.privacy.second_pld.MOST_CELLS", 100)
    answer = crosscheck([steps(77_777)], DELTA, interval=1e-3, time_limit_s=0.2)
    assert (answer.prv, answer.second) == (None, None)
    assert not answer.agree
    assert "NOT VERIFIED" in answer.why


def test_without_noise_no_number_is_printed_and_nobody_is_asked() -> None:
    answer = crosscheck([steps(1, kind="none")], DELTA, time_limit_s=0.0)
    assert answer.pld == answer.rdp == answer.prv == math.inf
    assert not answer.agree
    assert "NOT PRIVATE" in answer.why


@pytest.mark.parametrize("accountant", [epsilon_pld, epsilon_rdp, at_order_three, epsilon_replace_one])
@pytest.mark.parametrize(("q", "sigma", "n"), [(2.3e-308, 0.3, 2**53), (0.5, 1e300, 2**53), (2.3e-308, 1e300, 1), (1.0, 2.3e-308, 1)])
def test_parameters_at_the_ends_of_their_ranges_are_priced(accountant: Accountant, q: float, sigma: float, n: int) -> None:
    """An auditor reads what others wrote: no ledger may stop the audit."""
    started = time.monotonic()
    assert accountant([steps(n, q=q, sigma=sigma)], DELTA) >= 0.0
    epsilon_bracket([steps(n, q=q, sigma=sigma)], DELTA)
    assert time.monotonic() - started < 30


@pytest.mark.parametrize(("sigma", "n"), [(0.05, 10), (0.001, 10), (1.0, 10**9)])
def test_absurd_parameters_give_a_bound_in_bounded_time(sigma: float, n: int) -> None:
    started = time.monotonic()
    epsilon = epsilon_pld([steps(n, sigma=sigma)], DELTA)
    assert time.monotonic() - started < 30
    assert epsilon > 100


def test_the_filter_takes_the_order_that_permits_most() -> None:
    one, ceiling = steps(10), 8.0
    chosen = filter_order(one, ceiling, DELTA)

    def permitted(order: float) -> int:
        n = 0
        while epsilon_at_order([steps(10 * (n + 1))], DELTA, order) <= ceiling:
            n += 1
        return n

    assert chosen in FILTER_ORDERS
    assert permitted(chosen) == max(permitted(order) for order in FILTER_ORDERS[:12])
    assert permitted(chosen) > permitted(32.0)


def test_an_order_fixed_in_advance_never_costs_less_than_the_best_order() -> None:
    for n in (1, 10, 200):
        assert at_order_three([steps(n)], DELTA) >= epsilon_rdp([steps(n)], DELTA)


@pytest.mark.parametrize(("epsilon", "q", "n"), [(8.0, 0.1, 160), (2.0, 0.1, 160), (0.5, 0.02, 50)])
def test_the_noise_is_the_least_that_reaches_the_target(epsilon: float, q: float, n: int) -> None:
    sigma = noise_multiplier_for(epsilon=epsilon, delta=1e-6, sampling_rate=q, steps=n)
    interval = min(1e-3, epsilon / 1000)
    assert sigma == round(sigma, 4)
    assert epsilon_pld([steps(n, q=q, sigma=sigma)], 1e-6, interval=interval) <= epsilon
    assert epsilon_pld([steps(n, q=q, sigma=sigma - 2e-4)], 1e-6, interval=interval) > epsilon


def test_a_target_that_no_noise_reaches_is_refused() -> None:
    with pytest.raises(UnreachableBudget, match="no noise"):
        noise_multiplier_for(epsilon=1e-3, delta=1e-9, sampling_rate=1.0, steps=100_000)


@pytest.mark.parametrize("wrong", [{"epsilon": math.inf}, {"epsilon": 0.0}, {"epsilon": math.nan}, {"sampling_rate": 0.0}, {"steps": 0}])
def test_noise_for_a_target_without_meaning_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        noise_multiplier_for(**{"epsilon": 8.0, "delta": 1e-6, "sampling_rate": 0.1, "steps": 100, **wrong})  # type: ignore[arg-type]


def test_prv_is_asked_once_for_the_same_question() -> None:
    first = epsilon_prv([steps(100), steps(100)], DELTA, time_limit_s=120)
    assert first == epsilon_prv([steps(200)], DELTA, time_limit_s=0.0)
