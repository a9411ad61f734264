"""Items of several users, flat: user i owns ``items[offsets[i] : offsets[i + 1]]``. No loop over users anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ragged:
    """Items of n users.

    Attributes:
        offsets: (n + 1,) int64.
        items: flat int64 positions in the catalogue, in each user's own order.
    """

    offsets: np.ndarray
    items: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(n,) items of each user."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> np.ndarray:
        """Flat: whose each item is."""
        return np.repeat(np.arange(len(self)), self.lengths)

    @classmethod
    def empty(cls, users: int) -> Self:
        return cls(offsets=np.zeros(users + 1, dtype=np.int64), items=np.zeros(0, dtype=np.int64))

    @classmethod
    def of_pairs(cls, rows: np.ndarray, items: np.ndarray, users: int) -> Self:
        """From (m,) users and their items; a user's items keep the order they came in.

        >>> Ragged.of_pairs(np.array([1, 0, 1]), np.array([7, 8, 9]), users=3).items.tolist()
        [8, 7, 9]
        """
        order = np.argsort(rows, kind="stable")
        lengths = np.bincount(rows, minlength=users) if len(rows) else np.zeros(users, dtype=np.int64)
        return cls(offsets=_offsets(lengths), items=np.asarray(items, dtype=np.int64)[order])

    @classmethod
    def of_lists(cls, lists: Sequence[Sequence[int]]) -> Self:
        """From one list for each user."""
        lengths = np.array([len(one) for one in lists], dtype=np.int64)
        return cls(offsets=_offsets(lengths), items=np.array([item for one in lists for item in one], dtype=np.int64))

    @classmethod
    def taken(cls, offsets: np.ndarray, items: np.ndarray, rows: np.ndarray) -> Self:
        """Some rows of larger flat arrays, (n,) of them; -1 stands for a user without items."""
        there = rows >= 0
        at = np.where(there, rows, 0)
        if len(offsets) < 2:
            return cls.empty(len(rows))
        lengths = np.where(there, offsets[at + 1] - offsets[at], 0)
        made = _offsets(lengths)
        within = np.arange(made[-1]) - np.repeat(made[:-1], lengths)
        return cls(offsets=made, items=np.asarray(items[np.repeat(offsets[at], lengths) + within], dtype=np.int64))

    def select(self, users: np.ndarray) -> Self:
        """Some of the users, by position or mask."""
        rows = np.flatnonzero(users) if users.dtype == np.bool_ else users
        return type(self).taken(self.offsets, self.items, rows)

    def then(self, later: Self) -> Self:
        """Each user's items, and after them those of another array.

        >>> Ragged.of_lists([[1], [2]]).then(Ragged.of_lists([[3], []])).items.tolist()
        [1, 3, 2]
        """
        if len(later.items) == 0:
            return self
        rows, items = np.concatenate([self.rows, later.rows]), np.concatenate([self.items, later.items])
        return type(self).of_pairs(rows, items, len(self))

    def without(self, others: Self) -> Self:
        """Each user's items but those that another array names for them."""
        if len(others.items) == 0 or len(self.items) == 0:
            return self
        width = max(int(self.items.max()), int(others.items.max())) + 1
        keep = ~np.isin(self.rows * width + self.items, others.rows * width + others.items)
        return type(self).of_pairs(self.rows[keep], self.items[keep], len(self))

    def distinct(self) -> Self:
        """Each user's items once, at the place where they stand last.

        >>> Ragged.of_lists([[3, 5, 3]]).distinct().items.tolist()
        [5, 3]
        """
        if len(self.items) == 0:
            return self
        rows, items = self.rows, self.items
        order = np.lexsort((np.arange(len(items)), items, rows))
        last = np.ones(len(order), dtype=bool)
        last[:-1] = (rows[order][1:] != rows[order][:-1]) | (items[order][1:] != items[order][:-1])
        keep = np.sort(order[last])
        return type(self).of_pairs(rows[keep], items[keep], len(self))

    def padded(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """The latest items: (n, L) int64, latest in the last column, 0 where there is none; (n, L) bool, True where there is one.

        L is ``length``, or less where nobody has that many.
        """
        length = min(length, int(self.lengths.max(initial=0)))
        positions = self.offsets[1:, None] - np.arange(length, 0, -1)  # (n, L)
        mask = positions >= self.offsets[:-1, None]
        if len(self.items) == 0:
            return np.zeros(mask.shape, dtype=np.int64), mask
        return np.where(mask, self.items[np.where(mask, positions, 0)], 0), mask

    def mean_of(self, vectors: np.ndarray) -> np.ndarray:
        """(n, d) mean vector of each user's items, zeros for nobody's; ``vectors`` are (n_items, d)."""
        total = np.zeros((len(self), vectors.shape[1]), dtype=np.float32)
        np.add.at(total, self.rows, vectors[self.items])
        return np.asarray(total / np.maximum(self.lengths, 1)[:, None].astype(np.float32))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
