r"""The interest distribution: how much a user cares for each prototype of the interest space, and how sure we are.

Every observed item is read against the K prototypes, and the readings are counted (model.md, section 1)::

    p_j   = softmax(beta_p C x_j)                       what an item is about, (K,)
    alpha = alpha_0 + sum_t s_t p_{j_t},  s_t = +-1     Dirichlet posterior of the user's interests theta
    mean  = alpha / sum(alpha)                          the interest distribution
    u     = sum(alpha_0) / (sum(alpha_0) + sum_t |s_t|) uncertainty: 1 for a stranger, towards 0 with every observation

The Dirichlet is conjugate to counts (Bayes: P(theta | X) proportional to P(X | theta) P(theta); Gelman et al., Bayesian Data Analysis,
3.4), and a reading is a count that is shared out among prototypes. The uncertainty is that of subjective logic (Josang 2016, ch. 3): for a
user who dismissed nothing it is sum(alpha_0) / sum(alpha).

Feedback has a sign: what was dismissed is taken out of the counts. No number of dismissals makes a parameter of the Dirichlet vanish: it
stays at `FLOOR` of its prior at least. The net evidence is kept as it is, so the order of observations does not matter (without decay).

An observation costs O(K), whatever happened before: nothing is trained.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import log
from typing import Self

import numpy as np

SHARPNESS = 10.0
"""beta_p: cosines of 0.5 and 0 to two prototypes are a reading of 148 to 1."""

PRIOR_ITEMS = 1.0
"""Sum of alpha_0: the prior weighs as much as so many items, however many prototypes there are."""

FLOOR = 0.05
"""What dismissals leave of a prototype at least, relative to its prior."""

_WORD = re.compile(r"[^\W\d_][\w'-]*")
_SHORTEST_WORD, _NAME_WORDS, _NEAREST = 3, 3, 12
_ROWS_AT_A_TIME = 16_384


def read_against(prototypes: np.ndarray, vectors: np.ndarray, *, sharpness: float = SHARPNESS) -> np.ndarray:
    """What vectors of the interest space are about: p = softmax(sharpness C x).

    Args:
        prototypes: (K, d) unit rows, K >= 1.
        vectors: (n, d) coordinates of items, or interests.
        sharpness: beta_p, above 0.
    Returns:
        (n, K) float32, rows that sum to 1; a row of zeros for a vector of zeros (an item without text is evidence of nothing).
    Raises:
        ValueError: there is no prototype, lengths differ, or a number is not finite.

    >>> read_against(np.eye(2), np.array([[1.0, 0.0], [0.0, 0.0]]), sharpness=np.log(3)).tolist()
    [[0.75, 0.25], [0.0, 0.0]]
    """
    if prototypes.ndim != 2 or len(prototypes) < 1 or vectors.ndim != 2 or vectors.shape[1] != prototypes.shape[1]:
        raise ValueError("vectors (n, d) are read against prototypes (K, d), of which there is at least one")
    if not (np.isfinite(vectors).all() and np.isfinite(prototypes).all() and np.isfinite(sharpness) and sharpness > 0):
        raise ValueError("vectors, prototypes and a sharpness above 0 are finite")
    read = np.zeros((len(vectors), len(prototypes)), dtype=np.float32)
    for start in range(0, len(vectors), _ROWS_AT_A_TIME):
        rows = np.asarray(vectors[start : start + _ROWS_AT_A_TIME], dtype=np.float64)
        logits = sharpness * (rows @ np.asarray(prototypes, dtype=np.float64).T)  # (rows, K)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        read[start : start + len(rows)] = np.where(rows.any(axis=1, keepdims=True), shares, 0.0)
    return read


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InterestDistributions:
    """Posteriors of n users over K prototypes.

    Attributes:
        prior: (K,) alpha_0, above 0.
        evidence: (n, K) net readings of what was observed; below 0 where more was dismissed than liked.
        observed: (n,) weight of all that was observed, signs aside.
    """

    prior: np.ndarray
    evidence: np.ndarray
    observed: np.ndarray

    def __post_init__(self) -> None:
        if self.prior.ndim != 1 or len(self.prior) < 1 or not (np.isfinite(self.prior).all() and (self.prior > 0).all()):
            raise ValueError("alpha_0 holds a finite number above 0 for each of at least one prototype")
        if self.evidence.shape != (len(self.observed), len(self.prior)):
            raise ValueError("there is evidence (n, K) and a weight (n,) for n users and K prototypes")

    def __len__(self) -> int:
        return len(self.observed)

    @classmethod
    def strangers(cls, users: int, prototypes: int, *, prior: np.ndarray | None = None) -> Self:
        """Users of whom nothing is known.

        Args:
            users: n.
            prototypes: K.
            prior: (K,) alpha_0; the same for every prototype, `PRIOR_ITEMS` in all, when left out. Public: never a count of other users.
        """
        alpha_0 = np.full(prototypes, PRIOR_ITEMS / max(prototypes, 1)) if prior is None else np.asarray(prior, dtype=np.float64)
        return cls(prior=alpha_0, evidence=np.zeros((users, prototypes)), observed=np.zeros(users))

    @classmethod
    def of_histories(
        cls, items: np.ndarray, mask: np.ndarray, readings: np.ndarray, *, prior: np.ndarray | None = None, decay: float = 1.0
    ) -> Self:
        """Users by their histories.

        Args:
            items: (n, L) positions in the catalogue, latest last.
            mask: (n, L) true where there is an item.
            readings: (n_items, K) of the catalogue, from `read_against`.
            decay: weight of an observation relative to the next later one, in (0, 1].
        """
        found = cls.strangers(len(items), readings.shape[1], prior=prior)
        for column in range(items.shape[1]):
            there = mask[:, column].astype(np.float64)
            found = found.after(readings[items[:, column]] * there[:, None], there, decay=decay)
        return found

    def after(self, readings: np.ndarray, weights: np.ndarray, *, decay: float = 1.0) -> Self:
        """The posteriors after one more observation of each user; O(n K).

        Args:
            readings: (n, K) what the items are about, from `read_against`.
            weights: (n,) 1 = liked or taken, -1 = dismissed, 0 = nothing was observed; any finite number in between and beyond.
            decay: what remains of earlier evidence of those who are observed, in (0, 1].
        Raises:
            ValueError: a shape differs, or a number is not finite.
        """
        weights = np.asarray(weights, dtype=np.float64)
        if readings.shape != self.evidence.shape or weights.shape != self.observed.shape or not 0.0 < decay <= 1.0:
            raise ValueError("an observation is a reading (n, K) and a weight (n,); what remains of earlier ones is in (0, 1]")
        if not (np.isfinite(readings).all() and np.isfinite(weights).all()):
            raise ValueError("readings and weights are finite")
        kept = np.where(weights != 0, decay, 1.0)
        informative = readings.any(axis=1)  # an item without text says nothing, so it makes nobody surer
        return type(self)(
            prior=self.prior,
            evidence=self.evidence * kept[:, None] + weights[:, None] * readings,
            observed=self.observed * kept + np.abs(weights) * informative,
        )

    def select(self, users: np.ndarray) -> Self:
        """Some of the users, by position or mask."""
        return type(self)(prior=self.prior, evidence=self.evidence[users], observed=self.observed[users])

    @property
    def alpha(self) -> np.ndarray:
        """(n, K) parameters of the Dirichlet, above 0 whatever was dismissed."""
        return np.asarray(np.maximum(self.prior + self.evidence, FLOOR * self.prior))

    @property
    def mean(self) -> np.ndarray:
        """(n, K) the interest distribution; rows sum to 1."""
        alpha = self.alpha
        return np.asarray(alpha / alpha.sum(axis=1, keepdims=True))

    @property
    def uncertainty(self) -> np.ndarray:
        """(n,) in (0, 1]: 1 = a stranger."""
        prior = self.prior.sum()
        return np.asarray(prior / (prior + self.observed))

    @property
    def entropy(self) -> np.ndarray:
        """(n,) of the mean, as a share of its largest value log K: 0 = one interest, 1 = no preference; 0 where K is 1."""
        if len(self.prior) == 1:
            return np.zeros(len(self))
        mean = self.mean
        return np.asarray(-(mean * np.log(mean)).sum(axis=1) / log(len(self.prior)))

    def interests(self, prototypes: np.ndarray) -> np.ndarray:
        r"""Where the users stand in the interest space: what they lean to beyond the prior, :math:`C^T (mean - mean_0)`, of length 1.

        The way from counts back to a vector that scores items; a stranger's is zeros.

        Args:
            prototypes: (K, d).
        Returns:
            (n, d) float32.
        """
        lean = (self.mean - self.prior / self.prior.sum()) @ np.asarray(prototypes, dtype=np.float64)  # (n, d)
        norms = np.linalg.norm(lean, axis=1, keepdims=True)
        return np.asarray(np.divide(lean, norms, out=np.zeros_like(lean), where=norms > 1e-9), dtype=np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrototypeName:
    """What a prototype is called in a domain.

    Attributes:
        words: the words that set its nearest items apart from those of other prototypes, best first; may be empty.
        items: positions of its nearest items, nearest first.
    """

    words: tuple[str, ...]
    items: tuple[int, ...]

    def __str__(self) -> str:
        return ", ".join(self.words)


def nearest_items(prototypes: np.ndarray, coordinates: np.ndarray, count: int = _NEAREST) -> list[tuple[int, ...]]:
    """For each prototype the positions of its nearest items, nearest first; of equals the earlier one. Items without text are near nothing.

    Args:
        prototypes: (K, d).
        coordinates: (n_items, d).
    """
    best = [np.zeros(0, dtype=np.int64) for _ in prototypes]
    nearness = [np.zeros(0, dtype=np.float32) for _ in prototypes]
    for start in range(0, len(coordinates), _ROWS_AT_A_TIME):
        rows = np.asarray(coordinates[start : start + _ROWS_AT_A_TIME], dtype=np.float32)
        known = np.flatnonzero(rows.any(axis=1))
        near = np.asarray(prototypes, dtype=np.float32) @ rows[known].T  # (K, known)
        for k in range(len(prototypes)):
            values = np.concatenate([nearness[k], near[k]])
            least = np.partition(values, -count)[-count] if len(values) > count else -np.inf
            able = np.flatnonzero(values >= least)  # all that are equal too: which of them stays must not hang on a partition
            chosen = able[np.argsort(-values[able], kind="stable")[:count]]
            best[k], nearness[k] = np.concatenate([best[k], known + start])[chosen], values[chosen]
    return [tuple(found.tolist()) for found in best]


def prototype_names(items: Sequence[Sequence[int]], texts: Iterable[Sequence[str]], *, words: int = _NAME_WORDS) -> list[PrototypeName]:
    r"""Names prototypes by the texts of their nearest items, in whatever language these are.

    A word's worth for a prototype is :math:`n_{wk} \log(1 + K / n_w)`, with :math:`n_{wk}` how many of the prototype's items hold it and
    :math:`n_w` how many items of all prototypes do (class-based tf-idf, Grootendorst 2022, eq. 3, on items instead of terms).

    Args:
        items: for each prototype its nearest items, from `nearest_items`.
        texts: for each prototype the texts of those items. Public: they come from the catalogue.
        words: length of a name.
    """
    counts = [Counter(word for text in of for word in _words(text)) for of in texts]
    everywhere: Counter[str] = Counter()
    for one in counts:
        everywhere.update(one)
    named = []
    for positions, one in zip(items, counts, strict=True):
        worth = {word: count * log(1 + len(counts) / everywhere[word]) for word, count in one.items()}
        best = sorted(worth, key=lambda word: (-worth[word], word))[:words]
        named.append(PrototypeName(words=tuple(best), items=tuple(positions)))
    return named


def _words(text: str) -> set[str]:
    return {word for word in _WORD.findall(text.lower()) if len(word) >= _SHORTEST_WORD or not word.isascii()}
