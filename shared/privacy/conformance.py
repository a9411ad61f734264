"""Tier 1: statistics of conformance. Each takes what training code did and says how likely that is under the claimed law, or how far off.

They know nothing about how to train: `client.canary` hands them releases, batches and gradients of the real code, and the tests those of
the same code with a planted bug. All of them have an exact null: correct code fails one with a chance of at most `THRESHOLD`, whatever the
model and the data are. A p-value below `THRESHOLD` refutes; for the two checks of arithmetic, a distance above its limit does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .mechanism import Mechanism

THRESHOLD = 1e-6
GRADIENT_TOLERANCE = 1e-4
"""Relative error of a float32 gradient that was computed in another order."""
ROUNDING = 1e-4
"""Share of the sensitivity that float32 may blur after the noise, because the release is read off an optimiser's state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: stable, for machines; begins with the number of its test in tier 1.
        what: one line for a person.
        p: chance of something this strange on correct code, where the check is a test of a law; None where it is arithmetic.
        value: what was measured.
        limit: what ``p`` may not fall below, or ``value`` not exceed.
        passed: whether the code stands.
        seconds: how long it took.
    """

    name: str
    what: str
    p: float | None
    value: float
    limit: float
    passed: bool
    seconds: float = 0.0

    @classmethod
    def of_law(cls, name: str, what: str, p: float) -> Check:
        """A test of a law: passed unless p is below `THRESHOLD`, or no number at all."""
        return cls(name=name, what=what, p=p, value=p, limit=THRESHOLD, passed=bool(p >= THRESHOLD))

    @classmethod
    def of_size(cls, name: str, what: str, value: float, limit: float) -> Check:
        """A comparison: passed unless the value is above the limit, or no number at all."""
        return cls(name=name, what=what, p=None, value=value, limit=limit, passed=bool(value <= limit))

    @classmethod
    def of_fact(cls, name: str, what: str, faults: int) -> Check:
        """A fact that holds everywhere or not: passed where nothing was found."""
        return cls.of_size(name, what, float(faults), 0.0)


def noise_scale(release: np.ndarray, mechanism: Mechanism) -> float:
    """T1. p-value of a joint release on an empty batch: chi-square on its scale and Kolmogorov-Smirnov on its law (Bonferroni).

    Args:
        release: (n,) numbers that should be noise and nothing else.
        mechanism: what was paid for.
    """
    x = np.asarray(release, dtype=np.float64) / mechanism.noise_scale
    if not np.isfinite(x).all():
        return 0.0
    return min(1.0, 2 * min(two_sided(stats.chi2(len(x)), float(x @ x)), float(stats.kstest(x, "norm").pvalue)))


def noise_of_steps(steps: np.ndarray, mechanism: Mechanism) -> float:
    """T1. p-value of several steps on empty batches: each by itself, so that none hides behind the others, and all together (Bonferroni).

    Args:
        steps: (n, p) numbers that should be noise and nothing else.
        mechanism: what was paid for.
    """
    return min(1.0, (len(steps) + 1) * min(noise_scale(one, mechanism) for one in (*steps, steps.ravel())))


def noise_correlation(releases: Sequence[np.ndarray] | np.ndarray) -> float:
    """T2. p-value of the most correlated pair of noises, at any shift of one against the other (Fisher's z, Bonferroni).

    Args:
        releases: arrays of one length n > 3. A stream that was used twice is found also where the second use began elsewhere in it.
    """
    if len(releases) < 2:
        raise ValueError("one noise has nothing to be compared with")
    pairs = [(a, b) for i, a in enumerate(releases) for b in releases[:i]]
    if not all(np.isfinite(release).all() for release in releases):
        return 0.0
    return float(min(1.0, min(_shifted(a, b) for a, b in pairs) * len(pairs)))


def noise_repeats(releases: np.ndarray) -> float:
    """T2. p-value of a noise against itself, shifted: tensors that were given the same numbers, or the same with another sign.

    Args:
        releases: (p,) numbers in the order in which they were drawn, or (n, p) of them (Bonferroni over these and the shifts).
    """
    rows = np.atleast_2d(releases)
    return min(1.0, len(rows) * min(_repeats(row) for row in rows))


def _repeats(release: np.ndarray) -> float:
    if not np.isfinite(release).all() or not np.any(release - release.mean()):
        return 0.0
    n = len(release)
    rho = _correlations(release, release)[1 : n // 2 + 1]  # shifts s and n - s say the same
    if n % 2 == 0:
        rho[-1] /= math.sqrt(2.0)  # half a turn pairs each number with one partner only, so its variance is twice as large
    return float(min(1.0, 2 * stats.norm.sf(float(np.abs(rho).max()) * math.sqrt(n)) * len(rho)))


def _shifted(a: np.ndarray, b: np.ndarray) -> float:
    if not np.any(a - a.mean()) or not np.any(b - b.mean()):
        return 0.0  # no noise at all is the same noise every time
    worst = float(np.abs(_correlations(a, b)).max())
    return float(min(1.0, 2 * stats.norm.sf(math.atanh(min(worst, 1 - 1e-15)) * math.sqrt(len(a) - 3)) * len(a)))


def _correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n,) Pearson correlation of ``a`` and ``b`` at every circular shift."""
    x, y = (np.asarray(v, dtype=np.float64) - np.mean(v) for v in (a, b))
    product = np.fft.irfft(np.fft.rfft(x) * np.conj(np.fft.rfft(y)), len(x))
    return np.asarray(product / (np.linalg.norm(x) * np.linalg.norm(y)))


def sensitivity(with_user: np.ndarray, without_user: np.ndarray, mechanism: Mechanism) -> float:
    """T3. ||S(D) - S(D - i)|| over the whole joint vector, as a share of C + g sqrt(p); above 1 + `ROUNDING` it refutes."""
    bound = mechanism.clip_norm + mechanism.grid * math.sqrt(mechanism.dimension)
    return float(np.linalg.norm(with_user - without_user)) / bound


def batch_sizes(batches: Sequence[np.ndarray], users: int, rate: float) -> float:
    """T4. p-value of the sizes of batches, each Binomial(users, rate): how far they spread, and what they add up to (Bonferroni)."""
    sizes = np.array([len(batch) for batch in batches])
    spread = two_sided(stats.chi2(len(sizes)), float(((sizes - users * rate) ** 2).sum() / (users * rate * (1 - rate))))
    return min(1.0, 2 * min(spread, _binomial(int(sizes.sum()), users * len(sizes), rate)))


def inclusion(batches: Sequence[np.ndarray], users: int, rate: float) -> float:
    """T4. p-value of who was in the batches: each user, pairs of users, and users in two batches in a row (Bonferroni).

    Totals of disjoint pairs are exactly binomial. How unevenly they fall on the pairs is looked at where there are enough batches.
    """
    there = np.zeros((len(batches), users), dtype=bool)
    for row, batch in zip(there, batches, strict=True):
        if len(np.unique(batch)) != len(batch):
            return 0.0  # a user is in a batch twice
        row[batch] = True
    half = users // 2
    together = there[:, :half] & there[:, half : 2 * half]
    again = there[1::2] & there[: len(batches) // 2 * 2 : 2]
    p = [_uneven(there, rate), _total(there, rate), _total(together, rate**2), _total(again, rate**2)]
    p += [_uneven(events, rate**2) for events in (together, again)]
    return min(1.0, len(p) * min(p))


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """T6. ||found - truth|| / ||truth||."""
    return float(np.linalg.norm(found - truth) / max(float(np.linalg.norm(truth)), 1e-12))


def two_sided(law: stats.rv_continuous, value: float) -> float:
    """p-value of a value that may be too small or too large."""
    return float(min(1.0, 2 * min(law.cdf(value), law.sf(value))))


def _total(events: np.ndarray, chance: float) -> float:
    """Exact p-value of how many of independent events of one chance came true."""
    return _binomial(int(events.sum()), events.size, chance)


def _binomial(count: int, trials: int, chance: float) -> float:
    law = stats.binom(trials, chance)
    return float(min(1.0, 2 * min(law.cdf(count), law.sf(count - 1))))


def _uneven(events: np.ndarray, chance: float) -> float:
    """p-value of how unevenly independent events of one chance fall on the columns; 1 where there are too few rows to tell."""
    n, columns = events.shape
    if n * chance * (1 - chance) < 5:
        return 1.0
    deviation = (events.sum(axis=0) - n * chance) ** 2 / (n * chance * (1 - chance))
    # a squared standardised binomial has mean 1 and variance 2 + (1 - 6 q (1 - q)) / (n q (1 - q)), a little more than chi-square
    variance = 2 + (1 - 6 * chance * (1 - chance)) / (n * chance * (1 - chance))
    z = (float(deviation.sum()) - columns) / math.sqrt(variance * columns)
    shrunk = z * math.sqrt(2 * columns) + columns
    return two_sided(stats.chi2(columns), max(shrunk, 0.0))
