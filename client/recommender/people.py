"""Whom a question is about, and all that is at hand of them: histories, what was observed since, passports, declared interests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ..data.pseudonyms import PSEUDONYM_BYTES, locate
from ..live_profiles import SIGNS, LiveProfiles, Observed
from .delivered import Delivered
from .filters import Filters
from .ragged import Ragged

_FEW = 64
"""Users up to which each is looked up among the observations; above it, those of whom something was observed are asked for first."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class People:
    """What is known of n users, each of them possibly nothing.

    Attributes:
        own: items they had here, earliest first, each once.
        dismissed: items they do not want.
        passports: by source, (n,) rows of what came from there (`Brought`), -1 = none.
        declared: (n, d) interests in their own words or numbers; zeros = none.
        blocked: items that are not to be offered to them.
        known: (n,) bool, whether anything at all is known: an account with a history here, even an empty one, counts.
    """

    own: Ragged
    dismissed: Ragged
    passports: dict[str, np.ndarray]
    declared: np.ndarray
    blocked: Ragged
    known: np.ndarray

    def __len__(self) -> int:
        return len(self.own)

    def select(self, rows: np.ndarray) -> People:
        """Some of them, by position."""
        return People(
            own=self.own.select(rows),
            dismissed=self.dismissed.select(rows),
            passports={source: found[rows] for source, found in self.passports.items()},
            declared=self.declared[rows],
            blocked=self.blocked.select(rows),
            known=self.known[rows],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gatherer:
    """Finds what is known of users by their pseudonyms.

    Attributes:
        delivered: model and data.
        live: what was observed since the preparation.
        filters: of the partner.
        catalogue: item ids as a Polars type, whose codes are positions.
    """

    delivered: Delivered
    live: LiveProfiles
    filters: Filters
    catalogue: pl.Enum

    def people(self, users: np.ndarray, declared: np.ndarray | None = None, blocked: Ragged | None = None) -> People:
        """What is known of (n, 16) users.

        Args:
            users: pseudonyms; rows of zeros stand for people without an account.
            declared: (n, d) declared interests, zeros = none; None = nobody declared any.
            blocked: items that each of them is not to see, besides the partner's lists.
        """
        delivered, n = self.delivered, len(users)
        named = np.asarray(users.any(axis=1))
        rows = locate(delivered.prepared.everyone.pseudonyms, users)
        training = np.where(rows >= 0, delivered.positions[np.maximum(rows, 0)], -1) if len(delivered.positions) else rows
        own = Ragged.taken(delivered.prepared.training.offsets, delivered.prepared.training.items, training).distinct()
        passports = {source: brought.of_users(users) for source, brought in delivered.brought.items()}
        liked, dismissed, seen_live = self._observed(users, named, passports)
        own = own.without(liked).then(liked).without(dismissed)
        listed = Ragged.taken(self.filters.blocked.offsets, self.filters.blocked.items, locate(self.filters.users, users))
        wishes = np.zeros((n, delivered.space.dimension), dtype=np.float32) if declared is None else declared
        brought = np.logical_or.reduce([found >= 0 for found in passports.values()]) if passports else np.zeros(n, dtype=bool)
        return People(
            own=own,
            dismissed=dismissed,
            passports=passports,
            declared=wishes,
            blocked=listed if blocked is None else listed.then(blocked),
            known=(rows >= 0) | seen_live | brought | wishes.any(axis=1),
        )

    def _observed(self, users: np.ndarray, named: np.ndarray, passports: dict[str, np.ndarray]) -> tuple[Ragged, Ragged, np.ndarray]:
        """Items liked and dismissed since the preparation, each item by its last sign, and of whom anything was observed.

        Links that a service was told of find their passports here: they are entered into ``passports``.
        """
        n = len(users)
        asked = np.flatnonzero(named)
        if len(asked) > _FEW:
            asked = asked[locate(self.live.pseudonyms(), users[asked]) >= 0]
        liked: list[list[int]] = [[] for _ in range(n)]
        dismissed: list[list[int]] = [[] for _ in range(n)]
        seen = np.zeros(n, dtype=bool)
        if len(asked) == 0:
            return Ragged.empty(n), Ragged.empty(n), seen
        for at, found in zip(asked.tolist(), self.live.of_pseudonyms(users[asked]), strict=True):
            if len(found):
                seen[at] = True
                liked[at], dismissed[at] = self._by_sign(found)
        for at, links in zip(asked.tolist(), self.live.links_of_pseudonyms(users[asked]), strict=True):
            for source, link_id in links.items():
                if source in passports and passports[source][at] < 0:
                    passports[source][at] = self.delivered.brought[source].of_link(link_id)
        return Ragged.of_lists(liked), Ragged.of_lists(dismissed), seen

    def _by_sign(self, found: Observed) -> tuple[list[int], list[int]]:
        """Items of one user, liked and dismissed, in the order of what was last observed of each; those the catalogue lacks stay out."""
        last: dict[int, int] = {}
        for item, kind in zip(self.positions(found.items).tolist(), found.kinds, strict=True):
            if item >= 0:
                last.pop(item, None)
                last[item] = SIGNS[kind]
        return [item for item, sign in last.items() if sign > 0], [item for item, sign in last.items() if sign < 0]

    def positions(self, item_ids: Sequence[str]) -> np.ndarray:
        """(n,) int64 positions of items in the catalogue, -1 where it lacks one."""
        codes = pl.Series(item_ids, dtype=pl.String).cast(self.catalogue, strict=False).to_physical()
        return codes.cast(pl.Int64).fill_null(-1).to_numpy()


def nobody(n: int) -> np.ndarray:
    """(n, 16) names of people without an account."""
    return np.zeros((n, PSEUDONYM_BYTES), dtype=np.uint8)
