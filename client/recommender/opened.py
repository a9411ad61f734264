"""One state of a domain with all that is made from it: searches, filters, words. It is replaced as a whole, never changed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import polars as pl

from ..live_profiles import LiveProfiles
from ..settings import ClientSettings
from ..top_k import ExactTopK, TopItems, TopK
from .cold_start import Interests, interests, source_names
from .delivered import Delivered, open_delivered, stamp
from .engines import EXACT, engine_of
from .explanation import Reasons
from .filters import Filters
from .lists import best_items
from .people import Gatherer, People
from .requests import UnknownItem, check_interest
from .scoring import Scores


class Opened:
    """One state of a domain with all that is made from it; replaced as a whole."""

    def __init__(self, settings: ClientSettings, filters: Callable[[Delivered], Filters], engine: str, live: LiveProfiles) -> None:
        self.stamp, self.at = stamp(settings), time.monotonic()
        self.delivered = open_delivered(settings)
        self.filters = filters(self.delivered)
        self.catalogue = pl.Enum(self.delivered.prepared.item_ids)
        self.gatherer = Gatherer(delivered=self.delivered, live=live, filters=self.filters, catalogue=self.catalogue)
        self.scores = Scores.of(self.delivered)
        self.exact = ExactTopK(self.scores.vectors)
        self.engine: TopK = self.exact if engine == EXACT else engine_of(engine, self.scores.vectors, self.exact)
        self.reasons = Reasons(self.delivered)
        self.sources = pl.Series("source", source_names(self.delivered))
        self.item_ids = pl.Series("item", self.delivered.prepared.item_ids, dtype=pl.String)

    def interests_of(self, people: People) -> Interests:
        return interests(people, self.delivered)

    def search(self, people: People, found: Interests, *, k: int, with_seen: bool, diversity: float) -> tuple[np.ndarray, TopItems]:
        """Queries (n, D), and the lists (n, k)."""
        queries = self.scores.queries(people, found)
        extra = self.scores.extra(people, found)
        hidden = people.dismissed.then(people.blocked)
        masked = hidden if with_seen else people.own.then(hidden)
        top = best_items(
            queries,
            engine=self.engine,
            exact=self.exact,
            extra=extra,
            masked=masked,
            everywhere=self.filters.everywhere,
            coordinates=self.delivered.coordinates,
            k=k,
            diversity=diversity,
        )
        return queries, top

    def reasons_of(self, people: People, found: Interests, queries: np.ndarray, top: TopItems, *, explain: bool) -> pl.Series:
        """(n * k,) why each item is on its list; in words where somebody wants them."""
        personal = self.scores.is_personal(queries, top.items, top.scores)
        return self.reasons.in_words(people, found, top.items, personal) if explain else self.reasons.brief(personal)

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
