"""Interactions: who chose what, and when. Users are pseudonyms here; their own ids stay in the partner's table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shared.errors import InvalidInteraction

from .pseudonyms import PSEUDONYM_BYTES, are_sorted


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interactions:
    """Interactions of one domain, one array a field.

    Attributes:
        users: (n,) int32 row of ``pseudonyms``.
        items: (n,) int32 position in the catalogue.
        times: (n,) int64 seconds since 1970, or any whole number that orders a user's interactions.
        ratings: (n,) float32, or None where the partner gave none.
        pseudonyms: (n_users, 16) uint8, sorted and distinct.
    Raises:
        InvalidInteraction: naming the field that does not hold what is said above.
    """

    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    ratings: np.ndarray | None
    pseudonyms: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.users)
        fields = {"users": np.int32, "items": np.int32, "times": np.int64, "ratings": np.float32}
        for name, dtype in fields.items():
            array = getattr(self, name)
            if array is not None and (array.dtype != dtype or array.shape != (n,)):
                raise InvalidInteraction(f"'{name}' is not one {np.dtype(dtype).name} for each interaction")
        if self.pseudonyms.dtype != np.uint8 or self.pseudonyms.ndim != 2 or self.pseudonyms.shape[1] != PSEUDONYM_BYTES:
            raise InvalidInteraction("'pseudonyms' is not an array of 16 bytes for each user")
        if not are_sorted(self.pseudonyms):
            raise InvalidInteraction("'pseudonyms' are not sorted and distinct")
        if n and (self.users.min() < 0 or self.users.max() >= len(self.pseudonyms)):
            raise InvalidInteraction("'users' points outside 'pseudonyms'")
        if n and self.items.min() < 0:
            raise InvalidInteraction("'items' holds a negative position")
        if self.ratings is not None and not np.isfinite(self.ratings).all():
            raise InvalidInteraction("'ratings' holds a value that is not finite")

    def __len__(self) -> int:
        return len(self.users)

    @property
    def n_users(self) -> int:
        return len(self.pseudonyms)


def time_order(users: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Positions that sort rows by user, then time; equal ones keep their order.

    One sort of a joint key where user and time fit into 63 bits (a third of the cost), two sorts where they do not.

    Args:
        users: (n,) int32, not negative.
        times: (n,) int64.
    Returns:
        (n,) int64.

    >>> time_order(np.array([1, 0, 1]), np.array([5, 9, 3])).tolist()
    [1, 2, 0]
    """
    if len(users) == 0:
        return np.zeros(0, dtype=np.int64)
    earliest = int(times.min())
    bits = (int(times.max()) - earliest).bit_length()
    if int(users.max()).bit_length() + bits > 63:
        return np.lexsort((times, users))
    return np.argsort((users.astype(np.int64) << bits) | (times - earliest), kind="stable")


def latest(offsets: np.ndarray, max_items_per_user: int) -> np.ndarray:
    """Marks the latest rows of each user, where rows are grouped by user and sorted by time.

    Args:
        offsets: (n_users + 1,) where each user's rows begin.
        max_items_per_user: rows that stay.
    Returns:
        (n,) bool.

    >>> latest(np.array([0, 3, 4]), 2).tolist()
    [False, True, True, True]
    """
    lengths = np.diff(offsets)
    from_the_end = np.repeat(offsets[1:], lengths) - np.arange(offsets[-1])
    return from_the_end <= max_items_per_user
