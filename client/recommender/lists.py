"""From queries to lists: the search, what is left out of it, and the choice among its candidates."""

from __future__ import annotations

import numpy as np

from ..top_k import ExactTopK, Excluded, TopItems, TopK
from .ragged import Ragged
from .reranking import n_candidates, rerank
from .scoring import Extra


def best_items(
    queries: np.ndarray,
    *,
    engine: TopK,
    exact: ExactTopK,
    extra: tuple[np.ndarray, Extra] | None,
    masked: Ragged,
    everywhere: np.ndarray,
    coordinates: np.ndarray,
    k: int,
    diversity: float,
) -> TopItems:
    """The lists of n users.

    Args:
        queries: (n, D).
        engine: searches for those whose scores are inner products.
        exact: for the others.
        extra: who the others are, (n,) bool, and what their scores are more than inner products; None = there are none.
        masked: what each user is not offered.
        everywhere: (n_items,) bool, what nobody is.
        coordinates: (n_items, d), for the choice of items that differ.
        k: length of the lists.
        diversity: 0 to 1.
    """
    wanted = n_candidates(k, diversity, len(coordinates))
    nowhere = everywhere if everywhere.any() else None
    if extra is None:
        top = engine.search(queries, wanted, excluded=_excluded(masked, nowhere))
    else:
        others, added = extra
        top = TopItems.empty(len(queries), wanted)
        for rows, found in (
            (others, exact.search(queries[others], wanted, excluded=_excluded(masked.select(others), nowhere), extra=added)),
            (~others, engine.search(queries[~others], wanted, excluded=_excluded(masked.select(~others), nowhere))),
        ):
            top.items[rows], top.scores[rows] = found.items, found.scores
    if diversity == 0.0:
        return top
    chosen = rerank(top.items, top.scores, coordinates, k=k, diversity=diversity)
    return TopItems(items=np.take_along_axis(top.items, chosen, axis=1), scores=np.take_along_axis(top.scores, chosen, axis=1))


def _excluded(masked: Ragged, everywhere: np.ndarray | None) -> Excluded:
    return Excluded(items=masked.items, offsets=masked.offsets, everywhere=everywhere)
