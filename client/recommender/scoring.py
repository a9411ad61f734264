r"""Every serving head as one search: item vectors that hold the coordinates and, beside them, the prior of each head.

A head scores :math:`\beta\langle z + b, x_j\rangle + \mathrm{prior}_j` (`client.model.domain_head`). With the priors of all heads as
further columns, :math:`x'_j = [x_j, \mathrm{prior}_{1j}, \mathrm{prior}_{2j}, ..., f_j]`, that is the inner product with
:math:`q = [\beta (z + b), 0, ..., 1, ..., 0, q_f]`; :math:`f_j` are the item factors of the blend for warm users, where it has some. So
users with a history, with passports of any source and with nothing are searched for together, in one index. What the blend adds beyond an
inner product (item weights) comes as a function that gives dense rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..delivery import OWN as OWN_HEAD
from ..model.domain_head import ServingHead, popularity_head
from .cold_start import WARM, Interests, scorer_names
from .delivered import Delivered
from .people import People
from .ragged import Ragged
from .requests import DECLARED, OWN, POPULARITY

Extra = Callable[[slice], np.ndarray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A score, and how far interest and popularity lift it above the average of the catalogue."""

    score: float
    interest: float
    popularity: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scores:
    """All ways of scoring of one domain.

    Attributes:
        delivered: what is scored with.
        heads: one for each of `scorer_names`; what stands for the blend is scored by the blend.
        vectors: (n_items, D) float32; D = d + H + factors.
        centre: (D,) their mean.
    """

    delivered: Delivered
    heads: list[ServingHead]
    vectors: np.ndarray
    centre: np.ndarray

    @classmethod
    def of(cls, delivered: Delivered) -> Scores:
        heads = [_head(name, delivered) for name in scorer_names(delivered)]
        columns = [delivered.coordinates, *(head.prior[:, None] for head in heads)]
        if delivered.warm is not None:
            blended = delivered.warm.vectors(delivered.coordinates)  # (n_items, d + 1 + factors)
            d = delivered.space.dimension
            columns[-1] = blended[:, d : d + 1]
            columns.append(blended[:, d + 1 :])
        vectors = np.concatenate(columns, axis=1, dtype=np.float32)
        return cls(delivered=delivered, heads=heads, vectors=vectors, centre=vectors.mean(axis=0))

    def queries(self, people: People, interests: Interests) -> np.ndarray:
        """(n, D) float32, whose inner products with ``vectors``, and `extra`, are the scores."""
        n, d = interests.vectors.shape
        queries = np.zeros((n, self.vectors.shape[1]), dtype=np.float32)
        scales = np.array([head.scale for head in self.heads], dtype=np.float32)[interests.scorers]
        offsets = np.stack([head.offset for head in self.heads]).astype(np.float32)[interests.scorers]
        queries[:, :d] = scales[:, None] * (interests.vectors + offsets)
        queries[np.arange(n), d + interests.scorers] = 1.0
        warm = self.is_warm(interests)
        if self.delivered.warm is not None and warm.any():
            items, mask = self._histories(people, warm)
            blended = self.delivered.warm.queries(items, mask, self.delivered.coordinates)  # (warm, d + 1 + factors)
            place = d + len(self.heads)
            queries[warm, :d] = blended[:, :d]
            queries[warm, place - 1 :] = blended[:, d:]
        return queries

    def extra(self, people: People, interests: Interests) -> tuple[np.ndarray, Extra] | None:
        """Whose scores are more than inner products, (n,) bool, and what is added to theirs; None where nobody's are."""
        warm = self.is_warm(interests)
        if self.delivered.warm is None or not warm.any():
            return None
        added = self.delivered.warm.extra(*self._histories(people, warm))
        return None if added is None else (warm, added)

    def is_warm(self, interests: Interests) -> np.ndarray:
        """(n,) bool: who is scored by the blend."""
        return np.asarray(interests.scorers == len(self.heads) - 1)

    def parts(self, people: People, interests: Interests, item: int) -> Parts:
        """Of the score of one item for the first of the users."""
        queries = self.queries(people, interests)
        extra = self.extra(people, interests)
        score = float(queries[0] @ self.vectors[item])
        if extra is not None and extra[0][0]:
            score += float(extra[1](slice(0, 1))[0, item])
        interest, popularity = self.lifts(queries[:1], np.array([[item]]), np.array([[score]]))
        return Parts(score=score, interest=float(interest[0, 0]), popularity=float(popularity[0, 0]))

    def is_personal(self, queries: np.ndarray, items: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """(n, k) bool: whether an item stands above the average of the catalogue more by the interest than by the prior.

        Args:
            queries: (n, D), from `queries`.
            items: (n, k) positions; what stands for none gives False.
            scores: (n, k) of these items.
        """
        interest, popularity = self.lifts(queries, items, scores)
        return np.asarray((items >= 0) & (interest > 0) & (interest > popularity))

    def lifts(self, queries: np.ndarray, items: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, k) how far interest and prior lift items above the average of the catalogue.

        What item weights add is counted as interest whole: of most items it is nothing.
        """
        d = self.delivered.space.dimension
        priors = slice(d, d + len(self.heads))
        prior = np.einsum("nkh,nh->nk", self.vectors[np.maximum(items, 0), priors], queries[:, priors])
        typical = queries @ self.centre
        typical_prior = queries[:, priors] @ self.centre[priors]
        there = np.where(items >= 0, scores, 0.0)
        return there - prior - (typical - typical_prior)[:, None], prior - typical_prior[:, None]

    def _histories(self, people: People, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What the blend reads of some users: (rows, L) items, latest last, and 1 where one was liked, -1 where it was dismissed."""
        own, dismissed, most = people.own.select(users), people.dismissed.select(users), self.delivered.config.training.max_history_items
        both = own.then(dismissed)
        signs = np.concatenate([np.ones(len(own.items), dtype=np.int8), -np.ones(len(dismissed.items), dtype=np.int8)])
        order = np.argsort(np.concatenate([own.rows, dismissed.rows]), kind="stable")
        items, mask = both.padded(most)
        signed, _ = Ragged(offsets=both.offsets, items=signs[order].astype(np.int64)).padded(most)
        return items, signed * mask


def _head(name: str, delivered: Delivered) -> ServingHead:
    own = delivered.heads[OWN_HEAD]
    if name in (OWN, WARM):
        return own
    if name == POPULARITY:
        counts = np.expm1(own.log_counts[:1].astype(np.float64))
        return popularity_head(np.rint(counts), own.offset.shape[0])
    if name == DECLARED and own.scale == 0.0:
        # Histories do not help here; but whoever says what they like wants to be heard. The public scale that training starts with.
        return ServingHead(
            scale=delivered.config.training.temperature, offset=np.zeros_like(own.offset), weights=own.weights, log_counts=own.log_counts
        )
    return own if name == DECLARED else delivered.heads[name]
