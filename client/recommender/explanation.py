"""Why an item is on a list, in words: by prototypes, and by items that the user had in this domain.

A reason names an item only where it is the user's own, here. What a passport was made of stays at its source: of such an interest there is
nothing to be said but which prototypes it leans to, and prototypes are public.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from client.interest_distribution import InterestDistributions, nearest_items, prototype_names, read_against

from ..partner_data import partner_data
from .cold_start import Interests, People
from .delivered import Delivered
from .scoring import Parts

POPULAR = "popular here"
PERSONAL = "your interests"
NEITHER = "nothing better is left"
BY_POPULARITY, BY_INTEREST, BY_NEITHER = range(3)
LONGEST_TITLE = 60
NAMED_PROTOTYPES = 3
"""Prototypes that an explanation of one item names."""
_LEAST_LIKE = 0.2
"""Cosine below which an item of the user's own is not said to be alike."""
_LEAST_SHARE = 0.05
_MOST_READ = 50
_NUMBERS_AT_A_TIME = 8_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A prototype, and how much of a match is due to it: shares of all prototypes sum to 1."""

    name: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Like:
    """An item of the user's own that is like the one explained: its id, title and cosine."""

    item: str
    title: str
    cosine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why an item would be recommended to a user, or why not.

    Attributes:
        words: one line.
        source: as `Answer.source`.
        score: of the item; a higher one stands further up.
        from_interest, from_popularity: how far the user's interest, and what everybody takes, lift it above the average of the catalogue.
        prototypes: what the match is about, most first; empty where nothing is known of the user.
        like: items of the user's own in this domain, most alike first.
        uncertainty: as `Answer.uncertainty`.
    """

    words: str
    source: str
    score: float
    from_interest: float
    from_popularity: float
    prototypes: tuple[Share, ...]
    like: tuple[Like, ...]
    uncertainty: float


class Reasons:
    """Words for a domain's recommendations. Texts are read when the first reason in words is asked for."""

    def __init__(self, delivered: Delivered) -> None:
        self._delivered = delivered

    @cached_property
    def _texts(self) -> list[str]:
        with partner_data(self._delivered.settings) as data:
            found = data.catalogue()
        return list(found.texts) if list(found.item_ids) == self._delivered.prepared.item_ids else list(self._delivered.prepared.item_ids)

    @cached_property
    def _titles(self) -> pl.Series:
        texts = pl.Series("title", [text or item for text, item in zip(self._texts, self._delivered.prepared.item_ids, strict=True)])
        long = texts.str.len_chars() > LONGEST_TITLE
        return (texts.str.slice(0, LONGEST_TITLE - 1).str.strip_chars_end() + "…").zip_with(long, texts)

    @cached_property
    def prototype_names(self) -> list[str]:
        """A name for each prototype; one that no word sets apart has the title of its nearest item, or its number."""
        nearest = nearest_items(self._delivered.space.prototypes, self._delivered.coordinates)
        named = prototype_names(nearest, [[self._texts[item] for item in items] for items in nearest])
        return [
            str(name) or (self._titles[name.items[0]] if name.items else f"prototype {number}")
            for number, name in enumerate(named, start=1)
        ]

    def titles(self, items: Sequence[int] | np.ndarray) -> list[str]:
        """The beginnings of items' texts; the id of an item without text."""
        return [str(title) for title in self._titles.gather(np.asarray(items, dtype=np.int64)).to_list()]

    def brief(self, why: np.ndarray) -> pl.Series:
        """(n * k,) a few words for each of (n, k) `Lists.why`."""
        return pl.Series("reason", [POPULAR, PERSONAL, NEITHER], dtype=pl.String).gather(why.ravel().astype(np.int64))

    def in_words(self, people: People, interests: Interests, items: np.ndarray, why: np.ndarray) -> pl.Series:
        """(n * k,) one line for each item of (n, k) lists: what it is like, what it is about, or that it is popular."""
        n, k = items.shape
        like, cosine = self._most_alike(people, items)  # (n, k) both
        about = self._about(people, interests, items)  # (n, k, K)
        prototype = about.argmax(axis=2) if about.size else np.zeros((n, k), dtype=np.int64)
        known = about.sum(axis=2) > 0 if about.size else np.zeros((n, k), dtype=bool)
        names = pl.Series(self.prototype_names or [""]).gather(prototype.ravel())
        frame = pl.DataFrame(
            {
                "personal": (why == BY_INTEREST).ravel(),
                "popular": (why == BY_POPULARITY).ravel(),
                "alike": (cosine >= _LEAST_LIKE).ravel(),
                "known": known.ravel(),
                "own": self._titles.gather(like.ravel()),
                "about": names,
            }
        )
        said = (
            pl.when("personal", "alike").then(pl.format("like your '{}' (about {})", "own", "about"))
            .when("personal", "known").then(pl.format("your interest in {}", "about"))
            .when("personal").then(pl.lit(PERSONAL))
            .when("popular").then(pl.lit(POPULAR))
            .otherwise(pl.lit(NEITHER))
        )  # fmt: skip
        return frame.select(reason=said).to_series()

    def of_item(self, people: People, interests: Interests, item: int, *, source: str, parts: Parts) -> Explanation:
        """All that can be said of one item to one user."""
        about = self._about(people, interests, np.array([[item]]))[0, 0]  # (K,)
        order = np.argsort(-about, kind="stable")[:NAMED_PROTOTYPES]
        shares = tuple(Share(name=self.prototype_names[k], share=float(about[k])) for k in order.tolist() if about[k] >= _LEAST_SHARE)
        had = bool((people.own.items == item).any())
        own = people.own.items[people.own.items != item]
        cosines = self._delivered.coordinates[own] @ self._delivered.coordinates[item] if len(own) else np.zeros(0)
        nearest = [at for at in np.argsort(-cosines, kind="stable")[:NAMED_PROTOTYPES].tolist() if cosines[at] >= _LEAST_LIKE]
        titles = self.titles(own[nearest]) if nearest else []
        ids = self._delivered.prepared.item_ids
        like = tuple(
            Like(item=ids[int(own[at])], title=title, cosine=float(cosines[at])) for at, title in zip(nearest, titles, strict=True)
        )
        sentence = "among what you had here" if had else _sentence(shares, like, parts.interest, parts.popularity)
        words = f"'{self.titles([item])[0]}': {sentence}"
        return Explanation(
            words=words,
            source=source,
            score=parts.score,
            from_interest=parts.interest,
            from_popularity=parts.popularity,
            prototypes=shares,
            like=like,
            uncertainty=float(interests.uncertainty[0]),
        )

    def distributions(self, people: People, interests: Interests) -> InterestDistributions:
        """Interest distributions of the people: their own items as they were observed, and what they brought by where it stands."""
        prototypes = self._delivered.space.prototypes
        found = InterestDistributions.strangers(len(people), len(prototypes))
        if len(prototypes) == 0:
            return found
        for signed, weight in ((people.own, 1.0), (people.dismissed, -1.0)):
            items, mask = signed.padded(_MOST_READ)
            for column in range(items.shape[1]):
                readings = read_against(prototypes, self._delivered.coordinates[items[:, column]] * mask[:, column, None])
                found = found.after(readings, weight * mask[:, column])
        brought = interests.items - people.own.lengths - people.dismissed.lengths
        stands = read_against(prototypes, _unit(interests.vectors))
        return found.after(stands, np.maximum(brought, 0.0))

    def _about(self, people: People, interests: Interests, items: np.ndarray) -> np.ndarray:
        """(n, k, K) shares of the prototypes in the match of each user and item: mean_k * reading_jk, normalised; zeros for strangers."""
        prototypes = self._delivered.space.prototypes
        n, k = items.shape
        if len(prototypes) == 0:
            return np.zeros((n, k, 0), dtype=np.float32)
        known = interests.items > 0
        mean = self.distributions(people, interests).mean * known[:, None]  # (n, K)
        distinct, inverse = np.unique(np.maximum(items, 0), return_inverse=True)
        readings = read_against(prototypes, self._delivered.coordinates[distinct])  # (distinct, K)
        matched = mean.astype(np.float32)[:, None, :] * readings[inverse.reshape(n, k)]
        total = matched.sum(axis=2, keepdims=True)
        return np.asarray(np.divide(matched, total, out=np.zeros_like(matched), where=total > 0))

    def _most_alike(self, people: People, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, k) the user's own item that is most like each one, and its cosine; -1 for users without any."""
        own, mask = people.own.padded(_MOST_READ)  # (n, L)
        n, k = items.shape
        best, cosine = np.zeros((n, k), dtype=np.int64), np.full((n, k), -1.0, dtype=np.float32)
        coordinates = self._delivered.coordinates
        rows_at_a_time = max(1, _NUMBERS_AT_A_TIME // max(1, own.shape[1] * coordinates.shape[1]))
        for start in range(0, n if own.shape[1] else 0, rows_at_a_time):
            rows = slice(start, start + rows_at_a_time)
            near = np.einsum("nkd,nld->nkl", coordinates[np.maximum(items[rows], 0)], coordinates[own[rows]])
            near[np.broadcast_to(~mask[rows, None, :], near.shape)] = -1.0
            which = near.argmax(axis=2)
            best[rows] = np.take_along_axis(own[rows], which, axis=1)
            cosine[rows] = np.take_along_axis(near, which[..., None], axis=2)[..., 0]
        return best, cosine


def _sentence(shares: Sequence[Share], like: Sequence[Like], from_interest: float, from_popularity: float) -> str:
    """What lifts an item above the average of the catalogue; the larger part is named."""
    if from_interest > max(from_popularity, 0.0):
        said = [f"your interest in {' and in '.join(share.name for share in shares[:2])}"] if shares else [PERSONAL]
        return "; ".join([*said, *(f"like your '{one.title}'" for one in like[:1])])
    return POPULAR if from_popularity > 0 else "neither your interests nor what is popular here speak for it"


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-9))
