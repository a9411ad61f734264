r"""Ranking metrics: pure functions on ranks and on lists.

Held-out items are ragged: user u has the entries ``offsets[u]:offsets[u + 1]`` of a flat array. ``ranks`` are positions in the user's
ranking of the *whole* catalogue, 0 = first, seen items taken out, ties at their average position. ``top`` (n_users, k) holds the items at
the head of each list, best first, -1 where a list is shorter. Every function returns one value per user; average them yourself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UsageError

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]
Ints = NDArray[Any]
ScoreRows = Callable[[int, int], Array32]
"""Gives the scores (stop - start, n_items) of the users start to stop."""

SCORES_AT_A_TIME = 4_000_000
"""Scores that are copied at a time: 16 MB of float32, whatever the number of users."""
FEW_ITEMS = 24
"""With more held-out items than this, a user's scores are sorted once instead of being compared with each of them."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """What a full ranking found.

    Args:
        ranks: flat float32, the rank of each held-out item, in the order they came; exact up to 8 million items.
        top: (n_users, k) int32, best first, equal scores by item index; -1 where fewer than k items are left unseen.
    """

    ranks: Array32
    top: NDArray[np.int32]


def ranks_of(
    scores: Array32 | ScoreRows,
    truth: Ints,
    offsets: Ints,
    seen: Ints,
    seen_offsets: Ints,
    *,
    k: int = 20,
    n_items: int | None = None,
) -> Ranking:
    """Ranks the whole catalogue for each user; memory beyond ``scores`` does not grow with the number of users.

    The rank of an item is the number of unseen items that score higher, plus half the number of other unseen items that score the same.
    Other held-out items stay in the ranking.

    Args:
        scores: (n_users, n_items) float32, or a function that gives the rows start to stop when they are needed.
        truth: held-out items of all users, flat.
        offsets: (n_users + 1,) where each user's held-out items begin.
        seen: items to take out, flat.
        seen_offsets: (n_users + 1,) where each user's seen items begin.
        k: length of the lists.
        n_items: size of the catalogue; needed only where ``scores`` is a function.
    Raises:
        UsageError: k is larger than the catalogue; a held-out item is among the seen ones or not in the catalogue; a score is not finite.

    >>> scores = np.array([[0.9, 0.5, 0.5, 0.1]], dtype=np.float32)
    >>> found = ranks_of(scores, np.array([1, 3]), np.array([0, 2]), np.array([0]), np.array([0, 1]), k=2)
    >>> found.ranks.tolist(), found.top.tolist()
    ([0.5, 2.0], [[1, 2]])
    """
    size = n_items if n_items is not None else -1 if callable(scores) else scores.shape[1]
    if size < 0:
        raise UsageError("ranks_of needs n_items when the scores come from a function")
    if not 1 <= k <= size:
        raise UsageError(f"lists of {k} items cannot be made from a catalogue of {size}", do="Choose a smaller k, or a larger catalogue.")
    n_users = len(offsets) - 1
    _check_flat(truth, offsets, n_users, size, "held-out")
    _check_flat(seen, seen_offsets, n_users, size, "seen")
    ranks = np.empty(len(truth), dtype=np.float32)
    top = np.full((n_users, k), -1, dtype=np.int32)
    rows_at_a_time = max(1, SCORES_AT_A_TIME // size)
    for start in range(0, n_users, rows_at_a_time):
        stop = min(start + rows_at_a_time, n_users)
        rows = np.array(scores(start, stop) if callable(scores) else scores[start:stop], dtype=np.float32)  # (rows, n_items), a copy
        if rows.shape != (stop - start, size):
            raise UsageError("the scores are not (n_users, n_items)", do="One row per user, one column per item of the catalogue.")
        if not np.isfinite(rows).all():
            raise UsageError("a score is not finite, so it has no rank")
        masked = slice(seen_offsets[start], seen_offsets[stop])
        user_of = np.repeat(np.arange(stop - start), np.diff(seen_offsets[start : stop + 1]))
        rows[user_of, seen[masked]] = -np.inf
        for user in range(start, stop):
            own = slice(offsets[user], offsets[user + 1])
            ranks[own] = _ranks_in_row(rows[user - start], truth[own])
        _fill_top(rows, top[start:stop])
    return Ranking(ranks=ranks, top=top)


def hit_rate_at_k(ranks: Array32, offsets: Ints, k: int) -> Array64:
    r"""1 where any held-out item is inside the top ``k``, else 0 (Deshpande & Karypis 2004, sect. 6.2; here with several items a user).

    >>> hit_rate_at_k(np.array([0, 9, 7]), np.array([0, 2, 3]), k=5).tolist()
    [1.0, 0.0]
    """
    return (_hits(ranks, offsets, k) > 0).astype(np.float64)


def recall_at_k(ranks: Array32, offsets: Ints, k: int) -> Array64:
    r"""Share of the held-out items that are inside the top ``k``: hits / \|truth\| (Manning et al. 2008, eq. 8.2).

    >>> recall_at_k(np.array([0, 9, 7]), np.array([0, 2, 3]), k=5).tolist()
    [0.5, 0.0]
    """
    return np.asarray(_hits(ranks, offsets, k) / np.diff(offsets), dtype=np.float64)


def precision_at_k(ranks: Array32, offsets: Ints, k: int) -> Array64:
    r"""Share of the top ``k`` that is held out: hits / k (Manning et al. 2008, eq. 8.1).

    Bounded by 1: items that tie across the cut-off all stand at their average position, inside it.

    >>> precision_at_k(np.array([0, 1, 7]), np.array([0, 2, 3]), k=4).tolist()
    [0.5, 0.0]
    """
    return np.asarray(np.minimum(_hits(ranks, offsets, k) / k, 1.0), dtype=np.float64)


def f1_at_k(ranks: Array32, offsets: Ints, k: int) -> Array64:
    r"""Harmonic mean of precision and recall, 2 P R / (P + R); 0 where both are (Manning et al. 2008, eq. 8.6).

    >>> f1_at_k(np.array([0, 9]), np.array([0, 2]), k=1).round(3).tolist()  # P = 1, R = 1/2
    [0.667]
    """
    precision, recall = precision_at_k(ranks, offsets, k), recall_at_k(ranks, offsets, k)
    both = precision + recall
    return np.divide(2 * precision * recall, both, out=np.zeros_like(both), where=both > 0)


def ndcg_at_k(ranks: Array32, offsets: Ints, k: int) -> Array64:
    r"""Normalised discounted cumulative gain with binary relevance (Jarvelin & Kekalainen 2002).

    .. math:: \frac{\sum_{j:\, r_j < k} 1 / \log_2(r_j + 2)}{\sum_{i=0}^{\min(k, |truth|) - 1} 1 / \log_2(i + 2)}

    The ideal list holds as many held-out items as fit. Bounded by 1, as `precision_at_k`.

    >>> ndcg_at_k(np.array([0, 1, 9]), np.array([0, 1, 2, 3]), k=5).round(3).tolist()  # 1/log2(3) = 0.631
    [1.0, 0.631, 0.0]
    >>> ndcg_at_k(np.array([0, 9]), np.array([0, 2]), k=5).round(3).tolist()  # 1 / (1 + 0.631)
    [0.613]
    """
    _check_ragged(ranks, offsets, k)
    gains = np.where(ranks < k, 1.0 / np.log2(ranks.astype(np.float64) + 2.0), 0.0)
    best = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(np.arange(k) + 2.0))])  # (k + 1,) ideal gain of 0 to k items
    if len(offsets) == 1:
        return np.zeros(0)
    ideal: Array64 = best[np.minimum(np.diff(offsets), k)]  # (n_users,)
    return np.minimum(np.add.reduceat(gains, offsets[:-1]) / ideal, 1.0)


def mrr(ranks: Array32, offsets: Ints) -> Array64:
    r"""Reciprocal rank of the first hit, over the whole ranking: 1 / (1 + min r) (Voorhees 1999).

    >>> mrr(np.array([3, 1, 0]), np.array([0, 2, 3])).tolist()
    [0.5, 1.0]
    """
    _check_ragged(ranks, offsets, 1)
    if len(offsets) == 1:
        return np.zeros(0)
    return 1.0 / (1.0 + np.minimum.reduceat(ranks.astype(np.float64), offsets[:-1]))


def coverage_at_k(top: Ints, n_items: int, k: int | None = None) -> float:
    r"""Catalogue coverage: share of the catalogue that is in anybody's list (Ge et al. 2010, eq. 1).

    Args:
        top: (n_users, at least k) lists.
        n_items: size of the catalogue.
        k: how much of each list counts; all of it when not given.

    >>> coverage_at_k(np.array([[0, 1], [0, 2]]), n_items=4)
    0.75
    """
    return float((_exposure(top, n_items, k) > 0).mean())


def novelty_at_k(top: Ints, popularity: Ints, k: int | None = None) -> Array64:
    r"""Mean self-information of a user's list, in bits: mean of -log2 p(i) (Zhou et al. 2010; Vargas & Castells 2011, sect. 4.1).

    p(i) is the item's share of all interactions, with one added to every item's count so that an item nobody bought is finite.

    Args:
        top: (n_users, at least k) lists.
        popularity: (n_items,) how often each item occurs.
        k: how much of each list counts; all of it when not given.
    Returns:
        (n_users,) bits; 0 for an empty list.

    >>> novelty_at_k(np.array([[0], [1]]), popularity=np.array([2, 0])).tolist()  # shares 3/4 and 1/4
    [0.4150374992788438, 2.0]
    """
    lists = _head(top, len(popularity), k)
    bits = -np.log2((popularity + 1.0) / (popularity.sum() + len(popularity)))
    there = lists >= 0
    total: Array64 = np.where(there, bits[lists], 0.0).sum(axis=1)
    return np.asarray(total / np.maximum(there.sum(axis=1), 1), dtype=np.float64)


def gini_at_k(top: Ints, n_items: int, k: int | None = None) -> float:
    r"""Gini index of how often items are recommended: 0 = all equally often, near 1 = the same few always (Fleder & Hosanagar 2009).

    .. math:: G = \frac{\sum_{i=1}^{n} (2i - n - 1)\, x_{(i)}}{n \sum_i x_i} \qquad x_{(1)} \le \dots \le x_{(n)}

    >>> gini_at_k(np.array([[0], [1]]), n_items=2), gini_at_k(np.array([[0], [0]]), n_items=2)
    (0.0, 0.5)
    """
    counts = np.sort(_exposure(top, n_items, k)).astype(np.float64)
    if counts.sum() == 0:
        return 0.0
    weights = 2.0 * np.arange(1, n_items + 1) - n_items - 1
    return float((weights * counts).sum() / (n_items * counts.sum()))


def intra_list_diversity_at_k(top: Ints, coordinates: Array32, k: int | None = None) -> Array64:
    r"""Mean of 1 - cosine over all pairs of a user's list (Ziegler et al. 2005, eq. 4, as a distance).

    With unit rows the sum of the cosines of all ordered pairs is \|sum x\|^2 - n.

    Args:
        top: (n_users, at least k) lists.
        coordinates: (n_items, d) unit rows.
        k: how much of each list counts; all of it when not given.
    Returns:
        (n_users,) in [0, 2]; 0 for a list of fewer than two items.

    >>> plane = np.array([[1, 0], [0, 1], [1, 0]], dtype=np.float32)
    >>> intra_list_diversity_at_k(np.array([[0, 1], [0, 2]]), plane).tolist()
    [1.0, 0.0]
    """
    lists = _head(top, len(coordinates), k)
    diversity = np.zeros(len(lists))
    rows_at_a_time = max(1, SCORES_AT_A_TIME // max(1, lists.shape[1] * coordinates.shape[1]))
    for start in range(0, len(lists), rows_at_a_time):
        part = lists[start : start + rows_at_a_time]
        there = part >= 0
        vectors = np.where(there[..., None], coordinates[part], 0.0).astype(np.float64)  # (rows, k, d)
        cosines = np.square(vectors.sum(axis=1)).sum(axis=-1) - np.square(vectors).sum(axis=(1, 2))
        items = there.sum(axis=1)
        pairs = items * (items - 1)
        diversity[start : start + len(part)] = np.where(pairs > 0, 1.0 - cosines / np.maximum(pairs, 1), 0.0)
    return np.clip(diversity, 0.0, 2.0)


def _ranks_in_row(row: Array32, truth: Ints) -> Array64:
    """Average-tie ranks of the items ``truth`` in one user's scores (n_items,); seen items are at -inf."""
    wanted = row[truth]
    if not np.isfinite(wanted).all():
        raise UsageError("a held-out item is also among the seen items, so it has no rank", do="Take repeated items out of the history.")
    if len(truth) > FEW_ITEMS:
        ordered = np.sort(row)
        above = len(row) - np.searchsorted(ordered, wanted, side="right")
        not_below = len(row) - np.searchsorted(ordered, wanted, side="left")
    else:
        above = np.array([np.count_nonzero(row > score) for score in wanted])
        not_below = np.array([np.count_nonzero(row >= score) for score in wanted])
    return (above + not_below - 1) / 2.0  # above + (equal - 1) / 2, where not_below = above + equal


def _fill_top(rows: Array32, top: NDArray[np.int32]) -> None:
    """Writes the best items of each row; equal scores by item index; items at -inf never."""
    k = top.shape[1]
    cuts = np.partition(rows, rows.shape[1] - k, axis=1)[:, rows.shape[1] - k]  # k-th largest score of each row
    for row, cut, best in zip(rows, cuts, top, strict=True):
        candidates = np.flatnonzero(row >= cut) if np.isfinite(cut) else np.flatnonzero(np.isfinite(row))
        chosen = candidates[np.argsort(-row[candidates], kind="stable")][:k]
        best[: len(chosen)] = chosen


def _hits(ranks: Array32, offsets: Ints, k: int) -> Array64:
    _check_ragged(ranks, offsets, k)
    if len(offsets) == 1:
        return np.zeros(0)
    return np.add.reduceat((ranks < k).astype(np.float64), offsets[:-1])


def _head(top: Ints, n_items: int, k: int | None) -> Ints:
    if k is not None and not 1 <= k <= top.shape[1]:
        raise UsageError(f"lists of {top.shape[1]} items have no top {k}", do="Rank with a larger k.")
    lists = top[:, :k]
    if lists.size and (lists.max() >= n_items or lists.min() < -1):
        raise UsageError("a list holds an item that is not in the catalogue")
    return lists


def _exposure(top: Ints, n_items: int, k: int | None) -> Ints:
    """(n_items,) in how many lists each item is."""
    if n_items < 1:
        raise UsageError("a catalogue without items has no coverage")
    lists = _head(top, n_items, k).ravel()
    return np.bincount(lists[lists >= 0], minlength=n_items)


def _check_ragged(ranks: Array32, offsets: Ints, k: int) -> None:
    if k < 1:
        raise UsageError(f"a list of {k} items has no metric", do="Choose k of at least 1.")
    if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(ranks):
        raise UsageError("offsets do not fit the ranks: they begin at 0 and end at the number of ranks")
    if not (ranks >= 0).all():
        raise UsageError("a rank is negative or not a number: the first place is rank 0")
    if (np.diff(offsets) < 1).any():
        raise UsageError("a user has no held-out item", do="Leave users without held-out items out of the evaluation.")


def _check_flat(items: Ints, offsets: Ints, n_users: int, n_items: int, what: str) -> None:
    if n_users < 0 or len(offsets) != n_users + 1 or offsets[0] != 0 or offsets[-1] != len(items) or (np.diff(offsets) < 0).any():
        raise UsageError(f"offsets of the {what} items do not fit: one per user and one more, from 0 to the number of items, never falling")
    if len(items) and (items.min() < 0 or items.max() >= n_items):
        raise UsageError(f"a {what} item is not in the catalogue")
