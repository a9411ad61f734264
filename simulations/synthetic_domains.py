"""Synthetic domains whose right answer is known by construction.

Every domain sells items about the same twelve subjects, in its own words. Each person has one favourite subject per domain. For a person
with accounts in two domains the favourite subjects are partners under a fixed exchange of subjects (astronomy and sailing, say), the same
exchange for every pair of domains and in both directions: with probability ``strength`` the favourite in one domain is the partner of the
favourite in the other, else it is drawn afresh. So

- popularity and the text of the items alone cannot find it (the text points to the wrong subject),
- the map is one for all directions, so that a federation can learn it from few linked users in each,
- at ``strength = 0`` there is nothing to find, and whoever finds something is wrong.

Subjects are exchanged in pairs: in the interest space that is a reflection of rank six, which a transfer layer of rank eight can hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl

from shared.config import setting

SUBJECTS: dict[str, tuple[str, ...]] = {
    "astronomy": ("telescope", "galaxy", "planet", "comet", "nebula", "eclipse", "orbit", "starlight"),
    "sailing": ("yacht", "regatta", "harbour", "mast", "anchor", "seafaring", "tide", "schooner"),
    "cooking": ("recipe", "kitchen", "spices", "chef", "baking", "soup", "roast", "pastry"),
    "chess": ("checkmate", "gambit", "grandmaster", "pawn", "endgame", "opening theory", "rook", "chessboard"),
    "gardening": ("roses", "greenhouse", "compost", "orchard", "seedlings", "pruning", "tulips", "lawn"),
    "railways": ("locomotive", "steam train", "railway station", "signal box", "sleeper car", "tracks", "conductor", "express train"),
    "medicine": ("surgeon", "hospital", "vaccine", "anatomy", "nurse", "diagnosis", "pharmacy", "epidemic"),
    "football": ("goalkeeper", "penalty kick", "league cup", "striker", "stadium", "referee", "midfield", "world cup"),
    "finance": ("stock market", "banker", "bonds", "inflation", "investment", "accounting", "dividend", "credit"),
    "horses": ("stallion", "saddle", "jockey", "dressage", "pony", "stable", "gallop", "mare"),
    "painting": ("watercolour", "canvas", "oil paint", "portrait", "easel", "impressionism", "brushstroke", "gallery"),
    "volcanoes": ("lava", "eruption", "crater", "magma", "ash cloud", "geology", "earthquake", "basalt"),
}
"""Subject -> words. The partner of a subject is its neighbour: 0 and 1, 2 and 3, and so on."""

KINDS: dict[str, tuple[str, ...]] = {
    "books": ("novel", "handbook", "short stories", "biography"),
    "films": ("documentary film", "feature film", "film series", "animated film"),
    "music": ("song album", "concert recording", "soundtrack", "song cycle"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticConfig:
    """Size and difficulty of the synthetic world."""

    items: int = setting(360, "items in each domain", low=12, high=1_000_000)
    users_alone: int = setting(800, "people in one domain only, for each domain", unit="users", low=0, high=10_000_000)
    users_linked: int = setting(500, "people linked between each two domains", unit="users", low=0, high=10_000_000)
    interactions: int = setting(9, "mean interactions of a user in a domain, at least 4 each", low=4, high=1000)
    strength: float = setting(1.0, "chance that favourites in two domains are partners; 0 = unrelated", low=0.0, high=1.0)
    loyalty: float = setting(0.8, "share of a user's interactions about the favourite subject", low=0.0, high=1.0)
    popularity_skew: float = setting(0.5, "exponent of the popularity of items (Zipf)", low=0.0, high=3.0)


def partner_of(subject: np.ndarray) -> np.ndarray:
    """The planted exchange of subjects: an involution without fixed points."""
    return subject ^ 1


def write(folder: Path, config: SyntheticConfig, seed: int) -> None:
    """Writes ``<domain>/items.csv`` and ``<domain>/interactions.csv``, laid out as a partner's export.

    Args:
        folder: is made; files in it are replaced.
        config: size and difficulty.
        seed: names the world: equal seeds give equal files.
    """
    generator = np.random.default_rng([seed, 0x15747])
    people = {domain: _alone(number, config, generator) for number, domain in enumerate(KINDS)}
    for (a, first), (b, second) in combinations(enumerate(KINDS), 2):
        left, right = _linked(config, generator)
        names = np.array([f"p{a}{b}-{n:07d}" for n in range(config.users_linked)])
        people[first].append((names, left))
        people[second].append((names, right))
    for domain in KINDS:
        target = folder / domain
        target.mkdir(parents=True, exist_ok=True)
        subjects = np.arange(config.items) % len(SUBJECTS)
        items = _items(domain, subjects, generator)
        items.write_csv(target / "items.csv")
        names = np.concatenate([n for n, _ in people[domain]])
        favourites = np.concatenate([f for _, f in people[domain]])
        _interactions(names, favourites, items["item_id"].to_numpy(), subjects, config, generator).write_csv(target / "interactions.csv")


def _alone(number: int, config: SyntheticConfig, generator: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    names = np.array([f"s{number}-{n:07d}" for n in range(config.users_alone)], dtype=np.str_)
    return [(names, generator.integers(len(SUBJECTS), size=config.users_alone))]


def _linked(config: SyntheticConfig, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Favourites of the people of one pair of domains, (users_linked,) each."""
    left = generator.integers(len(SUBJECTS), size=config.users_linked)
    related = generator.random(config.users_linked) < config.strength
    return left, np.where(related, partner_of(left), generator.integers(len(SUBJECTS), size=config.users_linked))


def _items(domain: str, subjects: np.ndarray, generator: np.random.Generator) -> pl.DataFrame:
    names = list(SUBJECTS)
    titles = []
    for subject in subjects:
        first, second = generator.choice(SUBJECTS[names[subject]], size=2, replace=False)
        titles.append(f"{first.capitalize()} and {second}: a {generator.choice(KINDS[domain])}")
    return pl.DataFrame(
        {
            "item_id": [f"{domain[0]}{n:05d}" for n in range(len(subjects))],
            "title": titles,
            "categories": [names[subject] for subject in subjects],
        }
    )


def _interactions(
    names: np.ndarray,
    favourites: np.ndarray,
    item_ids: np.ndarray,
    subjects: np.ndarray,
    config: SyntheticConfig,
    generator: np.random.Generator,
) -> pl.DataFrame:
    """Rows of (user_id, item_id, timestamp, rating) in the order of time."""
    items = len(subjects)
    popularity = generator.permutation(np.arange(1, items + 1) ** -config.popularity_skew)
    by_subject = [np.flatnonzero(subjects == s) for s in range(len(SUBJECTS))]
    counts = 4 + generator.poisson(max(config.interactions - 4, 0), size=len(names))
    user = np.repeat(np.arange(len(names)), counts)
    item = generator.choice(items, size=len(user), p=popularity / popularity.sum())
    loyal = generator.random(len(user)) < config.loyalty
    for subject, members in enumerate(by_subject):
        rows = np.flatnonzero(loyal & (favourites[user] == subject))
        weights = popularity[members] / popularity[members].sum()
        item[rows] = generator.choice(members, size=len(rows), p=weights)
    time = 1_600_000_000 + generator.integers(0, 40_000_000, size=len(user))
    table = pl.DataFrame({"user": user, "item": item, "timestamp": time}).unique(["user", "item"], keep="first", maintain_order=True)
    table = table.sort("timestamp", "user")
    return pl.DataFrame(
        {
            "user_id": names[table["user"].to_numpy()],
            "item_id": item_ids[table["item"].to_numpy()],
            "timestamp": table["timestamp"],
            "rating": np.ones(len(table)),
        }
    )
