"""Histories: each user's items in the order of time, as flat arrays that can be mapped into memory.

User u owns ``items[offsets[u] : offsets[u + 1]]``, earliest first; its ratings lie in the same way, where a method reads any. Ten million
users with a hundred items each take 4 GB on disk for items and 8 GB for times; mapped, a batch touches only its own users' pages.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from client.durable_files import storage_errors
from shared.errors import DataError

from .interactions import Interactions, latest, time_order
from .pseudonyms import PSEUDONYM_BYTES

_ARRAYS = {"offsets": np.int64, "items": np.int32, "times": np.int64, "pseudonyms": np.uint8}
_RATINGS = "ratings"


def _nobody() -> np.ndarray:
    return np.zeros((0, PSEUDONYM_BYTES), dtype=np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Histories:
    """Histories of n_users users.

    Attributes:
        offsets: (n_users + 1,) int64 where each user begins; a user without items is allowed.
        items: (n,) int32 positions in the catalogue, earliest first within a user.
        times: (n,) int64 in the same order.
        pseudonyms: (n_users, 16) uint8 sorted, or (0, 16) where the users have no names.
        ratings: (n,) float32 in the same order, as given; None where nothing reads them.
    """

    offsets: np.ndarray
    items: np.ndarray
    times: np.ndarray
    pseudonyms: np.ndarray = field(default_factory=_nobody)
    ratings: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, dtype in _ARRAYS.items():
            if getattr(self, name).dtype != dtype:
                raise DataError(f"histories: '{name}' is not {np.dtype(dtype).name}")
        offsets, n = self.offsets, len(self.items)
        if offsets.ndim != 1 or len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != n or np.any(offsets[1:] < offsets[:-1]):
            raise DataError("histories: 'offsets' do not divide the items among the users")
        if self.times.shape != (n,) or self.items.shape != (n,):
            raise DataError("histories: there is not one time for each item")
        if self.pseudonyms.shape not in ((self.n_users, PSEUDONYM_BYTES), (0, PSEUDONYM_BYTES)):
            raise DataError("histories: there is not one pseudonym for each user")
        if self.ratings is not None and (self.ratings.dtype != np.float32 or self.ratings.shape != (n,)):
            raise DataError("histories: there is not one rating, float32, for each item")

    def __len__(self) -> int:
        return self.n_users

    @property
    def n_users(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """(n_users,) int64 items of each user."""
        return np.diff(self.offsets)

    def window(self, users: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Where the latest items of some users stand in the flat arrays; cost O(batch x length), whatever n_users is.

        Args:
            users: (batch,) positions of users.
            length: columns of the result.
        Returns:
            (batch, length) int64 positions, the latest item in the last column, 0 where there is none; (batch, length) bool, True where
            there is one.
        """
        users = np.asarray(users)
        if len(users) and (users.min() < 0 or users.max() >= self.n_users):
            raise IndexError("a user outside these histories")
        ends = self.offsets[users + 1][:, None]  # (batch, 1)
        positions = ends - np.arange(length, 0, -1)  # (batch, length)
        mask = positions >= self.offsets[users][:, None]
        positions *= mask
        return positions, mask

    def padded(self, users: np.ndarray, length: int, *, trim: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The latest items of some users; cost O(batch x length), whatever n_users is.

        Args:
            users: (batch,) positions of users.
            length: L, items of a user that are wanted.
            trim: make L no larger than the longest history of the batch.
        Returns:
            (batch, L) int32 items, latest last, 0 where there is none; (batch, L) bool, True where there is one.
        """
        users = np.asarray(users, dtype=np.int64)
        if trim:
            length = min(length, int((self.offsets[users + 1] - self.offsets[users]).max(initial=0)))
        positions, mask = self.window(users, length)
        if len(self.items) == 0:
            return np.zeros(mask.shape, dtype=np.int32), mask
        items = self.items[positions]
        items *= mask
        return items, mask

    def rated(self, users: np.ndarray, length: int) -> np.ndarray:
        """Ratings in the places of `padded`: (batch, length) float32, 0 where there is none.

        Raises:
            DataError: these histories hold no ratings.
        """
        if self.ratings is None:
            raise DataError("histories: there are no ratings", do="Name the column in 'data.rating_column' of partner.toml.")
        positions, mask = self.window(users, length)
        if len(self.ratings) == 0:
            return np.zeros(mask.shape, dtype=np.float32)
        return np.asarray(np.where(mask, self.ratings[positions], np.float32(0.0)))

    def select(self, user_mask: np.ndarray) -> Histories:
        """Histories of the users that a (n_users,) bool marks, in the same order."""
        if user_mask.dtype != np.bool_ or user_mask.shape != (self.n_users,):
            raise DataError("histories: users are selected by one truth value for each")
        lengths = self.lengths
        rows = np.repeat(user_mask, lengths)
        return Histories(
            offsets=_offsets(lengths[user_mask]),
            items=self.items[rows],
            times=self.times[rows],
            pseudonyms=self.pseudonyms[user_mask] if len(self.pseudonyms) else self.pseudonyms,
            ratings=None if self.ratings is None else self.ratings[rows],
        )

    def _kept(self) -> tuple[str, ...]:
        return tuple(_ARRAYS) if self.ratings is None else (*_ARRAYS, _RATINGS)

    def save(self, folder: Path) -> None:
        """Writes one ``.npy`` for each array into a folder of its own (0700); an earlier folder is replaced, mappings of it stay valid.

        Raises:
            StorageError: no space left, or the folder cannot be written; then an earlier one stays as it was.
        """
        folder = Path(folder)
        with storage_errors(f"the histories in '{folder.name}'"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            made = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
            try:
                for name in self._kept():
                    with open(made / f"{name}.npy", "wb", opener=_private) as file:
                        np.save(file, getattr(self, name), allow_pickle=False)
                        file.flush()
                        os.fsync(file.fileno())
                old = made.with_name(f"{made.name}.old")
                with contextlib.suppress(FileNotFoundError):
                    os.rename(folder, old)
                os.rename(made, folder)
                shutil.rmtree(old, ignore_errors=True)
            finally:
                shutil.rmtree(made, ignore_errors=True)

    @classmethod
    def open(cls, folder: Path, mmap: bool = True) -> Histories:
        """Reads what `save` wrote.

        Args:
            folder: as given to `save`.
            mmap: map the arrays instead of reading them.
        Raises:
            DataError: the folder is missing, incomplete or damaged.
        """
        arrays: dict[str, np.ndarray] = {}
        rated = (Path(folder) / f"{_RATINGS}.npy").is_file()
        for name in (*_ARRAYS, _RATINGS) if rated else _ARRAYS:
            path = Path(folder) / f"{name}.npy"
            try:
                arrays[name] = _load(path, mmap)
            except (OSError, ValueError, EOFError):
                raise DataError(f"{path} is missing or damaged", do="Prepare the domain again from its interactions.") from None
        return cls(**arrays)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _load(path: Path, mmap: bool) -> np.ndarray:
    """A plain array on top of the mapping: numpy indexes those faster than its own memmap class."""
    return np.asarray(np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False))


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def by_user(interactions: Interactions, max_items_per_user: int | None = None) -> Histories:
    """Groups interactions by user, each user's items by time; equal times keep the order they came in.

    Args:
        interactions: in any order; in the order of `sources.read` nothing is sorted again.
        max_items_per_user: keep only the latest items of each user; None keeps all.
    """
    users, items, times, ratings = interactions.users, interactions.items, interactions.times, interactions.ratings
    if not _in_order(users, times):
        order = time_order(users, times)
        items, times, ratings = items[order], times[order], None if ratings is None else ratings[order]
    offsets = _offsets(np.bincount(users, minlength=interactions.n_users))
    if max_items_per_user is not None and np.diff(offsets).max(initial=0) > max_items_per_user:
        keep = latest(offsets, max_items_per_user)
        items, times, ratings = items[keep], times[keep], None if ratings is None else ratings[keep]
        offsets = _offsets(np.minimum(np.diff(offsets), max_items_per_user))
    return Histories(offsets=offsets, items=items, times=times, pseudonyms=interactions.pseudonyms, ratings=ratings)


def _in_order(users: np.ndarray, times: np.ndarray) -> bool:
    same = users[1:] == users[:-1]
    return bool(np.all((users[1:] > users[:-1]) | (same & (times[1:] >= times[:-1]))))
