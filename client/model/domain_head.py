r"""The serving head: interest vector for this domain -> scores of its items. Fitted on exact local data; never leaves, never trains.

.. math:: s_j = \beta\,\langle z + b,\, x_j\rangle + \sum_f \gamma_f \log(n_{fj} + 1) + \kappa\,\phi(z) F_j

with :math:`n_{fj}` how often item j was taken by the people of group f (everybody, and those linked to the source domain, who buy other
things), and :math:`\phi(z) F_j` what people with alike interests took (`client.model.neighbours`). The first two terms are the
maximum-likelihood softmax over the whole catalogue. Each user's own items are taken out of the counts that predict them (leave one out),
or the head would learn to believe in counts of one.

The gate: the head starts as popularity alone and keeps interest and neighbours only as far as they help on people it was not fitted on.
Where it does not help, popularity is what remains, so that a bad transfer cannot harm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
import torch

from . import neighbours
from .neighbours import Neighbours

GATES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""How far the interest is let in: 0 = not at all, 1 = as likelihood has it, above 1 = further, because lists reward boldness."""

KAPPAS = (30.0, 100.0, 300.0, 1000.0)
"""How loud the neighbours speak: their scores are shares of alike people who took an item, a few hundredths."""

RIDGES = (5.0, 20.0)
CUTS = (5, 10, 20, 50)
_STEPS, _USERS_PER_STEP, _LEARNING_RATE = 80, 192, 0.08
_PARTS, _FEW, _MOST_HELD_BACK, _USERS_AT_A_TIME = 5, 500, 1000, 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingHead:
    """A fitted head.

    Attributes:
        scale: beta, 0 where the interest does not help.
        offset: (d,) b.
        weights: (F,) gamma.
        log_counts: (F, n_items) float32 log(n + 1).
        loudness: kappa, 0 without neighbours.
        neighbours: None where they do not help.
    """

    scale: float
    offset: np.ndarray
    weights: np.ndarray
    log_counts: np.ndarray
    loudness: float = 0.0
    neighbours: Neighbours | None = None

    @property
    def prior(self) -> np.ndarray:
        """(n_items,) float32: what every user is offered."""
        return np.asarray(self.weights @ self.log_counts, dtype=np.float32)

    def scores(self, interests: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """Args: interests (n, d), coordinates (n_items, d). Returns (n, n_items) float32."""
        found = (self.scale * (interests + self.offset)).astype(np.float32) @ coordinates.T + self.prior
        if self.neighbours is not None:
            found += (np.float32(self.loudness) * self.neighbours.features(interests)) @ self.neighbours.factors
        return np.asarray(found)

    def queries(self, interests: np.ndarray) -> np.ndarray:
        """(n, D) float32 whose inner products with `item_vectors` are the scores: for searches over many items."""
        parts = [self.scale * (interests + self.offset), np.ones((len(interests), 1))]
        if self.neighbours is not None:
            parts.append(self.loudness * self.neighbours.features(interests))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def item_vectors(self, coordinates: np.ndarray) -> np.ndarray:
        """(n_items, D) float32: coordinates, prior and factors, side by side."""
        parts = [coordinates, self.prior[:, None]]
        if self.neighbours is not None:
            parts.append(self.neighbours.factors.T)
        return np.concatenate(parts, axis=1).astype(np.float32)

    def to_arrays(self) -> dict[str, np.ndarray]:
        arrays = {
            "scale": np.array([self.scale], dtype=np.float32),
            "offset": self.offset,
            "weights": self.weights,
            "log_counts": self.log_counts,
        }
        if self.neighbours is not None:
            arrays["loudness"] = np.array([self.loudness], dtype=np.float32)
            arrays |= {"landmarks": self.neighbours.landmarks, "factors": self.neighbours.factors}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ServingHead:
        found = cls(scale=float(arrays["scale"][0]), offset=arrays["offset"], weights=arrays["weights"], log_counts=arrays["log_counts"])
        if "factors" not in arrays:
            return found
        beside = Neighbours(landmarks=arrays["landmarks"], factors=arrays["factors"])
        return dataclasses.replace(found, loudness=float(arrays["loudness"][0]), neighbours=beside)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FittingData:
    """People whose interest and items are both known.

    Attributes:
        interests: (n, d) float32 interest for this domain.
        offsets, items: their items here, flat.
        counts: (F, n_items) how often each item was taken, by group; these people's own items are counted in all of them.
    """

    interests: np.ndarray
    offsets: np.ndarray
    items: np.ndarray
    counts: np.ndarray

    @property
    def users(self) -> int:
        return len(self.interests)

    def of(self, users: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows (position within ``users``), items, and weights (1 / items of that user), flat."""
        lengths = self.offsets[users + 1] - self.offsets[users]
        rows = np.repeat(np.arange(len(users)), lengths)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        items = self.items[np.repeat(self.offsets[users], lengths) + within]
        weights = np.repeat(1.0 / np.maximum(lengths, 1), lengths)
        return torch.from_numpy(rows), torch.from_numpy(items.astype(np.int64)), torch.from_numpy(weights.astype(np.float32))


def popularity_head(counts: np.ndarray, dimension: int) -> ServingHead:
    """The head of a domain that knows nothing but counts, (F, n_items): the first group alone."""
    weights = np.zeros(len(counts), dtype=np.float32)
    weights[0] = 1.0
    return ServingHead(scale=0.0, offset=np.zeros(dimension, dtype=np.float32), weights=weights, log_counts=_log(counts))


def fit(data: FittingData, coordinates: np.ndarray, *, generator: np.random.Generator, with_neighbours: bool = True) -> ServingHead:
    """Fits the head on most of the people and sets its gate on the rest; where people are few, each part of them is held back in turn.

    Args:
        data: the people; with fewer than ten the head is popularity alone.
        coordinates: (n_items, d).
        generator: draws mini-batches and who is held back.
        with_neighbours: let alike people speak; without them the head is interest and popularity alone.
    """
    if data.users < 10:
        return popularity_head(data.counts, coordinates.shape[1])
    items = torch.from_numpy(np.array(coordinates))  # a copy: the file is mapped read-only
    parts = np.array_split(generator.permutation(data.users), _PARTS)
    few = data.users < _FEW
    hits: list[np.ndarray] = []
    for held_back in parts if few else parts[:1]:
        fitted_on = np.setdiff1d(np.arange(data.users), held_back)
        heads = list(_candidates(data, items, fitted_on, generator, with_neighbours=with_neighbours))
        hits.append(np.stack([_hits(head, data, np.asarray(coordinates), held_back[:_MOST_HELD_BACK]) for head in heads]))
    chosen = _trusted(np.concatenate(hits, axis=1))
    everybody = np.arange(data.users)
    if few:
        return list(_candidates(data, items, everybody, generator, with_neighbours=with_neighbours))[chosen]
    if heads[chosen].neighbours is None:
        return heads[chosen]
    ridge = RIDGES[(chosen - 1 - len(GATES)) // (len(KAPPAS) * 2)]  # the order of `_candidates`
    return dataclasses.replace(heads[chosen], neighbours=_neighbours(data, everybody, coordinates.shape[0], ridge, generator))


def _candidates(
    data: FittingData, items: torch.Tensor, people: np.ndarray, generator: np.random.Generator, *, with_neighbours: bool
) -> Iterator[ServingHead]:
    """Popularity, a head for each gate, and the neighbours with and without the interest beside them."""
    full = _climb(data, items, people, generator, with_interest=True)
    plain = _climb(data, items, people, generator, with_interest=False)
    yield popularity_head(data.counts, items.shape[1])
    yield from (_between(plain, full, gate) for gate in GATES)
    if with_neighbours and len(people) >= neighbours.LEAST:
        for ridge in RIDGES:
            beside = _neighbours(data, people, items.shape[0], ridge, generator)
            for loudness in KAPPAS:
                yield from (dataclasses.replace(head, loudness=loudness, neighbours=beside) for head in (plain, full))


def _neighbours(data: FittingData, people: np.ndarray, n_items: int, ridge: float, generator: np.random.Generator) -> Neighbours:
    rows, items, _ = data.of(people)
    taken = scipy.sparse.csr_array((np.ones(len(rows), dtype=np.float32), (rows.numpy(), items.numpy())), shape=(len(people), n_items))
    taken.data[:] = 1.0  # pairs that occur twice were added up
    return neighbours.fit(data.interests[people], taken, ridge=ridge, generator=generator)


def _trusted(hits: np.ndarray) -> int:
    """Which candidate of (candidates, people) hits is kept: the one with the most, where it gains more than one standard error.

    In two steps, because the best of many is luck more often than the best of few: a head without neighbours has to gain over popularity,
    and one with neighbours over the head that was kept.
    """
    kept = 0
    for group in np.split(np.arange(len(hits)), [1 + len(GATES)]):
        best = max(group, key=lambda one: hits[one].mean(), default=kept)
        gain = hits[best] - hits[kept]
        kept = int(best) if gain.mean() > gain.std() / np.sqrt(len(gain)) else kept
    return kept


def _log(counts: np.ndarray) -> np.ndarray:
    return np.log1p(np.asarray(counts, dtype=np.float32))


def _between(plain: ServingHead, full: ServingHead, gate: float) -> ServingHead:
    mixed = min(gate, 1.0)
    weights = (1 - mixed) * plain.weights + mixed * full.weights
    return ServingHead(scale=gate * full.scale, offset=full.offset, weights=weights, log_counts=full.log_counts)


def _own_scores(
    scores: torch.Tensor, weights: torch.Tensor, log_counts: torch.Tensor, without: torch.Tensor, rows: torch.Tensor, items: torch.Tensor
) -> torch.Tensor:
    """Scores in which each user's own items count without that very user."""
    own = scores[rows, items] + weights @ (without[:, items] - log_counts[:, items])
    return scores.index_put((rows, items), own)


def _tensors(data: FittingData) -> tuple[torch.Tensor, torch.Tensor]:
    """log(n + 1) and log(n - 1 + 1), each (F, n_items)."""
    return torch.from_numpy(_log(data.counts)), torch.from_numpy(_log(np.maximum(data.counts - 1, 0)))


def _climb(
    data: FittingData, coordinates: torch.Tensor, people: np.ndarray, generator: np.random.Generator, *, with_interest: bool
) -> ServingHead:
    """Maximum likelihood by Adam over mini-batches of people; the softmax is over the whole catalogue."""
    log_counts, without = _tensors(data)
    interests = torch.from_numpy(np.ascontiguousarray(data.interests))
    log_scale = torch.zeros((), requires_grad=with_interest)
    offset = torch.zeros(coordinates.shape[1], requires_grad=with_interest)
    weights = torch.full((len(log_counts),), 1.0 / len(log_counts), requires_grad=True)
    optimizer = torch.optim.Adam([p for p in (log_scale, offset, weights) if p.requires_grad], lr=_LEARNING_RATE)
    for step in range(_STEPS):
        for group in optimizer.param_groups:
            group["lr"] = _LEARNING_RATE * (1 - step / _STEPS)
        users = generator.choice(people, size=min(_USERS_PER_STEP, len(people)), replace=False)
        rows, items, share = data.of(users)
        scores = (weights @ log_counts).expand(len(users), -1)
        if with_interest:
            scores = scores + log_scale.exp() * (interests[users] + offset) @ coordinates.T
        scores = _own_scores(scores, weights, log_counts, without, rows, items)
        loss = -(torch.log_softmax(scores, dim=1)[rows, items] * share).sum() / len(users)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return ServingHead(
        scale=float(log_scale.detach().exp()) if with_interest else 0.0,
        offset=offset.detach().numpy().copy(),
        weights=weights.detach().numpy().copy(),
        log_counts=log_counts.numpy(),
    )


@torch.no_grad()
def _hits(head: ServingHead, data: FittingData, coordinates: np.ndarray, people: np.ndarray) -> np.ndarray:
    """(people,) whether an item of theirs is among the first k, averaged over `CUTS`; their own items count without them."""
    log_counts, without = _tensors(data)
    weights = torch.from_numpy(np.asarray(head.weights, dtype=np.float32))
    cuts = torch.tensor(CUTS)
    parts = []
    for start in range(0, len(people), _USERS_AT_A_TIME):
        users = people[start : start + _USERS_AT_A_TIME]
        rows, items, _ = data.of(users)
        scores = _own_scores(torch.from_numpy(head.scores(data.interests[users], coordinates)), weights, log_counts, without, rows, items)
        best = torch.full((len(users),), -torch.inf).scatter_reduce(0, rows, scores[rows, items], "amax")
        rank = (scores > best[:, None]).sum(dim=1) + ((scores == best[:, None]).sum(dim=1) - 1).clamp(min=0) / 2
        found = (rank[:, None] < cuts) & torch.isfinite(best)[:, None]  # (people, cuts)
        parts.append(found.float().mean(dim=1).numpy())
    return np.concatenate(parts)


def counts_by_group(items: Sequence[np.ndarray], n_items: int) -> np.ndarray:
    """(F, n_items) int64 counts of the flat items of each group."""
    return np.stack([np.bincount(group, minlength=n_items) for group in items])
