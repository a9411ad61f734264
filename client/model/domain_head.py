r"""The serving head: interest vector for this domain -> scores of its items. Fitted on exact local data; never leaves, never trains.

.. math:: s_j = \langle \beta\,(z + b) + \alpha\,y,\, x_j\rangle + \sum_f \gamma_f \log(n_{fj} + 1) + \kappa\,\phi(y) F_j

with z the interest, y the passport as it was before it was transferred, :math:`n_{fj}` how often item j was taken by the people of group f
(everybody, and those linked to the source domain, who buy other things), and :math:`\phi(y) F_j` what people took here whose passports were
like this person's (`client.model.neighbours`). All but the last term is the maximum-likelihood softmax over the whole catalogue
(`client.model.head_likelihood`), with :math:`\alpha / \beta` from a short list. Each user's own items are taken out of the counts that
predict them (leave one out), or the head would learn to believe in counts of one.

Why y beside z: a layer that learned under noise has forgotten some of what the text said. Likelihood would put too little weight on y, for
z was trained with these very people: how much it shall have is asked of people who were held back from the fit.

The gate: the head starts as popularity alone and keeps interest and neighbours only as far as they surely help people it was not fitted on
(cross-fitting: each part of the people is held back in turn). Where they do not, popularity is what remains: a bad transfer shall not harm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
import torch

from . import neighbours
from .head_likelihood import USERS_AT_A_TIME, FittingData, Slope, Taken, logarithm, logarithms
from .neighbours import Neighbours

GATES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
"""How far the interest is let in: 1 = as likelihood has it, above 1 = further, because lists reward boldness."""

KAPPAS = (30.0, 100.0, 300.0, 1000.0)
"""How loud the neighbours speak: their scores are shares of alike people who took an item, a few hundredths."""

RIDGES = (5.0, 20.0)
_LOUD = tuple((ridge, loudness) for ridge in RIDGES for loudness in KAPPAS)
CUTS = (5, 10, 20, 50)
LEANINGS = ((5.0, 0.0), (100.0, 0.0), (5.0, 0.7), (100.0, 0.7))
"""(ridge, share) of a fit. The ridge says how far a domain may lean away from the interests it is given: a shop of few staples leans far, a
wide catalogue hardly. The share says how loud the untransferred passport is, where the transferred interest is 1: both by their spread."""

_FITTED_BY, _ITERATIONS, _GOOD_ENOUGH, _LEAST_SCALE, _LEAST_SPREAD = 1500, 20, 1e-5, 0.01, 1e-6
_LEAST_PARTS, _MOST_PARTS, _CHOOSERS, _MOST_ASKED, _SURE = 2, 5, 5, 5000, 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingHead:
    """A fitted head.

    Attributes:
        scale: beta, 0 where the interest does not help.
        untrained: alpha, 0 where the passport as it came adds nothing to the interest.
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
    untrained: float = 0.0

    @property
    def prior(self) -> np.ndarray:
        """(n_items,) float32: what every user is offered."""
        return np.asarray(self.weights @ self.log_counts, dtype=np.float32)

    @property
    def muted(self) -> ServingHead:
        """The same head without its neighbours: what interest and popularity say alone."""
        return dataclasses.replace(self, loudness=0.0, neighbours=None)

    def scores(self, interests: np.ndarray, coordinates: np.ndarray, passports: np.ndarray | None = None) -> np.ndarray:
        """Scores of the whole catalogue.

        Args:
            interests: (n, d) interests for this domain.
            coordinates: (n_items, d).
            passports: (n, d) before they were transferred: heard beside the interests, and people are compared by them. None: the
                interests are what was brought.
        Returns:
            (n, n_items) float32.
        """
        found = self._leaning(interests, passports).astype(np.float32) @ coordinates.T + self.prior
        if self.neighbours is not None:
            found += (np.float32(self.loudness) * self.neighbours.features(_or(passports, interests))) @ self.neighbours.factors
        return np.asarray(found)

    def queries(self, interests: np.ndarray, passports: np.ndarray | None = None) -> np.ndarray:
        """(n, D) float32 whose inner products with `item_vectors` are the scores: for searches over many items. Args as of `scores`."""
        parts = [self._leaning(interests, passports), np.ones((len(interests), 1))]
        if self.neighbours is not None:
            parts.append(self.loudness * self.neighbours.features(_or(passports, interests)))
        return np.concatenate(parts, axis=1).astype(np.float32)

    def _leaning(self, interests: np.ndarray, passports: np.ndarray | None) -> np.ndarray:
        """(n, d) whose inner products with coordinates are the personal part of the scores, without neighbours."""
        return np.asarray(self.scale * (interests + self.offset) + self.untrained * _or(passports, interests))

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
            "untrained": np.array([self.untrained], dtype=np.float32),
        }
        if self.neighbours is not None:
            arrays["loudness"] = np.array([self.loudness], dtype=np.float32)
            arrays |= {"landmarks": self.neighbours.landmarks, "factors": self.neighbours.factors}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> ServingHead:
        found = cls(
            scale=float(arrays["scale"][0]),
            offset=arrays["offset"],
            weights=arrays["weights"],
            log_counts=arrays["log_counts"],
            untrained=float(arrays["untrained"][0]) if "untrained" in arrays else 0.0,  # heads of earlier versions heard no passports
        )
        if "factors" not in arrays:
            return found
        beside = Neighbours(landmarks=arrays["landmarks"], factors=arrays["factors"])
        return dataclasses.replace(found, loudness=float(arrays["loudness"][0]), neighbours=beside)


def popularity_head(counts: np.ndarray, dimension: int) -> ServingHead:
    """The head of a domain that knows nothing but counts, (F, n_items): the first group alone."""
    weights = np.zeros(len(counts), dtype=np.float32)
    weights[0] = 1.0
    return ServingHead(scale=0.0, offset=np.zeros(dimension, dtype=np.float32), weights=weights, log_counts=logarithm(counts))


def fit(data: FittingData, coordinates: np.ndarray, *, generator: np.random.Generator) -> ServingHead:
    """Fits the head on everybody. Its gate goes by what people would have found with heads that were fitted without them.

    Args:
        data: the people; with fewer than ten the head is popularity alone.
        coordinates: (n_items, d).
        generator: draws whom to fit by and who is held back together.
    """
    if data.users < 10:
        return popularity_head(data.counts, coordinates.shape[1])
    items = torch.from_numpy(np.array(coordinates))  # a copy: the file is mapped read-only
    everybody = np.arange(data.users)
    tried: list[_Tried] = []
    parts = np.array_split(generator.permutation(data.users), _number_of_parts(data.users))
    for part in parts:
        fits = _fits(data, items, np.delete(everybody, part), generator, near=tried[0].fits if tried else None)
        tried.append(_Tried.of(fits, data, items.numpy(), part, most_asked=_MOST_ASKED // len(parts)))
    chosen = _trusted([one.hits for one in tried])
    head = tried[0].heads[0]
    if chosen:
        head = _gated(_fits(data, items, everybody, generator, near=tried[0].fits), data)[chosen]
    if data.passports is None or data.users - len(tried[0].held_back) < neighbours.LEAST:
        return head
    best = _trusted([one.hits_of_neighbours(data, np.asarray(coordinates), chosen, generator) for one in tried])
    if best == 0:
        return head
    ridge, loudness = _LOUD[best - 1]
    return dataclasses.replace(head, loudness=loudness, neighbours=_neighbours(data, everybody, len(coordinates), ridge, generator))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Tried:
    """Heads fitted without some people, and what those people would have found with each of them.

    Attributes:
        fits: as `_fits` gives them.
        heads: popularity, and a head for each leaning and gate.
        held_back: positions of the people.
        hits: (heads, people asked) of the first of them.
    """

    fits: list[ServingHead]
    heads: list[ServingHead]
    held_back: np.ndarray
    hits: np.ndarray

    @classmethod
    def of(cls, fits: list[ServingHead], data: FittingData, coordinates: np.ndarray, held_back: np.ndarray, *, most_asked: int) -> _Tried:
        heads = _gated(fits, data)
        return cls(fits=fits, heads=heads, held_back=held_back, hits=_hits(heads, data, coordinates, held_back[:most_asked]))

    def hits_of_neighbours(self, data: FittingData, coordinates: np.ndarray, chosen: int, generator: np.random.Generator) -> np.ndarray:
        """(1 + settings, people asked): the chosen head alone, and with neighbours as loud as `_LOUD` says."""
        head, others = self.heads[chosen], np.delete(np.arange(data.users), self.held_back)
        beside = {ridge: _neighbours(data, others, len(coordinates), ridge, generator) for ridge in RIDGES}
        louder = [dataclasses.replace(head, loudness=loudness, neighbours=beside[ridge]) for ridge, loudness in _LOUD]
        return np.concatenate([self.hits[chosen][None], _hits(louder, data, coordinates, self.held_back[: self.hits.shape[1]])])


def _number_of_parts(users: int) -> int:
    """As few as leave enough people to fit by, for each part costs a fit."""
    enough = max(users - _FITTED_BY, 1)
    return min(max(-(-users // enough), _LEAST_PARTS), _MOST_PARTS)


def _fits(
    data: FittingData, items: torch.Tensor, people: np.ndarray, generator: np.random.Generator, *, near: list[ServingHead] | None
) -> list[ServingHead]:
    """The most likely head without interest, and one for each leaning.

    Args:
        near: the same on other people, from where the climbs begin. The problem is convex: that only makes them shorter.
    """
    found = [_most_likely(data, items, people, generator, leaning=None, near=near[0] if near else None)]
    for at, leaning in enumerate(leanings(data), start=1):
        begin = near[at] if near else found[at - 1] if at > 1 else None
        found.append(_most_likely(data, items, people, generator, leaning=leaning, near=begin))
    return found


def _gated(fits: list[ServingHead], data: FittingData) -> list[ServingHead]:
    """Popularity of everybody, that of the groups as is most likely, and a head for each leaning and gate."""
    let_in = (_between(fits[0], one, gate) for one in fits[1:] for gate in GATES)
    return [popularity_head(data.counts, len(fits[0].offset)), fits[0], *let_in]


def leanings(data: FittingData) -> list[tuple[float, float]]:
    """Those of `LEANINGS` that differ for these people: whose passports were not transferred, theirs are heard already."""
    transferred = data.passports is not None and not np.array_equal(data.passports, data.interests)
    return [(ridge, share) for ridge, share in LEANINGS if transferred or share == 0.0]


def _neighbours(data: FittingData, people: np.ndarray, n_items: int, ridge: float, generator: np.random.Generator) -> Neighbours:
    rows, items, _ = data.of(people)
    taken = scipy.sparse.csr_array((np.ones(len(rows), dtype=np.float32), (rows.numpy(), items.numpy())), shape=(len(people), n_items))
    taken.data[:] = 1.0  # pairs that occur twice were added up
    return neighbours.fit(_or(data.passports, data.interests)[people], taken, ridge=ridge, generator=generator)


def _or(passports: np.ndarray | None, interests: np.ndarray) -> np.ndarray:
    return interests if passports is None else passports


def _trusted(hits: Sequence[np.ndarray]) -> int:
    """The candidate that people find most with; 0, the one that is kept so far, where it is not sure that they find more.

    Whoever has chosen among many flatters what was chosen. So some people's choice is measured on the others, each in turn, and these gains
    must be above nothing by `_SURE` standard errors.

    Args:
        hits: for each part of the people (candidates, people).
    """
    groups = [group for part in hits for group in np.array_split(part, -(-_CHOOSERS // len(hits)), axis=1)]
    sums = np.stack([group.sum(axis=1, dtype=np.float64) for group in groups])  # (groups, candidates)
    elsewhere = sums.sum(axis=0) - sums
    gains = np.concatenate([group[best] - group[0] for group, best in zip(groups, elsewhere.argmax(axis=1), strict=True)])
    sure = gains.mean() > _SURE * gains.std() / np.sqrt(len(gains))
    return int(sums.sum(axis=0).argmax()) if sure else 0


def _between(plain: ServingHead, full: ServingHead, gate: float) -> ServingHead:
    mixed = min(gate, 1.0)
    weights = (1 - mixed) * plain.weights + mixed * full.weights
    return ServingHead(
        scale=gate * full.scale, untrained=gate * full.untrained, offset=full.offset, weights=weights, log_counts=full.log_counts
    )


def _most_likely(
    data: FittingData,
    coordinates: torch.Tensor,
    people: np.ndarray,
    generator: np.random.Generator,
    *,
    leaning: tuple[float, float] | None,
    near: ServingHead | None = None,
) -> ServingHead:
    """Maximum likelihood by L-BFGS; the softmax is over the whole catalogue.

    Interests are centred first, so that the scale speaks of what tells people apart and the offset of what they share: in scale, scaled
    offset and weights the problem is convex.

    Args:
        data: the people.
        coordinates: (n_items, d).
        people: positions of those among whom the ones to fit by are drawn.
        generator: draws them.
        leaning: one of `LEANINGS`; None leaves the interest out of the head.
        near: a head from which the climb begins, one with interest if this is to be one.
    """
    users = generator.choice(people, size=min(_FITTED_BY, len(people)), replace=False)
    ridge, share = leaning or (None, 0.0)
    interests, beside = data.interests[users], 0.0
    if share and data.passports is not None:
        beside = share * _spread(interests) / max(_spread(data.passports[users]), _LEAST_SPREAD)
        interests = interests + np.float32(beside) * data.passports[users]
    slope = Slope(data, coordinates, users, interests, ridge)
    groups, scales, centre = len(slope.log_counts), int(leaning is not None), slope.centre.numpy()
    offsets = coordinates.shape[1] * scales
    begin = np.concatenate([np.full(groups, 1.0 / groups), np.ones(scales), np.zeros(offsets)])
    if near is not None:
        begin = np.concatenate([near.weights, [near.scale] * scales, (near.scale * near.offset + _leant(near, data, users))[:offsets]])
    bounds = [(None, None)] * groups + [(_LEAST_SCALE, None)] * scales + [(None, None)] * offsets
    climbed = scipy.optimize.minimize(
        slope, begin, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": _ITERATIONS, "ftol": _GOOD_ENOUGH}
    )
    found = climbed.x.astype(np.float32)
    scale = float(found[groups]) if scales else 0.0
    offset = found[groups + 1 :] / scale - centre if scales else np.zeros(coordinates.shape[1], dtype=np.float32)
    return ServingHead(
        scale=scale, untrained=scale * beside, offset=offset, weights=found[:groups].copy(), log_counts=slope.log_counts.numpy()
    )


def _leant(head: ServingHead, data: FittingData, users: np.ndarray) -> np.ndarray:
    """(d,) how far a head leans for these users in the mean, without its offset."""
    passports = _or(data.passports, data.interests)
    return np.asarray(head.scale * data.interests[users].mean(axis=0) + head.untrained * passports[users].mean(axis=0))


def _spread(vectors: np.ndarray) -> float:
    """Root of the mean squared distance of (n, d) vectors from their mean."""
    return float(np.sqrt(((vectors - vectors.mean(axis=0)) ** 2).sum(axis=1).mean()))


@torch.no_grad()
def _hits(heads: Sequence[ServingHead], data: FittingData, coordinates: np.ndarray, people: np.ndarray) -> np.ndarray:
    """(heads, people) whether an item of theirs is among the first k, averaged over `CUTS`; their own items count without them."""
    log_counts, without = logarithms(data)
    cuts = np.array(CUTS)
    found = np.zeros((len(heads), len(people)), dtype=np.float32)
    for start in range(0, len(people), USERS_AT_A_TIME):
        users = people[start : start + USERS_AT_A_TIME]
        taken = Taken.of(data, users, log_counts, without)
        parts = _Parts(data.interests[users], _or(data.passports, data.interests)[users], coordinates)
        for at, head in enumerate(heads):
            scores = parts.scores(head)
            taken.count_without_themselves(scores, torch.from_numpy(np.asarray(head.weights, dtype=np.float32)))
            best = torch.full((len(users),), -torch.inf).scatter_reduce(0, taken.rows, scores[taken.rows, taken.items], "amax").numpy()
            ranked = scores.numpy()  # whose booleans are counted ten times faster than a tensor's
            above = np.count_nonzero(ranked > best[:, None], axis=1)
            level = np.count_nonzero(ranked == best[:, None], axis=1)
            rank = above + np.maximum(level - 1, 0) / 2
            hit = (rank[:, None] < cuts) & np.isfinite(best)[:, None]  # (people, cuts)
            found[at, start : start + len(users)] = hit.mean(axis=1)
    return found


class _Parts:
    """What heads have in common for some people, multiplied once: heads differ by how much they listen to each part."""

    def __init__(self, interests: np.ndarray, passports: np.ndarray, coordinates: np.ndarray) -> None:
        self._interests, self._passports, self._coordinates = interests, passports, coordinates
        self._made: dict[int, torch.Tensor] = {}  # by the identity of an array that a living head holds

    def scores(self, head: ServingHead) -> torch.Tensor:
        """What ``head.scores`` gives, up to the last bits: (n, n_items) float32."""
        prior = torch.from_numpy(head.prior)
        found = prior.repeat(len(self._interests), 1)
        if head.scale:
            found.add_(self._of_interests(head), alpha=head.scale)
        if head.neighbours is not None:
            found.add_(self._of_neighbours(head.neighbours), alpha=head.loudness)
        return found

    def _of_interests(self, head: ServingHead) -> torch.Tensor:
        """Heads with one offset lean one way: they differ by their scale alone."""
        if id(head.offset) not in self._made:
            leaning = self._interests + head.offset + (head.untrained / head.scale) * self._passports
            self._made[id(head.offset)] = torch.from_numpy(leaning.astype(np.float32) @ self._coordinates.T)
        return self._made[id(head.offset)]

    def _of_neighbours(self, beside: Neighbours) -> torch.Tensor:
        if id(beside) not in self._made:
            self._made[id(beside)] = torch.from_numpy(np.asarray(beside.features(self._passports) @ beside.factors, dtype=np.float32))
        return self._made[id(beside)]
