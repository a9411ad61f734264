"""The second accountant: it brackets epsilon, and each end is on its side."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from shared.errors import ConfigError
from shared.privacy import second_pld
from shared.privacy.accountant import epsilon_pld, epsilon_rdp, epsilon_replace_one
from shared.privacy.mechanism import Mechanism
from shared.privacy.second_pld import Bracket, epsilon_bracket

DELTA = 1e-5


def steps(n: int, *, q: float = 0.05, sigma: float = 1.0, kind: str = "poisson_gaussian") -> Mechanism:
    return Mechanism(kind=kind, sampling_rate=q, noise_multiplier=sigma, clip_norm=0.5, grid=2.0**-21, dimension=1000, steps=n)


def bracket(events: list[Mechanism], delta: float = DELTA) -> Bracket:
    found = epsilon_bracket(events, delta)
    assert found is not None
    return found


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Without sampling the truth is known: Balle & Wang 2018, theorem 8."""
    return float(norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * norm.cdf(-mu / 2 - epsilon / mu))


@pytest.mark.parametrize(("sigma", "n"), [(3.0, 1), (3.0, 9), (20.0, 400), (0.8, 3)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9, 1e-13])
def test_where_the_truth_is_known_it_lies_between_the_two_ends(sigma: float, n: int, delta: float) -> None:
    found = bracket([steps(n, q=1.0, sigma=sigma, kind="gaussian")], delta)
    mu = math.sqrt(n) / sigma
    assert found.high - found.low < max(0.02, 0.006 * found.high)
    assert gaussian_delta(found.high, mu) <= delta <= gaussian_delta(found.low, mu)


@pytest.mark.parametrize(("sigma", "n"), [(3.0, 9), (20.0, 400)])
def test_without_sampling_a_changed_record_is_twice_as_far_away(sigma: float, n: int) -> None:
    found = epsilon_bracket([steps(n, q=1.0, sigma=sigma, kind="gaussian")], DELTA, replace=True)
    assert found is not None
    mu = 2.0 * math.sqrt(n) / sigma
    assert gaussian_delta(found.high, mu) <= DELTA <= gaussian_delta(found.low, mu)


@pytest.mark.parametrize("events", [[steps(200)], [steps(50, q=0.3, sigma=2.0), steps(100, sigma=0.8)], [steps(1)]])
def test_a_changed_record_costs_what_the_first_accountant_says(events: list[Mechanism]) -> None:
    found = epsilon_bracket(events, DELTA, replace=True)
    assert found is not None
    assert bracket(events).high < found.low < found.high
    assert found.high == pytest.approx(epsilon_replace_one(events, DELTA, interval=1e-3), abs=2e-3)


def test_one_sampled_step_is_bracketed_in_both_directions() -> None:
    q, sigma = 0.05, 1.0
    x = np.linspace(-40.0, 41.0, 2_000_001)
    low, high = norm.pdf(x, 0.0, sigma), (1 - q) * norm.pdf(x, 0.0, sigma) + q * norm.pdf(x, 1.0, sigma)

    def delta_of(epsilon: float) -> float:
        """The hockey-stick divergence by plain integration."""
        width = x[1] - x[0]
        return float(max(np.maximum(a - math.exp(epsilon) * b, 0.0).sum() * width for a, b in ((high, low), (low, high))))

    found = bracket([steps(1)])
    assert delta_of(found.high) <= DELTA <= delta_of(found.low)


@pytest.mark.parametrize(("n", "expected"), [(200, 4.766), (1000, 10.987)])
def test_the_known_values(n: int, expected: float) -> None:
    assert bracket([steps(n)]).high == pytest.approx(expected, abs=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(1e-3, 1.0), st.floats(0.6, 20.0), st.integers(1, 2000)).map(lambda one: steps(one[2], q=one[0], sigma=one[1])),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from([1e-3, 1e-5, 1e-8]),
)
def test_it_never_contradicts_the_first_accountant_or_renyi(events: list[Mechanism], delta: float) -> None:
    by_renyi = epsilon_rdp(events, delta)
    found = epsilon_bracket(events, delta)
    if found is None or by_renyi > 200.0:
        return
    first = epsilon_pld(events, delta, interval=1e-3)
    # both PLDs are rounded up: neither may lie below the other one's true lower end
    assert found.low <= first + 1e-6
    assert found.low <= found.high <= by_renyi + 0.01
    assert found.high == pytest.approx(first, abs=max(0.03, 0.01 * first))  # both are rounded up, each on its own grid


def test_a_coarser_grid_only_widens_the_bracket(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = bracket([steps(200)])
    monkeypatch.setattr(second_pld, "_ERROR", 0.5)
    coarse = bracket([steps(200)])
    assert coarse.low < fine.low <= fine.high < coarse.high


def test_what_does_not_fit_gets_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_pld, "MOST_CELLS", 1000)
    assert epsilon_bracket([steps(200)], DELTA) is None


def test_nothing_costs_nothing_and_no_noise_costs_everything() -> None:
    assert epsilon_bracket([], DELTA) == Bracket(low=0.0, high=0.0)
    assert epsilon_bracket([steps(5), steps(1, kind="none")], DELTA) == Bracket(low=math.inf, high=math.inf)
    with pytest.raises(ConfigError, match="delta"):
        epsilon_bracket([steps(1)], 1.0)
