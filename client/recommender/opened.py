"""One state of a domain with all that is made from it: searches, filters, words. It is replaced as a whole, never changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from ..live_profiles import LiveProfiles
from ..settings import ClientSettings
from .cold_start import Interests, interests, source_names
from .delivered import Delivered, open_delivered, stamp
from .engines import check_engine
from .explanation import Reasons
from .filters import Filters
from .lists import Lists, best_items
from .people import Gatherer, People
from .requests import UnknownItem, check_interest
from .scoring import Search, Searches

_SAMPLED, _FEWEST_SAMPLED = 500, 20


class Opened:
    """One state of a domain with all that is made from it; replaced as a whole."""

    def __init__(self, settings: ClientSettings, filters: Callable[[Delivered], Filters], engine: str, live: LiveProfiles) -> None:
        check_engine(engine)
        self.stamp, self.at = stamp(settings), time.monotonic()
        self.delivered = open_delivered(settings)
        self.filters = filters(self.delivered)
        self.catalogue = pl.Enum(self.delivered.prepared.item_ids)
        self.gatherer = Gatherer(delivered=self.delivered, live=live, filters=self.filters, catalogue=self.catalogue)
        self.searches = Searches(self.delivered, engine, self._sample)
        self.reasons = Reasons(self.delivered)
        self.sources = pl.Series("source", source_names(self.delivered))
        self.item_ids = pl.Series("item", self.delivered.prepared.item_ids, dtype=pl.String)

    def interests_of(self, people: People) -> Interests:
        return interests(people, self.delivered)

    def lists(self, people: People, found: Interests, *, k: int, with_seen: bool, diversity: float) -> Lists:
        """Lists of some users."""
        return best_items(people, found, self.searches, self.filters.everywhere, k=k, diversity=diversity, with_seen=with_seen)

    def reasons_of(self, people: People, found: Interests, lists: Lists, *, explain: bool) -> pl.Series:
        """(n * k,) why each item is on its list; in words where somebody wants them."""
        return self.reasons.in_words(people, found, lists.items, lists.why) if explain else self.reasons.brief(lists.why)

    def _sample(self, number: int, search: Search) -> np.ndarray | None:
        """Queries of some users of a search; None where there are too few of them."""
        everybody = [self.delivered.prepared.everyone.pseudonyms, *(brought.users for brought in self.delivered.brought.values())]
        users = np.concatenate([some[np.linspace(0, len(some) - 1, min(_SAMPLED, len(some))).astype(np.int64)] for some in everybody])
        people = self.gatherer.people(users)
        found = self.interests_of(people)
        mine = np.flatnonzero(self.searches.numbers(found) == number)
        return search.queries(people.select(mine), found.select(mine)) if len(mine) >= _FEWEST_SAMPLED else None

    def position(self, item: str) -> int:
        """Raises UnknownItem."""
        at = int(self.gatherer.positions([item])[0])
        if at < 0:
            raise UnknownItem("the catalogue lacks this item", do="Mend the id: it is the one of the catalogue's item column.")
        return at

    def blocked(self, item_ids: Sequence[str]) -> list[int]:
        """Positions of what one user is not to see. Raises UnknownItem."""
        found = self.gatherer.positions(item_ids).tolist() if item_ids else []
        if -1 in found:
            raise UnknownItem(f"the catalogue lacks item {found.index(-1) + 1} of those that are blocked", do="Mend the id.")
        return [int(at) for at in found]

    def checked_interest(self, vector: np.ndarray, space_version: str) -> np.ndarray:
        """Raises UsageError for a declared vector that cannot be read here."""
        return check_interest(vector, space_version, dimension=self.delivered.space.dimension, served=self.delivered.space.version)
