"""From interests to lists: each user's search, what is left out of it, and the choice among its candidates."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..top_k import Excluded, TopItems
from .cold_start import Interests
from .explanation import BY_INTEREST, BY_NEITHER, BY_POPULARITY
from .people import People
from .reranking import n_candidates, rerank
from .scoring import Search, Searches, grouped


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Lists:
    """Lists of n users.

    Attributes:
        items: (n, k) int32 positions, best first; -1 = none.
        scores: (n, k) float32, before any re-ranking; -inf where there is no item.
        why: (n, k) int8, what lifts it above the average of the catalogue most: `BY_INTEREST`, `BY_POPULARITY` or `BY_NEITHER`.
    """

    items: np.ndarray
    scores: np.ndarray
    why: np.ndarray


def best_items(
    people: People,
    interests: Interests,
    searches: Searches,
    everywhere: np.ndarray,
    *,
    k: int,
    diversity: float,
    with_seen: bool,
) -> Lists:
    """The lists of some users.

    Args:
        people, interests: what is known of them.
        searches: of the domain.
        everywhere: (n_items,) bool, what nobody is offered.
        k: length of the lists.
        diversity: 0 to 1.
        with_seen: offer what they had before, too.
    """
    n = len(people)
    made = Lists(
        items=np.full((n, k), -1, dtype=np.int32),
        scores=np.full((n, k), -np.inf, dtype=np.float32),
        why=np.full((n, k), BY_NEITHER, dtype=np.int8),
    )
    for number, rows in grouped(searches.numbers(interests)):
        whole = len(rows) == n
        part, found = (people, interests) if whole else (people.select(rows), interests.select(rows))
        of_part = _of_search(part, found, searches[number], everywhere, k=k, diversity=diversity, with_seen=with_seen)
        made.items[rows], made.scores[rows], made.why[rows] = of_part.items, of_part.scores, of_part.why
    return made


def _of_search(
    people: People, interests: Interests, search: Search, everywhere: np.ndarray, *, k: int, diversity: float, with_seen: bool
) -> Lists:
    queries, extra = search.queries(people, interests), search.extra(people)
    hidden = people.dismissed.then(people.blocked)
    masked = hidden if with_seen else people.own.then(hidden)
    excluded = Excluded(items=masked.items, offsets=masked.offsets, everywhere=everywhere if everywhere.any() else None)
    wanted = n_candidates(k, diversity, len(search.vectors))
    if extra is None:
        top = search.engine.search(queries, wanted, excluded=excluded)
    else:
        top = search.exact.search(queries, wanted, excluded=excluded, extra=extra)
    if diversity > 0:
        chosen = rerank(top.items, top.scores, search.delivered.coordinates, k=k, diversity=diversity)
        top = TopItems(items=np.take_along_axis(top.items, chosen, axis=1), scores=np.take_along_axis(top.scores, chosen, axis=1))
    interest, popularity = search.lifts(queries, top.items, top.scores)
    why = np.where(popularity > 0, BY_POPULARITY, BY_NEITHER)
    why[(interest > 0) & (interest > popularity)] = BY_INTEREST
    return Lists(items=top.items, scores=top.scores, why=why.astype(np.int8))
