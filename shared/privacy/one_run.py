r"""What one run of training proves about a claim: the f-DP audit in one run, and the bound of Steinke et al. beside it.

The game: m canaries, each put into the data by a coin of its own; one run; r guesses of how coins fell, abstaining on the others; c of them
right. A mechanism that keeps its claim lets nobody guess too well, whatever its outputs have to do with one another, so a large c refutes
the claim. The result is one-sided, "epsilon is at least so much" with a confidence: not being refuted proves nothing.

* Mahloujifar, Melis & Chaudhuri 2025, "Auditing f-differential privacy in one run" (arXiv 2410.22235): a whole trade-off curve is claimed.
* Steinke, Nasr & Jagielski 2023, "Privacy auditing with one (1) training run" (arXiv 2305.08846): one (epsilon, delta) is claimed.

Pure numpy, scipy and dp-accounting: no training code, no torch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from scipy import stats

from .accountant import epsilon_pld
from .mechanism import Mechanism

CURVE_INTERVAL = 1e-2
"""Width of the PLD grid of a claim, in epsilon. A wider grid is a larger claim, which is harder to refute: an error to the safe side."""

_POINTS = 512
_MOST_EPSILON = 700.0  # e^709 is the largest number
_LEAST_DELTA = 1e-14
_LEAST_NOISE, _MOST_NOISE = 0.05, 1e4  # what the accountants solve for
_LEAST_TAU = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Claim:
    r"""A privacy claim as a set of pairs: for each of ``epsilons``, (epsilon, delta)-DP in both directions of add and remove.

    Attributes:
        epsilons: (n,) at least 0.
        deltas: (n,) delta(epsilon).
    """

    epsilons: np.ndarray
    deltas: np.ndarray

    @classmethod
    def of(cls, *, sampling_rate: float, noise_multiplier: float, steps: int) -> Claim:
        """What the Poisson-subsampled Gaussian mechanism claims, by its privacy loss distribution (an upper bound at every point)."""
        return _claim_of(sampling_rate, noise_multiplier, steps)

    def least(self, chance: float) -> float:
        r"""The inverse of the blow-up function, :math:`\bar f^{-1}(y)`: the smallest Q(S) that the claim allows where P(S) = y.

        :math:`\max(0, \max_\epsilon e^{-\epsilon}(y - \delta(\epsilon)), \max_\epsilon 1 - \delta(\epsilon) - e^{\epsilon}(1 - y))`: the
        first from :math:`P(S) \le e^\epsilon Q(S) + \delta`, the second from the same for the complement with P and Q exchanged.

        >>> coin = Claim(epsilons=np.array([0.0]), deltas=np.array([0.0]))  # nothing leaks: P = Q
        >>> coin.least(0.25)
        0.25
        """
        growth = np.exp(self.epsilons)
        below = ((chance - self.deltas) / growth).max()
        above = (1.0 - self.deltas - growth * (1.0 - chance)).max()
        return float(max(0.0, below, above))


@lru_cache(maxsize=64)
def _claim_of(sampling_rate: float, noise_multiplier: float, steps: int) -> Claim:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    one = from_gaussian_mechanism(
        standard_deviation=noise_multiplier, value_discretization_interval=CURVE_INTERVAL, sampling_prob=sampling_rate
    )
    whole = one.self_compose(steps)
    largest = min(float(whole.get_epsilon_for_delta(_LEAST_DELTA)), _MOST_EPSILON)
    epsilons = np.linspace(0.0, largest, _POINTS)
    return Claim(epsilons=epsilons, deltas=np.asarray(whole.get_delta_for_epsilon(epsilons)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """The outcome of one test.

    Attributes:
        score: name of the score that the guesses were made by.
        canaries: m, how many coins were tossed.
        made: r, guesses; on the other m - r coins the auditor abstains.
        correct: c of them were right.
    """

    score: str
    canaries: int
    made: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.made <= self.canaries or self.made == 0:
            raise ValueError("0 <= correct guesses <= guesses <= canaries, and at least one guess")


def guess(name: str, scores: np.ndarray, inside: np.ndarray, made: int) -> Guesses:
    """Guesses "in" for the ``made`` / 2 largest scores and "out" for as many smallest.

    Args:
        scores: (m,) larger = rather in; what is not a number counts as smallest.
        inside: (m,) bool, how the coins fell.
        made: r, even, at most m.
    """
    half = made // 2
    order = np.argsort(np.nan_to_num(scores, nan=-np.inf), kind="stable")
    correct = int((~inside[order[:half]]).sum() + inside[order[len(order) - half :]].sum())
    return Guesses(score=name, canaries=len(scores), made=2 * half, correct=correct)


# --- Mahloujifar, Melis & Chaudhuri ------------------------------------------------------------------------------------------------------
def refutes(guesses: Guesses, claim: Claim, tau: float) -> bool:
    r"""Whether so many right guesses have a chance of at most ``tau`` under the claim (arXiv 2410.22235, the algorithm with h and R).

    .. math:: h = \tau (r - c) / m,\; R = \tau c / m;\quad i = c - 1, \dots, 0:\;
              h' = \max(h, \bar f^{-1}(R)),\; R \mathrel{+}= \tfrac{i}{r - i}(h' - h),\; h = h'

    It supposes that c or more right guesses have a chance of ``tau``, and adds up the chances that every smaller number of right guesses
    must then have at least. Where they come to more than there is, :math:`R + h > r / m`, the supposition is refuted.

    One guess under a claim of (ln 3, 0) is right with a chance of 3/4 at most:

    >>> ln3 = Claim(epsilons=np.array([math.log(3)]), deltas=np.array([0.0]))
    >>> [refutes(Guesses(score="", canaries=1, made=1, correct=1), ln3, tau) for tau in (0.74, 0.76)]
    [False, True]
    """
    m, r, c = guesses.canaries, guesses.made, guesses.correct
    h, R, whole = tau * (r - c) / m, tau * c / m, r / m
    for i in range(c - 1, -1, -1):
        raised = max(h, claim.least(min(R, 1.0)))
        if raised == h or R + h > whole:  # neither can change any more, or never come down again
            break
        R, h = R + i / (r - i) * (raised - h), raised
    return R + h > whole


def p_value(tests: Sequence[Guesses], claim: Claim) -> float:
    """The smallest tau at which one of the tests refutes the claim, times the number of tests (Bonferroni), at most 1."""
    return min(1.0, len(tests) * min(_least(partial(refutes, test, claim)) for test in tests))


def _least(refuted: Callable[[float], bool]) -> float:
    """Smallest tau, to a thousandth of itself, that refutes; rounded up."""
    low, high = math.log(_LEAST_TAU), 0.0
    if refuted(_LEAST_TAU):
        return _LEAST_TAU
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (low, middle) if refuted(math.exp(middle)) else (middle, high)
    return math.exp(high)


def least_refuted_noise(tests: Sequence[Guesses], *, sampling_rate: float, steps: int, tau: float) -> float | None:
    """The smallest noise multiplier whose claim the tests refute together at level ``tau`` (Bonferroni), to a thousandth, rounded up.

    Every smaller noise claims less and cannot be refuted; every larger one is refuted too. None where not even a noise multiplier of
    10,000 is refuted: the tests say nothing.
    """

    def refuted(noise_multiplier: float) -> bool:
        claim = Claim.of(sampling_rate=sampling_rate, noise_multiplier=noise_multiplier, steps=steps)
        return any(refutes(test, claim, tau / len(tests)) for test in tests)

    if not refuted(_MOST_NOISE):
        return None
    low, high = _LEAST_NOISE, 0.25 * math.sqrt(steps)
    while high < _MOST_NOISE and not refuted(high):  # upwards from where much leaks: curves of little noise take time
        low, high = high, 4.0 * high
    while high > low * (1.0 + 1e-3):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if refuted(middle) else (middle, high)
    return high


# --- Steinke, Nasr & Jagielski -----------------------------------------------------------------------------------------------------------
def steinke_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    r"""Largest chance of so many right guesses under (epsilon, delta)-DP (arXiv 2305.08846, theorem 5.2).

    :math:`\beta + 2 m \delta \alpha`, with :math:`\beta = P[B \ge c]` and :math:`\alpha = \max_i P[c > B \ge c - i] / i` for
    :math:`B \sim \mathrm{Binomial}(r, e^\epsilon / (1 + e^\epsilon))`.

    >>> round(steinke_p_value(Guesses(score="", canaries=2, made=2, correct=2), math.log(3), 0.0), 6)  # (3/4)^2
    0.5625
    """
    law = stats.binom(guesses.made, 1.0 / (1.0 + math.exp(-epsilon)))
    c = guesses.correct
    beta = float(law.sf(c - 1))
    steps = np.arange(1, c + 1)
    alpha = float(((law.sf(c - 1 - steps) - beta) / steps).max(initial=0.0))
    return min(1.0, beta + 2 * guesses.canaries * delta * alpha)


def steinke_epsilon(tests: Sequence[Guesses], *, delta: float, tau: float) -> float:
    """The largest epsilon that one of the tests refutes together with ``delta`` at level ``tau`` (Bonferroni); 0 where none does."""
    return max(_largest_epsilon(partial(_steinke_refutes, test, delta, tau / len(tests))) for test in tests)


def _steinke_refutes(guesses: Guesses, delta: float, tau: float, epsilon: float) -> bool:
    return steinke_p_value(guesses, epsilon, delta) <= tau


def _largest_epsilon(refuted: Callable[[float], bool]) -> float:
    """Largest epsilon, to a ten-thousandth, rounded down."""
    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while high < _MOST_EPSILON and refuted(high):
        low, high = high, 2.0 * high
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


# --- the audit ---------------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the guesses of one run prove.

    Attributes:
        refuted: the claim does not hold, at a level of ``tau`` over all tests together.
        tau: largest chance to refute a mechanism that keeps its claim, whatever it does.
        p_value: the level at which the claim would just be refuted, 1 at most.
        claimed_epsilon: what the ledger's accountant says that the mechanism costs.
        audited_epsilon: the largest epsilon of the same family of mechanisms, with less noise or more, that is refuted; 0 = none.
        steinke_epsilon: the largest epsilon that is refuted for any mechanism whatever.
        delta: of all three.
        tests: the guesses.
    """

    refuted: bool
    tau: float
    p_value: float
    claimed_epsilon: float
    audited_epsilon: float
    steinke_epsilon: float
    delta: float
    tests: tuple[Guesses, ...]


def judge(tests: Sequence[Guesses], mechanism: Mechanism, *, delta: float, tau: float) -> Evidence:
    """Holds the guesses against what was claimed.

    Args:
        tests: fixed before the run: which score, how many guesses. Their number pays for there being many.
        mechanism: all steps of the run together.
        delta: at which epsilon is named.
        tau: level of all tests together.
    """
    q, steps = mechanism.sampling_rate, mechanism.steps
    claim = Claim.of(sampling_rate=q, noise_multiplier=mechanism.noise_multiplier, steps=steps)
    least = least_refuted_noise(tests, sampling_rate=q, steps=steps, tau=tau)
    return Evidence(
        refuted=any(refutes(test, claim, tau / len(tests)) for test in tests),
        tau=tau,
        p_value=p_value(tests, claim),
        claimed_epsilon=epsilon_pld([mechanism], delta),
        audited_epsilon=0.0 if least is None else epsilon_pld([dataclasses.replace(mechanism, noise_multiplier=least)], delta),
        steinke_epsilon=steinke_epsilon(tests, delta=delta, tau=tau),
        delta=delta,
        tests=tuple(tests),
    )
