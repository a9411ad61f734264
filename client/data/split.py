"""What a benchmark holds back: people (training, validation, cold; it hangs on the person, never on a row), and what comes later.

Later is the latest item of each training user, or with a cut everything from one moment on, the same moment in all domains.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shared.errors import DataError

from .histories import Histories

TRAIN = 0
VALIDATION = 1
COLD = 2

_COLD_BELOW = 3 * 2**256 // 10
_VALIDATION_BELOW = 4 * 2**256 // 10


def role(link_ids: Sequence[str], split_seed: int) -> np.ndarray:
    """The part that each person plays in every domain of a data set.

    ``u = SHA-256("{split_seed}:{link_id}") / 2^256``, read big-endian: ``u < .30`` is cold, ``u < .40`` validation, the rest training. Cold
    and validation people enter no loss, no count and no fit in any domain.

    Args:
        link_ids: (n,) ids that name the same person in all domains.
        split_seed: names the division.
    Returns:
        (n,) int8 of `TRAIN`, `VALIDATION` and `COLD`.

    >>> role(["ann", "ben", "cyd", "dan"], split_seed=0).tolist()
    [0, 1, 0, 0]
    """
    prefix = hashlib.sha256(f"{split_seed}:".encode())
    roles = np.empty(len(link_ids), dtype=np.int8)
    for position, link_id in enumerate(link_ids):
        digest = prefix.copy()
        digest.update(link_id.encode())
        u = int.from_bytes(digest.digest(), "big")
        roles[position] = COLD if u < _COLD_BELOW else VALIDATION if u < _VALIDATION_BELOW else TRAIN
    return roles


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Division:
    """Histories as a benchmark divides them; without one everybody trains on everything.

    Attributes:
        roles: (n_users,) int8 of `TRAIN`, `VALIDATION` and `COLD`.
        everyone: of all users, without what comes after a cut.
        training: of the training users, without what is held back.
        training_rows: (n_training,) their rows in ``everyone``.
        later: of all users, what comes after a cut; None without one.
    """

    roles: np.ndarray
    everyone: Histories
    training: Histories
    training_rows: np.ndarray
    later: Histories | None

    def save(self, folder: Path) -> None:
        """Writes ``everyone``, ``training`` and, with a cut, ``later``. Raises what `Histories.save` raises."""
        for name in ("everyone", "training", "later"):
            histories: Histories | None = getattr(self, name)
            if histories is not None:
                histories.save(folder / name)

    def said(self, n_items: int) -> list[str]:
        """How much lies behind a cut, and how much of it is about items that nobody took before."""
        if self.later is None:
            return []
        known = np.bincount(self.everyone.items, minlength=n_items) > 0
        new = int((~known[self.later.items]).sum())
        return [f"{len(self.later.items):,} interactions after the cut; of items that nobody took before it: {new:,}"]


def divide(histories: Histories, roles: np.ndarray, *, hold_out_last: bool = False, cut_s: int = 0) -> Division:
    """Divides the histories of a domain.

    With a cut, training users who took nothing before it are cold here: they are strangers to this domain until then.

    Args:
        histories: of all users.
        roles: (n_users,) from `role`.
        hold_out_last: training users keep their latest item back.
        cut_s: unix seconds; what happened then or afterwards is held back from everybody. 0 = no cut.
    Raises:
        DataError: nobody took anything before the cut.
    """
    later = None
    if cut_s:
        before = histories.times < cut_s
        histories, later = kept(histories, before), kept(histories, ~before)
        roles = np.where((roles == TRAIN) & (histories.lengths == 0), np.int8(COLD), roles)
        if not (roles == TRAIN).any():
            raise DataError("a benchmark's cut in time leaves nobody to train on", do="Cut later, or split by person.")
    training = histories.select(roles == TRAIN)
    return Division(
        roles=roles,
        everyone=histories,
        training=without_last(training) if hold_out_last else training,
        training_rows=np.flatnonzero(roles == TRAIN),
        later=later,
    )


def without_last(histories: Histories) -> Histories:
    """The same users, each without the latest item where at least two others remain."""
    rows = np.ones(len(histories.items), dtype=bool)
    rows[histories.offsets[1:][histories.lengths >= 3] - 1] = False
    return kept(histories, rows)


def kept(histories: Histories, rows: np.ndarray) -> Histories:
    """The same users with some of their items, (n,) bool; some may be left without any."""
    total = np.concatenate([[0], np.cumsum(rows)])
    return dataclasses.replace(
        histories,
        offsets=total[histories.offsets].astype(np.int64),
        items=histories.items[rows],
        times=histories.times[rows],
        ratings=None if histories.ratings is None else histories.ratings[rows],
    )
