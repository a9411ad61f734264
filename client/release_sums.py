r"""The exact sums behind DP releases, each with a bound on what one user can change. They never leave: noise is added to them first.

Two data sets are neighbours when one has one user more, with all their interactions, links and passports. Each sum here is

.. math:: S(D) = \sum_{u \in D} f(D_u, \theta)

where :math:`f` sees that user's own data :math:`D_u` and :math:`\theta`, which is public or was released under differential privacy before
(and so follows the rules of adaptive composition). Then :math:`S` of two neighbours differs by one term, and the bound on the sum is the
bound on :math:`f`. Whatever is a function of everybody must not be part of :math:`\theta`: exact popularity, the serving head, its gate,
the number of users. This module can therefore not import the serving state, and computes each user's term so that not even the rounding of
a matrix product hangs on who else is there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .data.histories import Histories

if TYPE_CHECKING:
    from .model.encoders import InterestEncoder

_USERS_AT_A_TIME = 256
_GRID = 2.0**19
"""Coordinates and interests become whole numbers of at most 2^19, so that products over up to 2^14 dimensions are exact in 64 bit."""


def popularity(histories: Histories, n_items: int, max_items: int) -> np.ndarray:
    r"""How many users took each item, where each user counts for at most ``max_items`` items.

    :math:`f` is 1 at the latest M distinct items of the user's own history, 0 elsewhere; which ones is decided by that history alone. At
    most M coordinates are 1, so :math:`\|f\|_2 \le \sqrt M`, and that is the sensitivity.

    Returns:
        (n_items,) float64 whole numbers.
    """
    lengths = histories.lengths
    users = np.repeat(np.arange(len(histories), dtype=np.int64), lengths)[::-1]
    items = np.asarray(histories.items)[::-1].astype(np.int64)
    _, first = np.unique(users * n_items + items, return_index=True)  # of each user and item the latest, because all is turned round
    latest = np.sort(first)  # by user from the last to the first, within a user the latest item first
    users, items = users[latest], items[latest]
    begins = np.flatnonzero(np.concatenate([[True], users[1:] != users[:-1]])) if len(users) else np.zeros(0, dtype=np.int64)
    place = np.arange(len(users)) - np.repeat(begins, np.diff(np.concatenate([begins, [len(users)]])))
    return np.bincount(items[place < max_items], minlength=n_items).astype(np.float64)


def count(histories: Histories) -> np.ndarray:
    """Number of users, (1,) float64. f = 1, so the sensitivity is 1."""
    return np.array([len(histories)], dtype=np.float64)


def hits(histories: Histories, coordinates: np.ndarray, encoder: InterestEncoder, *, length: int, cut: int) -> np.ndarray:
    r"""Of how many users the latest item is among the first ``cut`` of a ranking of the catalogue by interest; (1,) float64.

    :math:`f(D_u, \theta) \in \{0, 1\}`: the interest is made by the encoder from the user's own items but the latest; items are ranked by
    the inner product with their coordinates; the user's own other items are passed over. :math:`\theta` is the encoder, trained under
    differential privacy only, and the coordinates, a projection of the public catalogue. Neither depends on anybody's data other than by
    what the ledger has booked, so one user more or less changes the sum by at most 1.

    The serving head would rank better and must not be used: it was fitted, gate and popularity included, on exact data of everybody. One
    user more could turn the lists of all others, and the sum would move by far more than 1.

    Args:
        histories: whole histories, latest item last.
        coordinates: (n_items, d) public coordinates.
        encoder: as above.
        length: items of a history that the encoder reads.
        cut: length of the list.
    """
    values = np.zeros(len(histories))
    for start in range(0, len(histories), _USERS_AT_A_TIME):
        users = np.arange(start, min(start + _USERS_AT_A_TIME, len(histories)))
        values[users] = _hit_values(histories, users, coordinates, encoder, length, cut)
    return np.array([values.sum()])


def _hit_values(
    histories: Histories, users: np.ndarray, coordinates: np.ndarray, encoder: InterestEncoder, length: int, cut: int
) -> np.ndarray:
    """(users,) of 0 and 1; 0 for a user with fewer than two items."""
    interests = np.stack([_interest(histories, user, coordinates, encoder, length) for user in users])  # one by one, on purpose
    largest = float(np.abs(coordinates).max(initial=1e-30))
    fixed = np.rint(np.asarray(coordinates, dtype=np.float64) * (_GRID / largest))  # (n_items, d) whole numbers
    faulty = ~np.isfinite(interests).all(axis=1)
    interests = np.where(faulty[:, None], 0.0, interests).astype(np.float64)
    scores = np.rint(np.clip(interests * (_GRID / (4 * largest)), -_GRID, _GRID)) @ fixed.T  # exact, in whatever order it is added up
    values = np.zeros(len(users))
    for row, user in enumerate(users):
        own = np.asarray(histories.items[histories.offsets[user] : histories.offsets[user + 1]])
        if len(own) < 2 or faulty[row]:
            continue
        truth, score = own[-1], scores[row]
        mine = score[truth]
        ahead = (score > mine) | ((score == mine) & (np.arange(len(score)) < truth))
        ahead[own[:-1]] = False
        values[row] = float(np.count_nonzero(ahead) < cut)
    return values


def _interest(histories: Histories, user: int, coordinates: np.ndarray, encoder: InterestEncoder, length: int) -> np.ndarray:
    """(d,) interest from all items but the latest, computed for this user alone: of always the same shape, whoever else there is."""
    import torch

    items, mask = histories.padded(np.array([user]), length + 1)
    with torch.no_grad():
        items, mask = items[:, :-1], mask[:, :-1]
        history = torch.from_numpy(np.asarray(coordinates[items], dtype=np.float32))
        return np.asarray(encoder(history, torch.from_numpy(mask.astype(np.float32)), torch.from_numpy(items.astype(np.int64)))[0].numpy())
