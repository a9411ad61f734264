r"""Every serving head as a search by inner product: item vectors that hold the coordinates, and beside them priors and factors.

A head scores :math:`\beta\langle z + b, x_j\rangle + \mathrm{prior}_j` (`client.model.domain_head`). With the priors of several heads as
further columns, :math:`x'_j = [x_j, \mathrm{prior}_{1j}, \mathrm{prior}_{2j}, ...]`, that is the inner product with
:math:`q = [\beta (z + b), 0, ..., 1, ..., 0]`, so all plain heads share one search. A head with factors of its own (alike people, or the
blend for warm users) has a search to itself, or everybody would pay for its columns; what the blend adds beyond an inner product (item
weights) comes as a function that gives dense rows.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ..delivery import OWN as OWN_HEAD
from ..model.domain_head import ServingHead, popularity_head
from ..top_k import ExactTopK, TopK
from .cold_start import WARM, Interests, scorer_names
from .delivered import Delivered
from .engines import engine_of
from .people import People
from .ragged import Ragged
from .requests import DECLARED, OWN, POPULARITY

Extra = Callable[[slice], np.ndarray]
PLAIN = 0
"""The search that all plain heads share; popularity is one of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """A score, and how far interest and popularity lift it above the average of the catalogue."""

    score: float
    interest: float
    popularity: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Search:
    """One search, and the heads that use it.

    Attributes:
        delivered: what is scored with.
        heads: by scorer (a position in `scorer_names`); none where the blend is what scores.
        vectors: (n_items, D) float32: d coordinates, a prior for each head or the blend's, factors.
        centre: (D,) their mean.
        exact: exact search over them.
        engine: the search that the partner chose.
    """

    delivered: Delivered
    heads: dict[int, ServingHead]
    vectors: np.ndarray
    centre: np.ndarray
    exact: ExactTopK
    engine: TopK

    @classmethod
    def of(cls, delivered: Delivered, heads: dict[int, ServingHead]) -> Search:
        """An exact search."""
        if delivered.warm is not None and not heads:
            vectors = delivered.warm.vectors(delivered.coordinates)
        elif len(heads) == 1:
            vectors = next(iter(heads.values())).item_vectors(delivered.coordinates)
        else:
            vectors = np.concatenate([delivered.coordinates, *(head.prior[:, None] for head in heads.values())], axis=1, dtype=np.float32)
        exact = ExactTopK(vectors)
        return cls(delivered=delivered, heads=heads, vectors=vectors, centre=vectors.mean(axis=0), exact=exact, engine=exact)

    @property
    def priors(self) -> slice:
        """Columns that are the same for everybody whom a head scores."""
        d = self.delivered.space.dimension
        return slice(d, d + max(1, len(self.heads)))

    def queries(self, people: People, interests: Interests) -> np.ndarray:
        """(n, D) float32, whose inner products with ``vectors``, and `extra`, are the scores."""
        if not self.heads and self.delivered.warm is not None:
            return self.delivered.warm.queries(*histories(people, self.delivered), self.delivered.coordinates)
        d = self.delivered.space.dimension
        queries = np.zeros((len(interests.vectors), self.vectors.shape[1]), dtype=np.float32)
        for place, (scorer, head) in enumerate(self.heads.items()):
            who = interests.scorers == scorer
            found = head.queries(interests.vectors[who], interests.passports[who])  # (who, d + 1 + factors)
            queries[who, :d], queries[who, d + place] = found[:, :d], found[:, d]
            if len(self.heads) == 1:
                queries[who, d + 1 :] = found[:, d + 1 :]
        return queries

    def extra(self, people: People) -> Extra | None:
        """What is added to the inner products; None where nothing is."""
        if self.heads or self.delivered.warm is None:
            return None
        return self.delivered.warm.extra(*histories(people, self.delivered))

    def lifts(self, queries: np.ndarray, items: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, k) how far interest and prior lift (n, k) items above the average of the catalogue.

        What item weights add is counted as interest whole: of most items it is nothing.

        Args:
            queries: (n, D).
            items: (n, k) positions, -1 for none.
            scores: (n, k) of these items.
        """
        prior = np.einsum("nkh,nh->nk", self.vectors[np.maximum(items, 0), self.priors], queries[:, self.priors])
        typical = queries @ self.centre
        typical_prior = queries[:, self.priors] @ self.centre[self.priors]
        there = np.where(items >= 0, scores, 0.0)
        return there - prior - (typical - typical_prior)[:, None], prior - typical_prior[:, None]

    def parts(self, people: People, interests: Interests, item: int) -> Parts:
        """Of the score of one item for one user."""
        queries = self.queries(people, interests)
        extra = self.extra(people)
        score = float(queries[0] @ self.vectors[item]) + (0.0 if extra is None else float(extra(slice(0, 1))[0, item]))
        interest, popularity = self.lifts(queries, np.array([[item]]), np.array([[score]]))
        return Parts(score=score, interest=float(interest[0, 0]), popularity=float(popularity[0, 0]))


class Searches:
    """The searches of one domain, each made when it is first needed; any thread may ask.

    Args:
        delivered: what is scored with.
        engine: one of `client.recommender.engines.ENGINES`.
        sample: gives queries (n, D) of some users of a search, for engines that want to see a few beforehand.
    """

    def __init__(self, delivered: Delivered, engine: str, sample: Callable[[int, Search], np.ndarray | None]) -> None:
        self._delivered, self._engine, self._sample = delivered, engine, sample
        names = scorer_names(delivered)
        heads = {scorer: _head(name, delivered) for scorer, name in enumerate(names) if name != WARM}
        plain = {scorer: head for scorer, head in heads.items() if head.neighbours is None}
        own = [{scorer: head} for scorer, head in heads.items() if head.neighbours is not None]
        self._heads: list[dict[int, ServingHead]] = [plain, *own, {}]
        self._of_scorer = np.full(len(names), len(self._heads) - 1, dtype=np.int64)  # the blend's, where no head is named
        for number, each in enumerate(self._heads):
            self._of_scorer[list(each)] = number
        self._made: dict[int, Search] = {}
        self._lock = threading.Lock()

    def numbers(self, interests: Interests) -> np.ndarray:
        """(n,) which search each user needs."""
        return np.asarray(self._of_scorer[interests.scorers])

    def __getitem__(self, number: int) -> Search:
        with self._lock:
            if number not in self._made:
                made = Search.of(self._delivered, self._heads[number])
                sample = functools.partial(self._sample, number, made)
                engine = engine_of(self._engine, made.vectors, made.exact, sample)
                self._made[number] = dataclasses.replace(made, engine=engine)
            return self._made[number]


def histories(people: People, delivered: Delivered) -> tuple[np.ndarray, np.ndarray]:
    """What the blend reads: (n, L) items, latest last; and (n, L) int8, 1 where one was liked, -1 dismissed, 0 where there is none."""
    own, dismissed, most = people.own, people.dismissed, delivered.config.training.max_history_items
    both = own.then(dismissed)
    signs = np.concatenate([np.ones(len(own.items), dtype=np.int64), -np.ones(len(dismissed.items), dtype=np.int64)])
    order = np.argsort(np.concatenate([own.rows, dismissed.rows]), kind="stable")
    items, mask = both.padded(most)
    signed, _ = Ragged(offsets=both.offsets, items=signs[order]).padded(most)
    return items, (signed * mask).astype(np.int8)


def grouped(numbers: np.ndarray) -> Sequence[tuple[int, np.ndarray]]:
    """Each search that somebody needs, and (m,) who does."""
    return [(int(number), np.flatnonzero(numbers == number)) for number in np.unique(numbers)]


def _head(name: str, delivered: Delivered) -> ServingHead:
    own = delivered.heads[OWN_HEAD]
    if name == OWN:
        return own
    if name == POPULARITY:
        counts = np.expm1(own.log_counts[:1].astype(np.float64))
        return popularity_head(np.rint(counts), own.offset.shape[0])
    if name == DECLARED:
        # Histories may not help here, but whoever says what they like wants to be heard: then by the public scale that training starts
        # with. And people with alike histories say nothing of people with alike words.
        weak = own.scale == 0.0
        return ServingHead(
            scale=delivered.config.training.temperature if weak else own.scale,
            offset=np.zeros_like(own.offset) if weak else own.offset,
            weights=own.weights,
            log_counts=own.log_counts,
        )
    return delivered.heads[name]
