"""What one could do without a federation: popularity, text, and, as a ceiling that nobody may deploy, a model of the pooled raw rows.

Interactions come as sparse matrices of users by items. Scores leave as `ScoreRows`, a function that gives the dense scores
(stop - start, n_items) of the users start to stop, so that a catalogue times all users is never in memory. Settings are chosen on
validation users only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse

from shared.ranking import Array32, ScoreRows

ROWS_AT_A_TIME = 256
CUT = 10

_GAMMAS = (0.0, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5)
_RIDGES = (1.0, 5.0, 20.0)
_POPULARITY_WEIGHTS = (0.0, 0.003, 0.006, 0.01, 0.02, 0.04, 0.08)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPopularityWeights:
    """score = beta * cosine + gamma * log(1 + popularity)."""

    beta: float
    gamma: float


def _row_slices(n_rows: int, rows_at_a_time: int = ROWS_AT_A_TIME) -> Iterator[slice]:
    """Slices that cover ``n_rows`` once, in order."""
    for start in range(0, n_rows, rows_at_a_time):
        yield slice(start, min(start + rows_at_a_time, n_rows))


def popularity(train: scipy.sparse.csr_array) -> ScoreRows:
    """How many training users chose an item: the same list for everybody.

    The row ``popularity`` takes all training users of the target domain, the row ``linked-popularity`` only those of them who are linked.

    Args:
        train: (n_train, n_items) interactions; a user counts once for each item.

    >>> popularity(scipy.sparse.csr_array([[1, 0, 2], [1, 0, 0]]))(0, 1).tolist()
    [[2.0, 0.0, 1.0]]
    """
    count = item_counts(train).astype(np.float32)
    return lambda start, stop: np.tile(count, (stop - start, 1))


def text(interests: np.ndarray, items: np.ndarray) -> ScoreRows:
    """Zero-shot: cosine of a user's interest and an item's text vector; nothing is trained.

    Args:
        interests: (n_users, d) interest vectors made of the source history alone.
        items: (n_items, d) text vectors of the target's catalogue.
    """
    users, catalogue = _unit(interests), _unit(items)
    return lambda start, stop: np.asarray(users[start:stop] @ catalogue.T)


def text_popularity(interests: np.ndarray, items: np.ndarray, counts: np.ndarray, weights: TextPopularityWeights) -> ScoreRows:
    """beta * cosine + gamma * log(1 + popularity).

    Args:
        interests: (n_users, d).
        items: (n_items, d).
        counts: (n_items,) training users of each item.
        weights: from `tune_text_popularity`.
    """
    cosine, prior = text(interests, items), _prior(counts)
    return lambda start, stop: np.float32(weights.beta) * cosine(start, stop) + np.float32(weights.gamma) * prior


def tune_text_popularity(
    interests: np.ndarray, items: np.ndarray, counts: np.ndarray, truth: scipy.sparse.csr_array
) -> TextPopularityWeights:
    """The weights with the most validation users who find one of their items among the first ten; of equals, the least popularity.

    Args:
        interests: (n_validation, d).
        items: (n_items, d).
        counts: (n_items,) training users of each item.
        truth: (n_validation, n_items) what the validation users chose at the target.
    """
    cosine, prior = text(interests, items), _prior(counts)
    candidates = [TextPopularityWeights(beta=1.0, gamma=gamma) for gamma in _GAMMAS] + [TextPopularityWeights(beta=0.0, gamma=1.0)]
    hits = np.zeros(len(candidates))
    for rows in _row_slices(truth.shape[0]):
        base = cosine(rows.start, rows.stop)
        hits += [hits_at_k(c.beta * base + c.gamma * prior, truth[rows]) for c in candidates]
    return candidates[int(np.argmax(hits))]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PooledRidge:
    r"""Kernel ridge regression from source rows to target rows: the ceiling. NOT PRIVATE, it sees raw interactions of both domains.

    With unit source rows :math:`x_u`, kernel :math:`K_{uv} = \langle x_u, x_v \rangle` over the linked training users and their target
    rows Y, a new user has scores :math:`k (K + \lambda I)^{-1} Y + w \log(1 + \mathrm{popularity})` (Hastie, Tibshirani & Friedman 2009,
    section 12.3.7, with several outputs). Memory: three float32 matrices of n_train x n_train while tuning; time: one Cholesky factor
    for each lambda tried.

    Args:
        source: (n_train, n_source_items) unit rows of the linked training users.
        target: (n_train, n_items) ones, rows of the same users in the same order.
        factor: (n_train, n_train) upper Cholesky factor of K + lambda I.
        ridge: lambda.
        popularity_weight: w.
    """

    source: scipy.sparse.csr_array
    target: scipy.sparse.csr_array
    factor: np.ndarray
    ridge: float
    popularity_weight: float

    @classmethod
    def fitted(
        cls, source: scipy.sparse.csr_array, target: scipy.sparse.csr_array, *, ridge: float, popularity_weight: float
    ) -> PooledRidge:
        """With given settings, from (n_train, n_source_items) and (n_train, n_items) interactions."""
        rows = unit_rows(source)
        return cls(
            source=rows,
            target=_binary(target),
            factor=_factor(_kernel(rows, rows), ridge),
            ridge=ridge,
            popularity_weight=popularity_weight,
        )

    @classmethod
    def tuned(
        cls,
        source: scipy.sparse.csr_array,
        target: scipy.sparse.csr_array,
        *,
        validation_source: scipy.sparse.csr_array,
        validation_truth: scipy.sparse.csr_array,
        ridges: Sequence[float] = _RIDGES,
        popularity_weights: Sequence[float] = _POPULARITY_WEIGHTS,
    ) -> PooledRidge:
        """Chooses lambda and w by the hits of validation users; of equals, the strongest ridge and the least popularity."""
        rows, chosen, prior = unit_rows(source), _binary(target), _prior(item_counts(target))
        kernel, queries = _kernel(rows, rows), _kernel(unit_rows(validation_source), rows)
        best: tuple[float, PooledRidge] | None = None
        for ridge in sorted(ridges, reverse=True):
            factor = _factor(kernel.copy(), ridge)
            alpha = _solve(factor, queries)  # (n_validation, n_train)
            hits = np.zeros(len(popularity_weights))
            for part in _row_slices(len(alpha)):
                base = _times(alpha[part], chosen)
                hits += [hits_at_k(base + np.float32(w) * prior, validation_truth[part]) for w in popularity_weights]
            if best is None or hits.max() > best[0]:
                weight = popularity_weights[int(np.argmax(hits))]
                best = float(hits.max()), cls(source=rows, target=chosen, factor=factor, ridge=ridge, popularity_weight=weight)
            del factor
        if best is None:
            raise ValueError("no ridge to choose from")
        return best[1]

    def scores(self, source: scipy.sparse.csr_array) -> ScoreRows:
        """Scores of other users from their source rows, (n_users, n_source_items)."""
        alpha = _solve(self.factor, _kernel(unit_rows(source), self.source))  # (n_users, n_train)
        prior = np.float32(self.popularity_weight) * _prior(item_counts(self.target))
        return lambda start, stop: _times(alpha[start:stop], self.target) + prior


def item_counts(train: scipy.sparse.csr_array) -> np.ndarray:
    """(n_items,) int64: users who chose an item, each once."""
    return np.bincount(_binary(train).indices, minlength=train.shape[1]).astype(np.int64)


def unit_rows(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """One for each item a user chose, divided by the row's Euclidean length; empty rows stay empty."""
    rows = _binary(matrix)
    length = np.sqrt(np.diff(rows.indptr))
    rows.data /= np.repeat(length, np.diff(rows.indptr)).astype(np.float32)
    return rows


def hits_at_k(scores: np.ndarray, truth: scipy.sparse.csr_array, k: int = CUT) -> float:
    """How many of these users have an item of theirs among the first ``k`` (a sum, not a share); ties at their average rank.

    Args:
        scores: (n_users, n_items).
        truth: (n_users, n_items), non-zero where an item is the user's.
    """
    chosen = _binary(truth)
    users = np.flatnonzero(np.diff(chosen.indptr))
    if not len(users):
        return 0.0
    own = scores[np.repeat(np.arange(chosen.shape[0]), np.diff(chosen.indptr)), chosen.indices]
    best = np.maximum.reduceat(own, chosen.indptr[users])[:, None]  # (n_users with truth, 1)
    rows = scores[users]
    rank = (rows > best).sum(axis=1) + ((rows == best).sum(axis=1) - 1) / 2
    return float((rank < k).sum())


def _unit(vectors: np.ndarray) -> Array32:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1.0), dtype=np.float32)


def _prior(counts: np.ndarray) -> Array32:
    return np.asarray(np.log1p(counts), dtype=np.float32)


def _binary(matrix: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
    """A copy with float32 ones where ``matrix`` is not zero."""
    found = scipy.sparse.csr_array(matrix, dtype=np.float32, copy=True)
    found.sum_duplicates()
    found.eliminate_zeros()
    found.data[:] = 1.0
    return found


def _kernel(a: scipy.sparse.csr_array, b: scipy.sparse.csr_array) -> np.ndarray:
    """(n_a, n_b) float32 inner products."""
    return np.asarray((a @ b.T).todense(), dtype=np.float32)


def _factor(kernel: np.ndarray, ridge: float) -> np.ndarray:
    """Cholesky factor of kernel + ridge I; overwrites ``kernel``."""
    kernel[np.diag_indices_from(kernel)] += np.float32(ridge)
    factor, _ = scipy.linalg.cho_factor(kernel.T, lower=False, overwrite_a=True, check_finite=False)
    return np.asarray(factor)


def _solve(factor: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """queries (K + lambda I)^-1, (n_queries, n_train) float32."""
    return np.asarray(scipy.linalg.cho_solve((factor, False), queries.T, check_finite=False).T)


def _times(alpha: np.ndarray, target: scipy.sparse.csr_array) -> Array32:
    """Dense times sparse, (n_rows, n_items) float32."""
    return np.ascontiguousarray((target.T @ alpha.T).T, dtype=np.float32)
