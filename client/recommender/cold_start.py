r"""Whose interest is known, from what, and how surely: the chain passport -> own few items -> declared interests -> popularity.

A user with at least `ENOUGH` items here is read by the encoder alone. With fewer, what they brought or declared is a prior that counts as
so many items, and their own items are evidence; the interest is the posterior mean, which for counted evidence is the weighted average

.. math:: z = \frac{m z_0 + n z_{own}}{m + n} - \gamma \bar x_{dismissed}

(conjugate prior with m pseudo-observations: Gelman et al., Bayesian Data Analysis, 2.5 and 3.4; what was dismissed pushes away as in
Rocchio 1971, "Relevance feedback in information retrieval"). A passport stands for ``passport_min_items`` items, because it was made of at
least so many; declared interests stand for one. The uncertainty is the one of `client.interest_distribution`, by the same counts: prior /
(prior + observed). Under the method `maml`, which learns where to begin with a user, its steps take the place of the average. Nothing is
trained here, so a new observation costs one pass of the encoder over one history.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from client.interest_distribution import PRIOR_ITEMS

from ..delivery import OWN as OWN_HEAD
from ..model.adaptation import adapt
from ..model.domain_head import ServingHead
from .delivered import Delivered
from .people import People
from .ragged import Ragged
from .requests import DECLARED, OWN, POPULARITY, passport_from

ENOUGH = 5
"""Items of a user's own from which on nothing else is asked."""
DECLARED_ITEMS = 1.0
"""What declared interests stand for, in items."""
WARM = "warm"
"""The way of scoring people whose history here is all there is, where a blend for them was delivered (`client.model.warm_head`)."""

DISMISSED_WEIGHT = 0.25
"""gamma: Rocchio's usual weight of what was found irrelevant, relative to the rest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Interests:
    """Where n users stand, and how they are scored.

    Attributes:
        vectors: (n, d) float32 for this domain; without a meaning for people whom the blend for warm users scores.
        passports: (n, d) float32 by which they are compared with their like: what they brought, together with their own items.
        scorers: (n,) positions in `scorer_names`.
        sources: (n,) positions in `source_names`.
        items: (n,) float32, how many items the knowledge stands for.
    """

    vectors: np.ndarray
    passports: np.ndarray
    scorers: np.ndarray
    sources: np.ndarray
    items: np.ndarray

    def select(self, rows: np.ndarray) -> Interests:
        """Those of some of the users, by position."""
        return Interests(**{one.name: getattr(self, one.name)[rows] for one in dataclasses.fields(self)})

    @property
    def uncertainty(self) -> np.ndarray:
        """(n,) in (0, 1]: 1 where nothing is known."""
        return np.asarray(PRIOR_ITEMS / (PRIOR_ITEMS + self.items), dtype=np.float32)


def passport_sources(delivered: Delivered) -> tuple[list[str], list[str]]:
    """Sources whose passports can be read here: those that help, the loudest first and equals by name; and the others.

    A gate that stayed closed says that passports of that source did not help. Whoever brought another one is read by that, and whoever
    has a few items or declared something, by these.
    """
    known = sorted((name for name in delivered.brought if name in delivered.heads), key=lambda name: (-delivered.heads[name].scale, name))
    closed = [name for name in known if is_closed(delivered.heads[name])]
    return [name for name in known if name not in closed], closed


def is_closed(head: ServingHead) -> bool:
    """Whether the gate of a head lets nothing in but popularity."""
    return head.scale == 0.0 and head.neighbours is None


def scorer_names(delivered: Delivered) -> list[str]:
    """Ways of scoring: popularity, own history, declared interests, passports of each source, and the blend for warm users."""
    return [POPULARITY, OWN, DECLARED, *sorted(name for name in delivered.heads if name != OWN_HEAD), WARM]


def source_names(delivered: Delivered) -> list[str]:
    """What answers may rest on, as `Answer.source` says it."""
    return [POPULARITY, OWN, DECLARED, *(passport_from(name) for name in sorted(delivered.heads) if name != OWN_HEAD)]


def interests(people: People, delivered: Delivered) -> Interests:
    """Goes down the chain for all users at once."""
    names, n_own = scorer_names(delivered), people.own.lengths
    prior = _priors(people, delivered, names)
    vectors, passports = _posterior(people, prior, delivered)
    pushed = DISMISSED_WEIGHT * people.dismissed.mean_of(delivered.coordinates)
    scorers = prior.scorers.copy()
    if delivered.warm is not None:
        scorers[(n_own > 0) & (prior.strength == 0)] = names.index(WARM)
    known = prior.strength + n_own + people.dismissed.lengths
    sources = _said(scorers, delivered, names)
    return Interests(
        vectors=(vectors - pushed).astype(np.float32),
        passports=(passports - pushed).astype(np.float32),
        scorers=scorers,
        sources=sources,
        items=known.astype(np.float32),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Priors:
    """What n users brought or declared, where their own items are few.

    Attributes:
        vectors: (n, d) z_0.
        brought: (n, d) the same before it was carried over.
        strength: (n,) m, the items it stands for; 0 = there is none.
        scorers: (n,) positions in `scorer_names`.
    """

    vectors: np.ndarray
    brought: np.ndarray
    strength: np.ndarray
    scorers: np.ndarray


def _priors(people: People, delivered: Delivered, names: Sequence[str]) -> _Priors:
    n_own = people.own.lengths
    popularity, own, declared = range(3)
    scorers = np.where(n_own > 0, own, popularity)
    vectors = np.zeros((len(people), delivered.space.dimension), dtype=np.float32)
    brought = np.zeros_like(vectors)
    strength = np.zeros(len(people), dtype=np.float32)
    left = n_own < ENOUGH
    helpful, others = passport_sources(delivered)
    for source in helpful:
        rows = people.passports[source]
        who = left & (rows >= 0)
        vectors[who] = delivered.brought[source].interests[rows[who]]
        brought[who] = delivered.brought[source].vectors[rows[who]]
        strength[who] = delivered.config.training.passport_min_items
        scorers[who] = names.index(source)
        left &= ~who
    who = left & people.declared.any(axis=1)
    vectors[who], brought[who], strength[who] = people.declared[who], people.declared[who], DECLARED_ITEMS
    scorers[who & (n_own == 0)] = declared
    for source in others:  # at least what people take who come from there
        scorers[(scorers == popularity) & (people.passports[source] >= 0)] = names.index(source)
    return _Priors(vectors=vectors, brought=brought, strength=strength, scorers=scorers)


def _posterior(people: People, prior: _Priors, delivered: Delivered) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) prior and own items together, and (n, d) the same of what was brought; the formula at the head of this file."""
    n_own = people.own.lengths
    read = (n_own > 0) & ((prior.strength > 0) | (delivered.warm is None))  # the blend reads histories itself: no encoder for its people
    own = np.zeros_like(prior.vectors)
    own[read] = encoded(people.own.select(read), delivered)
    total = np.where(prior.strength > 0, prior.strength + n_own, 1.0)
    weight = (prior.strength / total)[:, None].astype(np.float32)
    vectors, passports = (weight * one + (1.0 - weight) * own for one in (prior.vectors, prior.brought))
    if delivered.start is not None:
        brought = (prior.strength > 0) & (n_own > 0) & (prior.scorers > 2)  # it was begun where passports were carried over
        items, present = people.own.select(brought).padded(ENOUGH)
        vectors[brought] = adapt(prior.vectors[brought], items, present, delivered.coordinates, delivered.start)
    return vectors, passports


def _said(scorers: np.ndarray, delivered: Delivered, names: Sequence[str]) -> np.ndarray:
    """What an answer rests on: where the gate of a head stayed closed, that is popularity, whatever the user brought."""
    said = np.arange(len(names))
    said[names.index(WARM)] = names.index(OWN)
    if delivered.warm is not None and delivered.warm.blend.text == 0.0 and delivered.warm.blend.collaborative == 0.0:
        said[names.index(WARM)] = 0
    if is_closed(delivered.heads[OWN_HEAD]):
        said[names.index(OWN)] = 0
    for name in delivered.heads.keys() & set(names):
        if name != OWN_HEAD and is_closed(delivered.heads[name]):
            said[names.index(name)] = 0
    return np.asarray(said[scorers])


def encoded(own: Ragged, delivered: Delivered) -> np.ndarray:
    """(n, d) interests by the trained encoder; zeros for users without items."""
    import torch

    vectors = np.zeros((len(own), delivered.space.dimension), dtype=np.float32)
    who = np.flatnonzero(own.lengths > 0)
    if len(who) == 0:
        return vectors
    items, mask = own.padded(delivered.config.training.max_history_items)
    items, mask = items[who], mask[who]
    with torch.no_grad():
        history = torch.from_numpy(delivered.coordinates[items] * mask[..., None])
        vectors[who] = delivered.model.encoder(history, torch.from_numpy(mask.astype(np.float32)), torch.from_numpy(items)).numpy()
    return vectors
