r"""Item vectors in a quarter of the memory: one byte a number.

.. math:: x_{jd} \approx s_d\, c_{jd}, \qquad s_d = \max_j |x_{jd}| / 127, \quad c_{jd} \in \{-127, \dots, 127\}

The steps are per dimension, because the dimensions mean different things (coordinates, a prior, factors) and have different sizes.

Alone, the codes are searched exactly, but they are not the vectors: lists differ a little from the exact ones, and so do scores. With the
vectors at hand to score the candidates again (in memory, or a file mapped into it), the lists are the exact ones: an inner product with the
codes is at most :math:`\lVert s \circ q\rVert \max_j \lVert x_j / s - c_j\rVert` (Cauchy-Schwarz) and the rounding away from the true one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .chunked import ChunkedSearch, inner_products
from .exact import rounding
from .lists import Array32, Array64, Ints, checked_vectors, norms

SURPLUS, SURPLUS_RESCORED = 6, 100
SCORES_AT_A_TIME = 4_000_000
_ITEMS_AT_A_TIME = 65_536


class Int8TopK(ChunkedSearch):
    """Search in one byte a number.

    Args:
        vectors: (n_items, D) float32 item vectors.
        rescored: keep ``vectors`` (which may be a file mapped into memory) and score candidates with them: exact lists and scores.
        rows_at_a_time: queries of a chunk; None bounds the scores of a chunk to 16 MB: codes are unpacked for each chunk anew.
        threads: threads while searching; None takes as many as torch has.
    Raises:
        UsageError: the vectors are not finite or have another shape; a number is below 1.
    """

    def __init__(self, vectors: Array32, *, rescored: bool = False, rows_at_a_time: int | None = None, threads: int | None = None) -> None:
        self.rescored = rescored
        self._coded = _Int8Rows(checked_vectors(vectors), rescored=rescored)
        surplus = SURPLUS_RESCORED if rescored else SURPLUS
        super().__init__(self._coded, surplus=surplus, rows_at_a_time=rows_at_a_time, threads=threads, scores_at_a_time=SCORES_AT_A_TIME)

    @property
    def vectors(self) -> Array32:
        """(n_items, D) float32: what the codes stand for, made anew at each call."""
        return self._coded.decoded(self._coded.codes)

    @property
    def bytes(self) -> int:
        """Memory of the codes."""
        return self._coded.codes.nbytes


class _Int8Rows:
    """Item vectors as codes."""

    def __init__(self, vectors: Array32, *, rescored: bool) -> None:
        self.n_items, self.dimension = vectors.shape
        extent = np.maximum(vectors.max(axis=0), -vectors.min(axis=0)).astype(np.float64)
        self._steps = np.maximum(extent / 127, np.finfo(np.float32).tiny)  # (D,)
        self.codes: NDArray[np.int8] = np.empty(vectors.shape, dtype=np.int8)
        self._largest_code, self._loss = 0.0, 0.0
        for start in range(0, self.n_items, _ITEMS_AT_A_TIME):
            part = slice(start, start + _ITEMS_AT_A_TIME)
            scaled = vectors[part] / self._steps
            self.codes[part] = np.rint(scaled)
            self._largest_code = max(self._largest_code, float(norms(self.codes[part].astype(np.float32)).max()))
            self._loss = max(self._loss, float(np.sqrt(np.square(scaled - self.codes[part]).sum(axis=1)).max()))
        self._originals = vectors if rescored else None
        self.largest = float(np.sqrt(np.square(self._steps * 127.5).sum()))

    def decoded(self, codes: NDArray[np.int8]) -> Array32:
        return np.asarray(codes * self._steps, dtype=np.float32)

    def tile(self, first: int, last: int) -> Array32:
        return self.codes[first:last].astype(np.float32).T

    def rough(self, queries: Array32) -> Array32:
        return np.asarray(queries * self._steps, dtype=np.float32)

    def margin(self, queries: Array32) -> Array64:
        sizes = np.asarray(np.sqrt(np.square(queries * self._steps).sum(axis=1)))
        rounded = rounding(sizes, self._largest_code, self.dimension)
        return rounded if self._originals is None else rounded + sizes * self._loss

    def final(self, queries: Array32, items: Ints) -> Array64:
        vectors = self.decoded(self.codes[items]) if self._originals is None else self._originals[items]
        return inner_products(queries, vectors)
