"""What a search for the best items is asked and what it answers; every engine of this folder keeps to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import UsageError

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]
Ints = NDArray[Any]

ExtraScores = Callable[[slice], Array32]
"""Gives (rows, n_items) float32 to be added to the inner products of a slice of the queries; asked once for each chunk."""

NONE = -1
"""Stands for "no item" where a list is shorter than k; its score is -inf."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TopItems:
    """The best items of each query, best first; equal scores by item index.

    Attributes:
        items: (n, k) int32, `NONE` where fewer than k items are left.
        scores: (n, k) float32, -inf where there is no item.
    """

    items: NDArray[np.int32]
    scores: Array32

    @classmethod
    def empty(cls, n: int, k: int) -> TopItems:
        """Lists without any item."""
        return cls(items=np.full((n, k), NONE, dtype=np.int32), scores=np.full((n, k), -np.inf, dtype=np.float32))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Excluded:
    """Items that must not be in a list.

    Attributes:
        items: items of all queries, flat, in any order, repeated or not: what each user has seen or blocked.
        offsets: (n + 1,) where each query's items begin.
        everywhere: (n_items,) bool, True for what nobody may get, such as what is out of stock; None where there is nothing.
    """

    items: Ints
    offsets: Ints
    everywhere: NDArray[np.bool_] | None = None

    @classmethod
    def nothing(cls, n: int, everywhere: NDArray[np.bool_] | None = None) -> Excluded:
        """No query excludes anything of its own."""
        return cls(items=np.zeros(0, dtype=np.int64), offsets=np.zeros(n + 1, dtype=np.int64), everywhere=everywhere)

    @classmethod
    def of(cls, rows: list[Ints], everywhere: NDArray[np.bool_] | None = None) -> Excluded:
        """One array of items for each query.

        >>> Excluded.of([np.array([4, 2]), np.array([], dtype=int)]).offsets.tolist()
        [0, 2, 2]
        """
        flat = np.concatenate([np.zeros(0, dtype=np.int64), *(np.asarray(row, dtype=np.int64) for row in rows)])
        return cls(items=flat, offsets=np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64), everywhere=everywhere)

    @property
    def counts(self) -> Ints:
        """(n,) how many entries each query has of its own, repeated ones counted as often as they stand there."""
        return np.diff(self.offsets)

    def pairs(self) -> tuple[Ints, Ints]:
        """Query and item of every entry, flat."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts), self.items

    def of_slice(self, rows: slice) -> Excluded:
        """The same for a slice of the queries."""
        offsets = self.offsets[rows.start : rows.stop + 1]
        return Excluded(items=self.items[offsets[0] : offsets[-1]], offsets=offsets - offsets[0], everywhere=self.everywhere)

    def of_rows(self, rows: Ints) -> Excluded:
        """The same for some of the queries."""
        parts = [self.items[self.offsets[row] : self.offsets[row + 1]] for row in rows.tolist()]
        return Excluded.of(parts, self.everywhere)

    def check(self, n: int, n_items: int) -> None:
        """Raises UsageError where it does not fit n queries and n_items items."""
        offsets = self.offsets
        if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != len(self.items) or (np.diff(offsets) < 0).any():
            raise UsageError("the excluded items do not fit the queries: one offset per query and one more, from 0, never falling")
        if len(self.items) and (self.items.min() < 0 or self.items.max() >= n_items):
            raise UsageError("an excluded item is not in the catalogue")
        if self.everywhere is not None and (self.everywhere.shape != (n_items,) or self.everywhere.dtype != np.bool_):
            raise UsageError("what is excluded everywhere is not one truth value per item of the catalogue")


class TopK(Protocol):
    """Search for the largest inner products with the rows of a fixed matrix of item vectors."""

    @property
    def n_items(self) -> int:
        """Rows of the matrix."""

    def search(self, queries: Array32, k: int, *, excluded: Excluded | None = None) -> TopItems:
        """The k items with the largest inner product for each query; lists are shorter where fewer items are left.

        Args:
            queries: (n, D) float32.
            k: length of a list, at least 1; may be larger than the catalogue.
            excluded: items that must not be listed.
        Raises:
            UsageError: k is below 1; the queries have another shape, or are not finite, or so large that a score is not finite;
                ``excluded`` does not fit.
        """


def checked_vectors(vectors: Array32) -> Array32:
    """Item vectors as (n_items, D) float32, contiguous.

    Raises:
        UsageError: they have no item, another shape, or a value that is not finite.
    """
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or 0 in rows.shape:
        raise UsageError("item vectors are not (n_items, dimension) with at least one of each")
    if len(rows) > np.iinfo(np.int32).max:
        raise UsageError("a catalogue has more items than an item index can say (2,147,483,647)")
    if not np.isfinite(rows).all():
        raise UsageError("an item vector is not finite")
    return rows


def checked_queries(queries: Array32, k: int, dimension: int, largest: float) -> Array32:
    """Queries as (n, dimension) float32, contiguous.

    Args:
        largest: the largest norm of an item vector.
    Raises:
        UsageError: see `TopK.search`.
    """
    if k < 1:
        raise UsageError(f"a list of {k} items is no list", do="Choose k of at least 1.")
    rows = np.ascontiguousarray(queries, dtype=np.float32)
    if rows.ndim != 2 or rows.shape[1] != dimension:
        raise UsageError(f"the queries are not (n, {dimension}), as the item vectors are")
    if not np.isfinite(rows).all():
        raise UsageError("a query is not finite")
    if (norms(rows) * largest > np.finfo(np.float32).max / 4).any():
        raise UsageError("a query is so large that its scores are not finite")
    return rows


def norms(rows: Array32) -> Array64:
    """(n,) Euclidean norms, summed in float64."""
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64)))
