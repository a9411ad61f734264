"""Fits the serving head for warm users: which of its parts is let in how far, and who decides it.

The weights are those that put the held-back latest item of training users among the first most often. The collaborative part that is judged
has not seen these items; the one that serves is fitted again with them. Where a catalogue turns over fast, such a judge trusts what is
counted too far, because the other people of that time are still there to tell of it. Judging by the latest tenth of all that happened was
tried and measured worse: fewer judge, and they gave up parts that help (amazon3, HR@10 with each person's latest item held out: food .051
instead of .098, kitchen .010 instead of .035; with a cut in time no better).

The gate: the people who judge are halved. On one half every part gets its best decay and the blend its best weights. On the other,
popularity is given up for the best single part, and this for the blend, only where the gain is more than one standard error. So the blend
serves only where it does better than its best part, and nothing serves that does worse than popularity.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import scipy.sparse

from ..data.histories import Histories
from . import collaborative
from .collaborative import Collaborative, ItemFactors, Limits, recency_weights
from .domain_head import CUTS
from .warm_head import POPULARITY, Blend, WarmHead, interests

TEXT_DECAYS = (0.3, 0.5, 0.7, 0.9)
COLLABORATIVE_DECAYS = (0.3, 0.5, 0.7, 0.9, 1.0)
TEXT_SHARES = (0.0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1.0)
"""Of the text among text and collaborative part."""
PRIOR_WEIGHTS = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Of popularity, relative to these two together."""

_FEWEST, _FEW, _MOST_JUDGES, _COMPETITORS, _ROWS = 10, 200, 2000, 8_000, 256


def fit(
    histories: Histories,
    coordinates: np.ndarray,
    counts: np.ndarray,
    *,
    generator: np.random.Generator,
    max_history: int,
    limits: Limits | None = None,
) -> WarmHead:
    """Fits the head; with fewer than ten people who took two items it is popularity alone.

    Args:
        histories: of the training users.
        coordinates: (n_items, d).
        counts: (n_items,) how often each item was taken here.
        generator: draws users where there are too many, and who judges.
        max_history: latest items of a history that are read.
        limits: what it may cost.
    """
    limits = limits or Limits()
    histories, n_items = sampled(histories, limits.users, generator), len(coordinates)
    part: Collaborative = collaborative.nothing(n_items)
    blend, judges = POPULARITY, _judges(histories, generator)
    if len(judges) >= _FEWEST:
        earlier, truth = without_last_of(histories, judges)
        judged = collaborative.fit(earlier, n_items, generator=generator, limits=limits)
        items, mask = earlier.padded(judges, max_history, trim=True)
        prior = _log(np.maximum(counts - np.bincount(truth, minlength=n_items), 0))
        blend = _gated(_Contest(items, mask, truth, judged, coordinates, prior, generator))
    if blend.collaborative:
        part = collaborative.fit(histories, n_items, generator=generator, limits=limits)
    return WarmHead(blend=blend, log_counts=_log(counts), collaborative=part, max_history=max_history)


def sampled(histories: Histories, most: int, generator: np.random.Generator) -> Histories:
    """The histories of at most so many users, drawn by chance; reads no others."""
    if len(histories) <= most:
        return histories
    offsets, at = collaborative.rows_of(histories, np.sort(generator.choice(len(histories), size=most, replace=False)))
    return Histories(offsets=offsets, items=histories.items[at], times=histories.times[at])


def without_last_of(histories: Histories, users: np.ndarray) -> tuple[Histories, np.ndarray]:
    """The same histories without the latest item of some users, (n,) positions; and these items, (n,) int64."""
    lengths, keep = histories.lengths, np.ones(len(histories.items), dtype=bool)
    last = histories.offsets[users + 1] - 1
    lengths[users] -= 1
    keep[last] = False
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Histories(offsets=offsets, items=histories.items[keep], times=histories.times[keep]), histories.items[last].astype(np.int64)


def _judges(histories: Histories, generator: np.random.Generator) -> np.ndarray:
    """People with at least two items: all of a few, at most half of many."""
    enough = np.flatnonzero(histories.lengths >= 2)
    size = min(_MOST_JUDGES, max(_FEW, len(enough) // 2), len(enough))
    return np.sort(generator.choice(enough, size=size, replace=False)) if size else enough


def _log(counts: np.ndarray) -> np.ndarray:
    return np.log1p(np.asarray(counts, dtype=np.float32))


def _gated(contest: _Contest) -> Blend:
    """The blend, a single part, or popularity: what half of the people chose and the other half confirms."""
    choosing, confirming = np.arange(0, contest.people, 2), np.arange(1, contest.people, 2)
    single, blend = _chosen(contest, choosing)
    trusted = POPULARITY
    hits = dict(zip((POPULARITY, single, blend), contest.hits((POPULARITY, single, blend), confirming), strict=True))
    for candidate in (single, blend):
        gain = hits[candidate] - hits[trusted]
        if gain.mean() > gain.std() / np.sqrt(len(gain)):
            trusted = candidate
    return trusted


def _chosen(contest: _Contest, people: np.ndarray) -> tuple[Blend, Blend]:
    """The best single part and the best blend: each part's decay first, then the weights, then both decays once more."""
    texts = [contest.blend(1.0, 0.0, text_decay, 1.0) for text_decay in TEXT_DECAYS]
    others = [contest.blend(0.0, 0.0, 1.0, decay) for decay in COLLABORATIVE_DECAYS]
    found = contest.hits((*texts, *others), people).mean(axis=1)
    text, other = int(np.argmax(found[: len(texts)])), int(np.argmax(found[len(texts) :]))
    decays = TEXT_DECAYS[text], COLLABORATIVE_DECAYS[other]
    single = (*texts, *others)[int(np.argmax(found))]
    weights = list(itertools.product(TEXT_SHARES, PRIOR_WEIGHTS))
    share, prior = weights[_best(contest, (contest.blend(*pair, *decays) for pair in weights), people)]
    again = list(itertools.product(TEXT_DECAYS, COLLABORATIVE_DECAYS))
    best = again[_best(contest, (contest.blend(share, prior, *pair) for pair in again), people)]
    return single, contest.blend(share, prior, *best)


def _best(contest: _Contest, blends: Iterable[Blend], people: np.ndarray) -> int:
    return int(np.argmax(contest.hits(tuple(blends), people).mean(axis=1)))


class _Contest:
    """People whose next item is known, and the items it competes with: the catalogue, or with a large one a part of it drawn by chance.

    Args:
        items, mask: (people, L) earlier histories.
        truth: (people,) next items.
        part: fitted without these next items.
        coordinates: (n_items, d).
        prior: (n_items,) log counts without these next items.
        generator: draws the items that compete.
    """

    def __init__(
        self,
        items: np.ndarray,
        mask: np.ndarray,
        truth: np.ndarray,
        part: Collaborative,
        coordinates: np.ndarray,
        prior: np.ndarray,
        generator: np.random.Generator,
    ) -> None:
        n_items = len(coordinates)
        columns = np.arange(n_items)
        if n_items > _COMPETITORS:
            columns = np.union1d(generator.choice(n_items, size=_COMPETITORS, replace=False), truth)
        self._place = np.full(n_items, -1, dtype=np.int64)
        self._place[columns] = np.arange(len(columns))
        self._items, self._mask, self._truth = items, mask, self._place[truth]
        self._coordinates, self._text = coordinates, np.ascontiguousarray(coordinates[columns].T)  # (d, m)
        self._prior, self._one_in = prior[columns], n_items / len(columns)
        self._part = part
        weights = part.vectors[columns].T if isinstance(part, ItemFactors) else part.weights[:, columns]
        self._weights: np.ndarray | scipy.sparse.csr_array = weights
        self._spreads = self._measured()

    @property
    def people(self) -> int:
        return len(self._truth)

    def blend(self, share: float, prior: float, text_decay: float, collaborative_decay: float) -> Blend:
        """Weights relative to how far each part's scores lie apart; a part whose scores are all the same is left out."""
        of_text, of_prior, of_other = (
            self._spreads[part] for part in (("text", text_decay), ("prior", 1.0), ("collaborative", collaborative_decay))
        )
        return Blend(
            text=share / of_text if of_text else 0.0,
            text_decay=text_decay,
            prior=prior / of_prior if of_prior else 0.0,
            collaborative=(1 - share) / of_other if of_other else 0.0,
            collaborative_decay=collaborative_decay,
        )

    def hits(self, blends: Sequence[Blend], people: np.ndarray) -> np.ndarray:
        """(blends, people) whether the next item is among the first k, averaged over `CUTS`; ties at their average rank."""
        found = np.empty((len(blends), len(people)), dtype=np.float32)
        for start in range(0, len(people), _ROWS):
            rows = people[start : start + _ROWS]
            parts = self._parts(rows, {blend.text_decay for blend in blends}, {blend.collaborative_decay for blend in blends})
            had = self._had(rows)
            for number, blend in enumerate(blends):
                scores = np.float32(blend.prior) * self._prior + np.float32(blend.text) * parts["text", blend.text_decay]
                scores += np.float32(blend.collaborative) * parts["collaborative", blend.collaborative_decay]
                own = scores[np.arange(len(rows)), self._truth[rows]][:, None]
                scores[had] = -np.inf
                rank = (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
                hit = (rank * self._one_in)[:, None] < np.array(CUTS)  # (rows, cuts)
                found[number, start : start + _ROWS] = hit.mean(axis=1)
        return found

    def _parts(self, rows: np.ndarray, text: Iterable[float], other: Iterable[float]) -> dict[tuple[str, float], np.ndarray]:
        """Scores (rows, m) of the text and of the collaborative part, for the decays that are wanted."""
        found: dict[tuple[str, float], np.ndarray] = {}
        for decay in text:
            found["text", decay] = interests(self._history(rows, decay), self._coordinates) @ self._text
        for decay in other:
            history = self._history(rows, decay)
            if isinstance(self._part, ItemFactors):
                found["collaborative", decay] = self._part.queries(history) @ self._weights
            else:
                found["collaborative", decay] = np.asarray((history @ self._weights).toarray(), dtype=np.float32)
        return found

    def _history(self, rows: np.ndarray, decay: float) -> scipy.sparse.csr_array:
        return recency_weights(self._items[rows], self._mask[rows], decay, len(self._place))

    def _had(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows and places of items that these people had; the next item is none of them, even if they had it before."""
        user, column = np.nonzero(self._mask[rows])
        place = self._place[self._items[rows][user, column]]
        there = (place >= 0) & (place != self._truth[rows][user])
        return user[there], place[there]

    def _measured(self) -> dict[tuple[str, float], float]:
        parts = self._parts(np.arange(min(self.people, _ROWS)), (*TEXT_DECAYS, 1.0), COLLABORATIVE_DECAYS)
        spreads = {name: float(scores.std(axis=1).mean()) for name, scores in parts.items()}
        return spreads | {("prior", 1.0): float(self._prior.std())}
