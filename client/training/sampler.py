"""Poisson batches at a cost of O(batch), whatever the number of users."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from scipy import stats

from .noise import keyed_generator, system_uniform


class Sampler(Protocol):
    """Draws the users of one step."""

    def draw(self, users: int, rate: float) -> np.ndarray:
        """Distinct positions in [0, users), each in it with chance ``rate`` and independently; may be empty."""
        ...


class PoissonSampler:
    """Poisson sampling in two draws: how many users (binomial), then which (a uniform subset of that size).

    The two draws have the law of one coin per user (a binomial number of exchangeable positions) but cost O(batch).

    Args:
        key: None draws from the operating system, as privacy amplification requires. A key makes a test build.
    """

    def __init__(self, *key: object) -> None:
        self._generator = keyed_generator("sample", *key) if key else None

    def draw(self, users: int, rate: float) -> np.ndarray:
        if users == 0:
            return np.empty(0, dtype=np.int64)
        size = int(stats.binom.ppf(self._uniform(1)[0], users, rate)) if rate < 1.0 else users
        if 2 * size > users:  # cheaper to say who stays out; still O(batch), because the batch is most of the users
            keep = np.ones(users, dtype=bool)
            keep[self._distinct(users, users - size)] = False
            return np.flatnonzero(keep)
        return self._distinct(users, size)

    def _uniform(self, count: int) -> np.ndarray:
        return system_uniform(count) if self._generator is None else self._generator.uniform(size=count)

    def _distinct(self, users: int, size: int) -> np.ndarray:
        """A uniform subset: draw with replacement, drop repeats, until there are enough."""
        chosen = np.empty(0, dtype=np.int64)
        while len(chosen) < size:
            wanted = size - len(chosen)
            drawn = (self._uniform(wanted + wanted // 4 + 8) * users).astype(np.int64)
            chosen = np.concatenate([chosen, drawn])
            _, first = np.unique(chosen, return_index=True)
            chosen = chosen[np.sort(first)]  # in order of drawing, so that cutting off keeps the law uniform
        return chosen[:size]
