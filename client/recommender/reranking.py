r"""Maximal marginal relevance (Carbonell & Goldstein 1998): a list whose items are good, and not all the same.

.. math:: j^* = \arg\max_{j \notin S}\; (1 - \delta)\, r_j - \delta \max_{i \in S} \cos(x_i, x_j)

with :math:`r_j` in [0, 1] the score of item j, from the worst to the best of the user's candidates, S what was chosen before, and the
maximum over an empty S counted as 0. At :math:`\delta = 0` the list is the one by score; scores that were -inf (no item) never enter it.
"""

from __future__ import annotations

import numpy as np

CANDIDATES_PER_PLACE = 5
"""Items that are looked at for each place of the list."""

_NUMBERS_AT_A_TIME = 8_000_000


def n_candidates(k: int, diversity: float, n_items: int) -> int:
    """How many items to ask the search for, so that ``k`` can be chosen among them.

    >>> n_candidates(20, 0.0, 1000), n_candidates(20, 0.3, 1000), n_candidates(20, 0.3, 50)
    (20, 100, 50)
    """
    return min(k * CANDIDATES_PER_PLACE, n_items) if diversity > 0 else min(k, n_items)


def rerank(items: np.ndarray, scores: np.ndarray, coordinates: np.ndarray, *, k: int, diversity: float) -> np.ndarray:
    """Chooses k of each user's candidates.

    Args:
        items: (n, C) candidates, best first; -1 = none, at the end of a row.
        scores: (n, C) their scores, -inf where there is none.
        coordinates: (n_items, d) unit rows, or rows of zeros, which are like nothing.
        k: length of the lists.
        diversity: delta, 0 to 1.
    Returns:
        (n, k) int64 positions in the rows of ``items``, in the order of the new list; candidates that are none come last.
    """
    n, candidates = items.shape
    k = min(k, candidates)
    if diversity == 0.0:
        return np.tile(np.arange(k), (n, 1))
    rows_at_a_time = max(1, _NUMBERS_AT_A_TIME // max(1, candidates * coordinates.shape[1]))
    parts = [np.zeros((0, k), dtype=np.int64)]
    for start in range(0, n, rows_at_a_time):
        rows = slice(start, start + rows_at_a_time)
        parts.append(_rerank(items[rows], scores[rows], coordinates, k, diversity))
    return np.concatenate(parts)


def _rerank(items: np.ndarray, scores: np.ndarray, coordinates: np.ndarray, k: int, diversity: float) -> np.ndarray:
    there = items >= 0
    relevance = (1.0 - diversity) * _relevance(scores, there)  # (n, C)
    vectors = coordinates[np.where(there, items, 0)]  # (n, C, d)
    nearest = np.full(items.shape, -np.inf, dtype=np.float32)  # to what was chosen
    left = there.copy()
    chosen = np.empty((len(items), k), dtype=np.int64)
    everybody = np.arange(len(items))
    for place in range(k):
        worth = relevance - diversity * (nearest if place else 0.0)
        worth[~left] = -np.inf
        best = worth.argmax(axis=1)  # the first, and so the better score, where two are worth the same
        exhausted = ~left[everybody, best]
        best[exhausted] = _first_unused(chosen[exhausted, :place], items.shape[1])
        chosen[:, place] = best
        left[everybody, best] = False
        np.maximum(nearest, np.einsum("ncd,nd->nc", vectors, vectors[everybody, best]), out=nearest)
    return chosen


def _relevance(scores: np.ndarray, there: np.ndarray) -> np.ndarray:
    """(n, C) in [0, 1]; all ones where a user's candidates score the same."""
    low = np.where(there, scores, np.inf).min(axis=1, keepdims=True, initial=np.inf)
    high = np.where(there, scores, -np.inf).max(axis=1, keepdims=True, initial=-np.inf)
    width = np.where(high > low, high - low, 1.0)
    relevance = np.where(high > low, (np.where(there, scores, 0.0) - low) / width, 1.0)
    return np.where(there, relevance, 0.0).astype(np.float32)


def _first_unused(used: np.ndarray, candidates: int) -> np.ndarray:
    """(m,) the first position that a row of ``used`` does not name: a place that nothing is left for."""
    free = np.ones((len(used), candidates), dtype=bool)
    np.put_along_axis(free, used, False, axis=1)
    return np.asarray(free.argmax(axis=1))
