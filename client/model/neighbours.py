r"""The local collaborative part for people who bring a passport: what those with alike interests took here.

Kernel ridge regression from interest to items on exact local data (Hastie, Tibshirani and Friedman 2009, section 12.3.7), on a few
landmarks (Nystroem; Williams and Seeger 2001), so that a person's scores are an inner product of m features with m factors of each item:

.. math:: s = \phi(z) F,\quad \phi_l(z) = \exp(\langle \hat z, \hat z_l \rangle - 1),\quad F = (\Phi^T\Phi + \lambda K)^{-1} \Phi^T Y

with unit vectors :math:`\hat z`, landmarks :math:`\hat z_l`, their kernel K, and Y who took what. Landmarks and factors are other people's
data as they are: they lie in the serving folder, training never reads them, and they never leave.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import scipy.sparse

LEAST = 50
"""Fewer people say nothing about their like."""

_LANDMARKS, _MOST_FACTORS, _MOST_PEOPLE = 256, 64_000_000, 100_000
_ITEMS_AT_A_TIME = 65_536
_JITTER = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Neighbours:
    """A fitted regression.

    Attributes:
        landmarks: (m, d) float32 unit vectors.
        factors: (m, n_items) float32.
    """

    landmarks: np.ndarray
    factors: np.ndarray

    def features(self, interests: np.ndarray) -> np.ndarray:
        """Args: interests (n, d). Returns (n, m) float32 in (0, 1]."""
        return _kernel(_unit(interests), self.landmarks)


def fit(interests: np.ndarray, taken: scipy.sparse.csr_array, *, ridge: float, generator: np.random.Generator) -> Neighbours:
    """Fits the regression.

    Args:
        interests: (n, d) of people whose items are known.
        taken: (n, n_items) ones where a person took an item.
        ridge: lambda; the weight of one person's own items in their own prediction is about 1 / (1 + lambda / like-minded people).
        generator: draws the landmarks, and the people where there are very many.
    """
    n_items = taken.shape[1]
    if len(interests) > _MOST_PEOPLE:
        chosen = np.sort(generator.choice(len(interests), size=_MOST_PEOPLE, replace=False))
        interests, taken = interests[chosen], taken[chosen]
    people = _unit(interests)
    number = max(1, min(len(people), _LANDMARKS, _MOST_FACTORS // max(n_items, 1)))
    landmarks = people[np.sort(generator.choice(len(people), size=number, replace=False))]
    features = _kernel(people, landmarks)  # (n, m)
    gram = features.T.astype(np.float64) @ features + ridge * _kernel(landmarks, landmarks)  # (m, m)
    gram[np.diag_indices_from(gram)] += _JITTER * np.trace(gram) / number  # equal landmarks
    factor = scipy.linalg.cho_factor(gram, check_finite=False)
    by_item = scipy.sparse.csc_array(taken).T  # (n_items, n)
    factors = np.empty((number, n_items), dtype=np.float32)
    for start in range(0, n_items, _ITEMS_AT_A_TIME):
        part = slice(start, start + _ITEMS_AT_A_TIME)
        factors[:, part] = scipy.linalg.cho_solve(factor, (by_item[part] @ features).T.astype(np.float64), check_finite=False)
    return Neighbours(landmarks=landmarks, factors=factors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """Length one; zero stays zero, and is like nobody and everybody alike."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors, dtype=np.float32), where=length > 0)


def _kernel(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.exp(one @ other.T - 1.0).astype(np.float32)
