"""The one-run audit's statistics: against cases by hand, exact laws, a second implementation, and mechanisms with a planted bug."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from shared.privacy.mechanism import Mechanism
from shared.privacy.one_run import (
    Claim,
    Guesses,
    guess,
    judge,
    least_refuted_noise,
    p_value,
    refutes,
    steinke_epsilon,
    steinke_p_value,
)

DELTA = 1e-5
AUDITED = Mechanism(kind="poisson_gaussian", sampling_rate=1.0, noise_multiplier=3.0, clip_norm=0.5, grid=0.0, dimension=1, steps=9)
"""mu = sqrt(9) / 3 = 1"""


def right(correct: int, *, made: int | None = None, canaries: int | None = None) -> Guesses:
    made = correct if made is None else made
    return Guesses(score="test", canaries=canaries or made, made=made, correct=correct)


def pure(epsilon: float, delta: float = 0.0) -> Claim:
    return Claim(epsilons=np.array([epsilon]), deltas=np.array([delta]))


# --- by hand ------------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("claim", "correct", "chance"),
    [
        (pure(0.0), 1, 1 / 2),  # a coin
        (pure(0.0), 2, 1 / 4),
        (pure(math.log(3)), 1, 3 / 4),  # randomised response: right with a chance of e^eps / (1 + e^eps)
        (pure(math.log(3)), 2, 9 / 16),
    ],
)
def test_the_chance_that_all_guesses_are_right_is_exact_for_randomised_response(claim, correct, chance):
    assert p_value([right(correct)], claim) == pytest.approx(chance, rel=2e-3)


def test_the_least_chance_that_a_claim_allows_is_the_larger_of_two_bounds():
    claim = pure(math.log(2), delta=0.1)
    assert claim.least(0.5) == pytest.approx((0.5 - 0.1) / 2)  # e^-eps (y - delta)
    assert claim.least(0.9) == pytest.approx(1 - 0.1 - 2 * 0.1)  # 1 - delta - e^eps (1 - y)
    assert claim.least(0.05) == 0.0


def test_guesses_are_made_at_both_ends_of_the_scores_and_nowhere_else():
    inside = np.array([False, True, False, True, False, True])
    scores = np.array([0.0, 1.0, 2.0, 3.0, 4.0, math.nan])
    found = guess("sum", scores, inside, made=4)  # out: the one that is not a number (wrong), 0 (right); in: 3 (right), 4 (wrong)
    assert (found.made, found.correct, found.canaries) == (4, 2, 6)


@pytest.mark.parametrize(("made", "correct", "canaries"), [(0, 0, 1), (2, 3, 4), (5, 1, 4), (2, -1, 2)])
def test_impossible_guesses_are_refused(made, correct, canaries):
    with pytest.raises(ValueError, match="correct guesses"):
        Guesses(score="", canaries=canaries, made=made, correct=correct)


# --- exact laws ---------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [1, 9])
def test_the_curve_of_the_gaussian_mechanism_is_the_known_one_from_below(steps):
    claim, mu = Claim.of(sampling_rate=1.0, noise_multiplier=3.0, steps=steps), math.sqrt(steps) / 3.0
    for chance in np.logspace(-6, 0, 40):
        known = stats.norm.cdf(stats.norm.ppf(chance) - mu)  # Dong, Roth & Su 2022: G_mu
        assert 0.99 * known - 1e-9 <= claim.least(float(chance)) <= known + 1e-12


def test_sampling_makes_the_claim_smaller():
    whole = Claim.of(sampling_rate=1.0, noise_multiplier=3.0, steps=9)
    sampled = Claim.of(sampling_rate=0.2, noise_multiplier=3.0, steps=9)
    assert all(sampled.least(y) > whole.least(y) for y in (0.01, 0.1, 0.5, 0.9))


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0])
def test_false_alarms_are_no_more_frequent_than_tau_under_randomised_response(epsilon):
    coins = 30
    law = stats.binom(coins, 1 / (1 + math.exp(-epsilon)))
    counts = np.arange(coins + 1)
    levels = np.array([p_value([right(int(c), made=coins)], pure(epsilon)) for c in counts])
    for tau in (0.01, 0.05, 0.2, 0.5):
        alarms = law.pmf(counts[levels <= tau]).sum()
        assert 0.0 < alarms <= tau * (1 + 1e-3)


@pytest.mark.parametrize("delta", [0.01, 0.1])
def test_a_mechanism_that_gives_everybody_away_with_a_chance_of_delta_keeps_its_claim(delta):
    coins = 20  # all outcomes hang together: the case in which counting canaries as if independent would be wrong
    all_right = delta + (1 - delta) * 0.5**coins
    assert p_value([right(coins)], pure(0.0, delta)) >= all_right
    assert steinke_p_value(right(coins), 0.0, delta) >= all_right


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 60), st.integers(0, 60), st.floats(0.0, 4.0), st.floats(1e-4, 0.5))
def test_more_right_guesses_and_a_smaller_claim_never_refute_less(correct, wrong, abstained, epsilon, tau):
    made = correct + wrong
    found, one_less = (right(c, made=made, canaries=made + abstained) for c in (correct, correct - 1))
    assert refutes(found, pure(epsilon), tau) >= refutes(one_less, pure(epsilon), tau)
    assert refutes(found, pure(epsilon), tau) >= refutes(found, pure(epsilon + 0.5), tau)
    assert refutes(found, pure(epsilon), tau) >= refutes(found, pure(epsilon), tau / 2)
    assert steinke_p_value(found, epsilon, DELTA) <= steinke_p_value(found, epsilon + 0.5, DELTA) + 1e-12


def test_the_audited_noise_is_where_refuting_begins():
    tests = [right(364, made=400, canaries=4000), right(1577, made=2000, canaries=4000)]
    least = least_refuted_noise(tests, sampling_rate=1.0, steps=9, tau=0.05)
    assert least is not None

    def refuted(noise):
        claim = Claim.of(sampling_rate=1.0, noise_multiplier=noise, steps=9)
        return any(refutes(test, claim, 0.05 / 2) for test in tests)

    assert refuted(least)
    assert not refuted(least / 1.002)


def test_guesses_that_are_no_better_than_coins_prove_nothing():
    tests = [right(1000, made=2000, canaries=4000)]
    assert least_refuted_noise(tests, sampling_rate=1.0, steps=9, tau=0.05) is None
    assert steinke_epsilon(tests, delta=DELTA, tau=0.05) == 0.0
    assert p_value(tests, Claim.of(sampling_rate=1.0, noise_multiplier=3.0, steps=9)) == 1.0


# --- second implementations ---------------------------------------------------------------------------------------------------------------
def textbook(threshold: float, inside: np.ndarray, outside: np.ndarray, tau: float, method: str) -> float:
    """Epsilon of a Gaussian family, written down anew: closed-form curves and no search that knows where to begin."""
    m, c = len(inside) + len(outside), int((inside >= threshold).sum())
    r = c + int((outside >= threshold).sum())

    def refuted(epsilon: float) -> bool:
        if method == "steinke":
            law = stats.binom(r, 1 / (1 + math.exp(-epsilon)))
            tails = [law.cdf(c - 1) - law.cdf(c - i - 1) for i in range(1, c + 1)]  # P[c > B >= c - i]
            return law.sf(c - 1) + 2 * m * DELTA * max(tail / i for i, tail in enumerate(tails, start=1)) <= tau
        mu = mu_of(epsilon)
        h, R = tau * (r - c) / m, tau * c / m
        for i in range(c - 1, 0, -1):
            raised = max(h, special.ndtr(special.ndtri(min(R, 1.0)) - mu))
            R, h = R + i / (r - i) * (raised - h), raised
        return R + max(h, special.ndtr(special.ndtri(min(R, 1.0)) - mu)) > r / m

    low, high = 1e-3, 50.0
    while high - low > 1e-3:
        low, high = ((low + high) / 2, high) if refuted((low + high) / 2) else (low, (low + high) / 2)
    return low


def mu_of(epsilon: float) -> float:
    """mu of the Gaussian mechanism that is (epsilon, `DELTA`)-DP (Balle & Wang 2018, theorem 8)."""
    low, high = 1e-3, 50.0
    while high - low > 1e-6:
        mu = (low + high) / 2
        delta = stats.norm.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon + stats.norm.logcdf(-mu / 2 - epsilon / mu))
        low, high = (mu, high) if delta < DELTA else (low, mu)
    return low


def jax_privacy(threshold: float, inside: np.ndarray, outside: np.ndarray, tau: float, method: str) -> float:
    """Google DeepMind's auditor."""
    from jax_privacy import auditing

    auditor = auditing.CanaryScoreAuditor(inside, outside)
    compute = auditor.epsilon_one_run if method == "steinke" else auditor.epsilon_one_run_fdp
    return float(compute(tau, DELTA, threshold_strategy=auditing.Explicit(threshold)))


OTHERS = [textbook, *([jax_privacy] if importlib.util.find_spec("jax_privacy") else [])]
"""jax is heavy and optional; the one beside it is always here."""


@pytest.mark.journey
@pytest.mark.parametrize("method", ["f-DP", "steinke"])
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize(("mu", "threshold"), [(1.0, 2.5), (3.0, 3.5), (0.5, 1.5)])
def test_another_implementation_comes_to_the_same_epsilon(method, other, mu, threshold):
    generator = np.random.default_rng(11)
    inside, outside = generator.normal(mu, 1.0, size=980), generator.normal(0.0, 1.0, size=1020)
    correct = int((inside >= threshold).sum())
    tests = [right(correct, made=correct + int((outside >= threshold).sum()), canaries=2000)]
    if method == "steinke":
        mine = steinke_epsilon(tests, delta=DELTA, tau=0.05)
    else:
        noise = least_refuted_noise(tests, sampling_rate=1.0, steps=1, tau=0.05)
        assert noise is not None
        mine = judge(tests, one_step(noise), delta=DELTA, tau=0.05).claimed_epsilon
    theirs = other(threshold, inside, outside, 0.05, method)
    assert mine > 0.1
    assert theirs - 0.02 <= mine <= theirs + 0.002  # the curve is rounded to the safe side


def one_step(noise: float) -> Mechanism:
    return Mechanism(kind="gaussian", sampling_rate=1.0, noise_multiplier=noise, clip_norm=1.0, grid=0.0, dimension=1, steps=1)


# --- the whole audit, on a simulated mechanism --------------------------------------------------------------------------------------------
def simulated(mu: float, seed: int, canaries: int = 4000) -> list[Guesses]:
    """Guesses about 4,000 canaries whose scores are N(0, 1) outside and N(mu, 1) inside."""
    generator = np.random.default_rng([seed, int(1000 * mu)])
    inside = generator.random(canaries) < 0.5
    sums = inside * mu + generator.normal(size=canaries)
    steps = np.abs(inside * mu / 2 + generator.normal(size=canaries))
    return [guess(name, scores, inside, made) for name, scores in (("sum", sums), ("step", steps)) for made in (400, 800, 2000)]


def test_the_claim_of_the_audit_is_the_number_of_the_ledger():
    found = judge(simulated(1.0, 0), AUDITED, delta=DELTA, tau=0.05)
    assert found.claimed_epsilon == pytest.approx(4.377, abs=2e-3)  # Balle & Wang 2018 at mu = 1, delta = 1e-5


@pytest.mark.journey
def test_correct_mechanisms_are_never_refuted_even_at_a_level_fifty_times_as_strict():
    found = [judge(simulated(1.0, seed), AUDITED, delta=DELTA, tau=0.05) for seed in range(20)]
    assert not any(one.refuted for one in found)
    assert min(one.p_value for one in found) > 1e-3
    assert all(0.5 < one.audited_epsilon < one.claimed_epsilon for one in found)
    assert all(one.steinke_epsilon < one.audited_epsilon for one in found)


def test_the_chance_of_a_false_alarm_on_independent_noise_is_far_below_tau():
    claim = Claim.of(sampling_rate=1.0, noise_multiplier=3.0, steps=9)
    generator = np.random.default_rng(0)
    for made in (400, 800, 2000):
        needed = next(c for c in range(made // 2, made + 1) if refutes(right(c, made=made, canaries=4000), claim, 0.05 / 6))
        correct = []
        for _ in range(200):
            inside = generator.random(4000) < 0.5
            correct.append(guess("sum", inside + generator.normal(size=4000), inside, made).correct)
        assert (needed - np.mean(correct)) / np.std(correct) > 5.0  # five standard deviations: 3e-7


@pytest.mark.journey
@pytest.mark.parametrize("mu", [2.0, math.sqrt(7), 300.0], ids=["half the noise", "clip in each of seven tensors", "no clip"])
def test_broken_mechanisms_are_always_refuted(mu):
    found = [judge(simulated(mu, seed), AUDITED, delta=DELTA, tau=0.05) for seed in range(8)]
    assert all(one.refuted and one.audited_epsilon > one.claimed_epsilon for one in found)


@pytest.mark.parametrize("mu", [1.0, 2.0])
def test_refuted_says_the_same_as_an_audited_epsilon_above_the_claim(mu):
    found = judge(simulated(mu, 5), AUDITED, delta=DELTA, tau=0.05)
    assert found.refuted == (found.audited_epsilon > found.claimed_epsilon) == (found.p_value <= found.tau)
