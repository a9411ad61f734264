"""Exact search: the lists of a plain sort of all scores, whatever the chunks (`chunked` says how)."""

from __future__ import annotations

import numpy as np

from .chunked import TINY, UNIT_ROUNDOFF, ChunkedSearch, inner_products
from .lists import Array32, Array64, Ints, checked_vectors, norms

SURPLUS = 6


class ExactTopK(ChunkedSearch):
    """Exact search. A score is the inner product (plus what the caller adds), summed in float64 and rounded once to float32.

    Args:
        vectors: (n_items, D) float32 item vectors; kept, and once more by columns, which makes a product a third faster.
        rows_at_a_time: queries of a chunk; None bounds the scores of a chunk to 5 MB.
        threads: threads while searching; None takes as many as torch has.
    Raises:
        UsageError: the vectors are not finite or have another shape; a number is below 1.
    """

    def __init__(self, vectors: Array32, *, rows_at_a_time: int | None = None, threads: int | None = None) -> None:
        super().__init__(_FloatRows(vectors), surplus=SURPLUS, rows_at_a_time=rows_at_a_time, threads=threads)


class _FloatRows:
    """Item vectors as they are, by rows and by columns."""

    def __init__(self, vectors: Array32) -> None:
        self._vectors = checked_vectors(vectors)
        self._columns = np.ascontiguousarray(self._vectors.T)
        self.n_items, self.dimension = self._vectors.shape
        self.largest = float(norms(self._vectors).max())

    def tile(self, first: int, last: int) -> Array32:
        return self._columns[:, first:last]

    def rough(self, queries: Array32) -> Array32:
        return queries

    def margin(self, queries: Array32) -> Array64:
        return rounding(norms(queries), self.largest, self.dimension)

    def final(self, queries: Array32, items: Ints) -> Array64:
        return inner_products(queries, self._vectors[items])


def rounding(sizes: Array64, largest: float, dimension: int) -> Array64:
    r"""(n,) how far float32 products of vectors of norms ``sizes`` with vectors of at most norm ``largest`` can be from the true ones.

    .. math:: \gamma_{D+3} \lVert q\rVert \max_j\lVert x_j\rVert, \quad \gamma_n = nu/(1-nu), \quad u = 2^{-24}

    in whatever order they are summed (Higham 2002, eq. 3.5); three roundings more than a product has, for what is done before and after
    it, and what numbers too small for float32 can lose.
    """
    terms = dimension + 3
    steps = terms * UNIT_ROUNDOFF
    return np.asarray(steps / (1 - steps) * sizes * largest + terms * TINY * (1 + sizes + largest))
