"""Lists for many users, as frames: some thousands of users at a time, without a loop over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from .cold_start import Interests
from .lists import Lists
from .opened import Opened
from .people import People
from .requests import UnknownUser

USERS_AT_A_TIME = 4096
_USERS_LOOKED_UP_AT_A_TIME = 65_536

SCHEMA = pl.Schema(
    {
        "user": pl.String(),
        "rank": pl.Int32(),
        "item": pl.String(),
        "score": pl.Float32(),
        "reason": pl.String(),
        "source": pl.String(),
        "uncertainty": pl.Float32(),
        "model_version": pl.String(),
    }
)
"""Of a frame; ranks begin with 1, uncertainties go from 0 to 1."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Wanted:
    """What a batch is about.

    Attributes:
        ids: (n,) the partner's own ids.
        names: (n, 16) their pseudonyms.
        declared: (n, d) declared interests, zeros = none; None where nobody declared any.
        k, diversity, with_seen, explain: as in `client.recommender.requests.Request`.
    """

    ids: pl.Series
    names: np.ndarray
    declared: np.ndarray | None
    k: int
    diversity: float
    with_seen: bool
    explain: bool

    def people(self, now: Opened, chunk: slice) -> People:
        """What is known of some of them."""
        return now.gatherer.people(self.names[chunk], None if self.declared is None else self.declared[chunk])


def refuse_strangers(now: Opened, wanted: Wanted, name_of: Callable[[int], str]) -> None:
    """Raises UnknownUser before the first list is made."""
    unknown: list[int] = []
    for start in range(0, len(wanted.ids), _USERS_LOOKED_UP_AT_A_TIME):
        people = wanted.people(now, slice(start, start + _USERS_LOOKED_UP_AT_A_TIME))
        unknown += (start + np.flatnonzero(~people.known)).tolist()
    if unknown:
        more = f", and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
        raise UnknownUser(
            f"{name_of(unknown[0])} is not known here{more}: nothing was written",
            do="Mend the id; or give --even-unknown, for what is popular to users of whom nothing is known.",
        )


def frames(now: Opened, wanted: Wanted, progress: Progress | None) -> Iterator[pl.DataFrame]:
    """Yields frames of `SCHEMA`; users in the order given, their items best first."""
    for start in range(0, len(wanted.ids), USERS_AT_A_TIME):
        chunk = slice(start, min(start + USERS_AT_A_TIME, len(wanted.ids)))
        people = wanted.people(now, chunk)
        found = now.interests_of(people)
        lists = now.lists(people, found, k=wanted.k, with_seen=wanted.with_seen, diversity=wanted.diversity)
        reasons = now.reasons_of(people, found, lists, explain=wanted.explain)
        yield _frame(now, wanted.ids[chunk], found, lists, reasons)
        if progress is not None:
            progress(chunk.stop, len(wanted.ids))


def _frame(now: Opened, ids: pl.Series, found: Interests, lists: Lists, reasons: pl.Series) -> pl.DataFrame:
    n, k = lists.items.shape
    rows = np.repeat(np.arange(n), k)
    frame = pl.DataFrame(
        {
            "user": ids.gather(rows),
            "rank": np.tile(np.arange(1, k + 1, dtype=np.int32), n),
            "item": now.item_ids.gather(np.maximum(lists.items, 0).ravel().astype(np.int64)),
            "score": lists.scores.ravel(),
            "reason": reasons,
            "source": now.sources.gather(found.sources[rows]),
            "uncertainty": found.uncertainty[rows],
            "model_version": pl.repeat(now.delivered.version, n * k, eager=True),
        },
        schema=SCHEMA,
    )
    return frame.filter(pl.Series(lists.items.ravel() >= 0))
