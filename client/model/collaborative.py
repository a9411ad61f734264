r"""What a domain's items say about one another: the collaborative part of the serving head, for people with a history here.

Fitted on exact local data at delivery and kept in the serving folder: it never leaves, and training never reads it.

::

    part = fit(histories, n_items, generator=g)             # `ItemWeights` or `ItemFactors`, by the size of the catalogue
    history = recency_weights(items, mask, decay, n_items)  # (rows, n_items) sparse: what people took, the latest weighing most
    part.scores(history)                                    # (rows, n_items) float32, dense: a chunk of users at a time
    part.added(history)                                     # the same, sparse where the part is: cheap to add to other scores
    part.queries(history) @ part.vectors.T                  # `ItemFactors` only: an inner product, for a search over vectors
    part.to_arrays(); from_arrays(arrays)                   # for the serving folder

**Item weights** are EASE (Steck 2019, "Embarrassingly shallow autoencoders for sparse data", eq. 8): the item-item matrix B with a zero
diagonal that reproduces the interactions best,

.. math:: P = (X^T X + \lambda I)^{-1}, \qquad B_{ij} = -P_{ij} / P_{jj} \;(i \ne j), \qquad B_{jj} = 0,

of which each column keeps its largest entries only. With fewer users than items the same P comes from the matrix of users,
:math:`P = (I - X^T (X X^T + \lambda I)^{-1} X) / \lambda` (Woodbury), a block of columns at a time, so that items by items are never in
memory. **Item factors** are for catalogues above the bound: with V the first right singular vectors of X, its rows and columns scaled down
by how much they hold, a history h scores :math:`h V V^T` (Cremonesi, Koren & Turrin 2010, "PureSVD").

Time and memory are bounded whatever the number of users: at most `Limits.users` of them, drawn by chance, are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg

from shared.errors import StateError

from ..data.histories import Histories

_RIDGE = 100.0
_BLOCK_BYTES = 64 * 2**20
_SMALLEST = 1e-6
_FEWEST_TAKERS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a fit may cost.

    Attributes:
        users: most users that are read; more are drawn by chance.
        items_squared: most items for which a dense matrix of items by items is made (float32: 4 bytes each squared).
        users_squared: most users for which a dense matrix of users by users is made instead.
        items: most items that have any collaborative part, the most taken ones.
        kept: entries that each column of B keeps.
        factors: length of an item's vector where the catalogue is above both bounds.
    """

    users: int = 200_000
    items_squared: int = 10_000
    users_squared: int = 8_000
    items: int = 200_000
    kept: int = 100
    factors: int = 128


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemWeights:
    """EASE, truncated.

    Attributes:
        weights: (n_items, n_items) float32 sparse rows; row i says what having item i adds to every other item's score.
    """

    weights: scipy.sparse.csr_array

    @property
    def n_items(self) -> int:
        return int(self.weights.shape[1])

    def added(self, history: scipy.sparse.csr_array) -> scipy.sparse.csr_array:
        """Args: history (rows, n_items), from `recency_weights`. Returns (rows, n_items) float32, sparse."""
        return scipy.sparse.csr_array(history @ self.weights)

    def scores(self, history: scipy.sparse.csr_array) -> np.ndarray:
        """The same as a dense array: take a chunk of users at a time."""
        return np.asarray(self.added(history).toarray(), dtype=np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {
            "weights/data": self.weights.data,
            "weights/indices": self.weights.indices.astype(np.int32),
            "weights/indptr": self.weights.indptr.astype(np.int64),
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemFactors:
    """Truncated singular vectors.

    Attributes:
        vectors: (n_items, k) float32; zero rows for items without a collaborative part.
    """

    vectors: np.ndarray

    @property
    def n_items(self) -> int:
        return len(self.vectors)

    def queries(self, history: scipy.sparse.csr_array) -> np.ndarray:
        """Args: history (rows, n_items). Returns (rows, k) float32, whose inner products with ``vectors`` are the scores."""
        return np.asarray(history @ self.vectors, dtype=np.float32)

    def scores(self, history: scipy.sparse.csr_array) -> np.ndarray:
        """(rows, n_items) float32."""
        return self.queries(history) @ self.vectors.T

    added = scores

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {"vectors": self.vectors}


Collaborative = ItemWeights | ItemFactors


def nothing(n_items: int) -> ItemWeights:
    """The part of a domain whose items say nothing about one another."""
    return ItemWeights(weights=scipy.sparse.csr_array((n_items, n_items), dtype=np.float32))


def from_arrays(arrays: Mapping[str, np.ndarray]) -> Collaborative:
    """What `to_arrays` gave.

    Raises:
        StateError: the arrays do not make one.
    """
    try:
        if "vectors" in arrays:
            return ItemFactors(vectors=arrays["vectors"])
        parts = tuple(arrays[f"weights/{name}"] for name in ("data", "indices", "indptr"))
        n_items = len(parts[2]) - 1
        return ItemWeights(weights=scipy.sparse.csr_array(parts, shape=(n_items, n_items)))
    except (KeyError, ValueError):
        raise StateError("the serving state holds a collaborative part that is damaged", do="Fit the serving head again.") from None


def recency_weights(items: np.ndarray, mask: np.ndarray, decay: float, n_items: int) -> scipy.sparse.csr_array:
    """What people took, each item weighing less the more came after it; an item taken twice counts as its latest.

    Args:
        items: (rows, L) positions in the catalogue, latest last, as `Histories.padded` gives them.
        mask: (rows, L) true or 1 where there is an item; -1 where it was disliked.
        decay: weight of an item relative to the next later one; 1 = all the same.
        n_items: size of the catalogue.
    Returns:
        (rows, n_items) float32.

    >>> recency_weights(np.array([[0, 2, 1]]), np.array([[False, True, True]]), 0.5, 3).toarray().tolist()
    [[0.0, 1.0, 0.5]]
    """
    rows, columns = np.nonzero(mask)
    taken, age = items[rows, columns].astype(np.int64), items.shape[1] - 1 - columns
    order = np.lexsort((age, taken, rows))
    latest = np.ones(len(rows), dtype=bool)
    latest[1:] = (np.diff(rows[order]) != 0) | (np.diff(taken[order]) != 0)
    kept = order[latest]
    values = (decay ** age[kept] * mask[rows[kept], columns[kept]]).astype(np.float32)
    return scipy.sparse.csr_array((values, (rows[kept], taken[kept])), shape=(len(items), n_items))


def fit(histories: Histories, n_items: int, *, generator: np.random.Generator, limits: Limits | None = None) -> Collaborative:
    """Fits the part that suits the size of the domain.

    Args:
        histories: of the people it may learn from.
        n_items: size of the catalogue.
        generator: draws users where there are too many, and the start of the factors.
    """
    limits = limits or Limits()
    taken, active = _interactions(histories, n_items, generator, limits)
    users, items = taken.shape
    if min(users, items) < 2:
        return nothing(n_items)
    if users < items and users <= limits.users_squared:
        return _weights(ease_by_users(taken, _RIDGE), active, n_items, limits.kept)
    if items <= limits.items_squared:
        return _weights(ease_by_items(taken, _RIDGE), active, n_items, limits.kept)
    vectors = np.zeros((n_items, min(limits.factors, min(users, items) - 1)), dtype=np.float32)
    vectors[active] = item_factors(taken, vectors.shape[1], generator)
    return ItemFactors(vectors=vectors)


def ease_by_items(taken: scipy.sparse.csr_array, ridge: float) -> Iterator[tuple[slice, np.ndarray]]:
    """Blocks of columns of B, from the inverse of a matrix of items by items, which is in memory once.

    Args:
        taken: (n_users, n_items) ones.
        ridge: lambda.
    """
    n_items = taken.shape[1]
    gram = np.empty((n_items, n_items), dtype=np.float32)
    columns = scipy.sparse.csc_array(taken)
    for block in _blocks(n_items, n_items):
        gram[block] = (columns[:, block].T @ taken).toarray()
    gram[np.diag_indices(n_items)] += np.float32(ridge)
    inverse = _inverse(gram)
    diagonal = np.diagonal(inverse).copy()
    for block in _blocks(n_items, n_items):
        yield block, _without_diagonal(inverse[block].T / -diagonal[block], block)


def ease_by_users(taken: scipy.sparse.csr_array, ridge: float) -> Iterator[tuple[slice, np.ndarray]]:
    """The same blocks from the inverse of a matrix of users by users."""
    n_users, n_items = taken.shape
    kernel = np.asarray((taken @ taken.T).toarray(), dtype=np.float32)
    kernel[np.diag_indices(n_users)] += np.float32(ridge)
    inverse = _inverse(kernel)
    columns, of_items = scipy.sparse.csc_array(taken), scipy.sparse.csr_array(taken.T)
    for block in _blocks(n_items, max(n_items, n_users)):
        explained = of_items @ (columns[:, block].T @ inverse).T  # (n_items, block): X^T (X X^T + ridge)^-1 X
        diagonal = 1 - explained[np.arange(block.start, block.stop), np.arange(block.stop - block.start)]  # ridge * P_jj
        yield block, _without_diagonal(explained / diagonal, block)


def item_factors(taken: scipy.sparse.csr_array, k: int, generator: np.random.Generator) -> np.ndarray:
    """(n_items, k) right singular vectors of the interactions, rows and columns scaled down by their lengths.

    Long histories and popular items would otherwise fill the first vectors; their length counts as its square root only.
    """
    by_user = scipy.sparse.diags_array(np.maximum(taken.sum(axis=1), 1.0) ** -0.5)
    by_item = scipy.sparse.diags_array(np.maximum(taken.sum(axis=0), 1.0) ** -0.25)
    scaled = scipy.sparse.csr_array(by_user @ taken @ by_item).astype(np.float32)
    start = generator.standard_normal(min(scaled.shape)).astype(np.float32)
    _, _, right = scipy.sparse.linalg.svds(scaled, k=k, v0=start)
    return np.ascontiguousarray(right.T, dtype=np.float32)


def interactions(histories: Histories, users: np.ndarray, n_items: int) -> scipy.sparse.csr_array:
    """(n, n_items) float32 ones where one of some users took an item, however often; reads these users' rows only."""
    offsets, at = rows_of(histories, users)
    found = scipy.sparse.csr_array((np.ones(len(at), dtype=np.float32), histories.items[at], offsets), shape=(len(users), n_items))
    found.sum_duplicates()
    found.data[:] = 1.0
    return found


def rows_of(histories: Histories, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where some users' items stand: (n + 1,) int64 offsets of a smaller set of histories, and its rows' places in the flat arrays."""
    lengths = histories.offsets[users + 1] - histories.offsets[users]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return offsets, np.arange(offsets[-1]) + np.repeat(histories.offsets[users] - offsets[:-1], lengths)


def _interactions(
    histories: Histories, n_items: int, generator: np.random.Generator, limits: Limits
) -> tuple[scipy.sparse.csr_array, np.ndarray]:
    """Users who took at least two of the items that count, and these items: taken by several people, at most so many."""
    users = np.arange(len(histories))
    if len(users) > limits.users:
        users = np.sort(generator.choice(len(users), size=limits.users, replace=False))
    taken = interactions(histories, users, n_items)
    takers = np.bincount(taken.indices, minlength=n_items)
    active = np.sort(np.argsort(-takers, kind="stable")[: limits.items])
    active = active[takers[active] >= _FEWEST_TAKERS]
    taken = taken[:, active]
    return taken[np.diff(taken.indptr) >= 2], active


def _weights(blocks: Iterator[tuple[slice, np.ndarray]], active: np.ndarray, n_items: int, kept: int) -> ItemWeights:
    """Each column's largest entries, at their places in the whole catalogue."""
    rows, columns, values = [], [], []
    for block, dense in blocks:
        size = np.abs(dense)
        if kept < len(dense):
            cut = np.partition(size, len(dense) - kept, axis=0)[len(dense) - kept]
            size[size < cut] = 0
        at, column = np.nonzero(size > _SMALLEST)
        rows.append(active[at])
        columns.append(active[block.start + column])
        values.append(dense[at, column].astype(np.float32))
    flat = tuple(np.concatenate(part) for part in (rows, columns, values))
    return ItemWeights(weights=scipy.sparse.csr_array((flat[2], flat[:2]), shape=(n_items, n_items)))


def _without_diagonal(columns: np.ndarray, block: slice) -> np.ndarray:
    columns[np.arange(block.start, block.stop), np.arange(block.stop - block.start)] = 0
    return columns


def _blocks(n: int, height: int) -> Iterator[slice]:
    """Slices over n columns of a height, each small enough for the memory that a block may take."""
    width = max(1, _BLOCK_BYTES // (4 * height))
    for start in range(0, n, width):
        yield slice(start, min(start + width, n))


def _inverse(matrix: np.ndarray) -> np.ndarray:
    """Of a symmetric positive definite matrix, in its own memory."""
    factor, _ = scipy.linalg.cho_factor(matrix.T, lower=True, overwrite_a=True, check_finite=False)
    found, _ = scipy.linalg.lapack.spotri(factor, lower=1, overwrite_c=1)
    for block in _blocks(len(found), len(found)):  # the other triangle
        found[block, block.stop :] = found[block.stop :, block].T
        square = found[block, block]
        found[block, block] = np.tril(square) + np.tril(square, -1).T
    return np.asarray(found)
