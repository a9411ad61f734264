r"""PrivUnit: one unit vector, released with pure local differential privacy (Bhowmick, Duchi, Freudiger, Kapoor, Rogers 2018, sec. 4).

The released V lies in the cap :math:`\{v: \langle v, u\rangle \ge \gamma\}` around the true direction u with probability p, and outside
of it otherwise; within either part it is uniform. With a the share of the sphere that the cap covers, the density of V is p/a in it and
(1 - p)/(1 - a) outside, whatever u is, so that between any two directions

.. math:: \frac{\text{density}(V | u)}{\text{density}(V | u')} \le \frac{p / a}{(1 - p) / (1 - a)} = e^\varepsilon,

which fixes p once a is chosen. a is chosen so that E<V, u> is largest (Asi, Feldman, Talwar 2022, who show that this is the best that any
mechanism of local privacy for a mean can do). With A the integral of <v, u> over the cap,

.. math:: A = \frac{\Gamma(k/2)\,(1-\gamma^2)^{(k-1)/2}}{\sqrt\pi\,\Gamma((k-1)/2)\,(k-1)}, \qquad
          E[V] = m u, \quad m = A \Big(\frac{p}{a} - \frac{1-p}{1-a}\Big),

and V / m is an unbiased estimate of u. Only the direction is in it: all that is released has the one length 1/m.

The proof is for real arithmetic. What is released is rounded to float32, 29 bits short of what it was computed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from .training.noise import NoiseSource

LEAST_DIMENSION = 2
_GRID = 4001


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivUnit:
    """The law for one dimension and one epsilon. Made by `PrivUnit.of`.

    Attributes:
        dimension: k, of the sphere's space.
        epsilon: of one release.
        threshold: gamma, where the cap begins.
        cap: a, the share of the sphere that it covers.
        outside: 1 - p, the probability of a release outside of the cap.
        mean: m = E<V, u>, which is also the expected cosine.
    """

    dimension: int
    epsilon: float
    threshold: float
    cap: float
    outside: float
    mean: float

    @classmethod
    def of(cls, dimension: int, epsilon: float) -> PrivUnit:
        """The law with the largest m.

        Raises:
            ValueError: there is none: below two dimensions, or an epsilon that is not positive and finite.

        >>> law = PrivUnit.of(16, 8.0)
        >>> round(law.mean, 2)
        0.62
        """
        if dimension < LEAST_DIMENSION or not (0 < epsilon < math.inf):
            raise ValueError("PrivUnit needs two dimensions at least and a positive epsilon")
        low, high = -1.0, 1.0
        for _ in range(4):  # each look is 2,000 times finer than the one before
            thresholds = np.linspace(low, high, _GRID)[1:-1]
            best = int(np.argmax(_means(dimension, epsilon, thresholds)))
            low, high = thresholds[max(best - 1, 0)], thresholds[min(best + 1, _GRID - 3)]
        return cls.with_threshold(dimension, epsilon, float(thresholds[best]))

    @classmethod
    def with_threshold(cls, dimension: int, epsilon: float, threshold: float) -> PrivUnit:
        """The law for a cap of one's choice, gamma in (-1, 1): as private, and noisier than `of`."""
        cap = _cap(dimension, np.array([threshold]))
        return cls(
            dimension=dimension,
            epsilon=epsilon,
            threshold=threshold,
            cap=float(cap[0]),
            outside=float(_outside(epsilon, cap)[0]),
            mean=float(_means(dimension, epsilon, np.array([threshold]))[0]),
        )

    @property
    def length(self) -> float:
        """Of everything that is released: 1/m."""
        return 1.0 / self.mean

    @property
    def shrinkage(self) -> float:
        r"""What makes a release the best guess at its direction: m^2 (V/m) = m V.

        For a direction that is uniform before anything is known, V is uniform too, and by symmetry E[u | V] = m V: the guess with the least
        squared error. A model that reads releases beside exact interests, whose length is below 1 as well, reads these.
        """
        return self.mean**2

    def density_ratio(self) -> float:
        """The largest ratio of densities between two directions, from the two densities themselves."""
        return ((1.0 - self.outside) / self.cap) / (self.outside / (1.0 - self.cap))

    def release(self, vectors: np.ndarray, noise: NoiseSource) -> np.ndarray:
        """One release for each vector.

        A vector without a direction (zero, or not finite) is given a uniform one: its release is uniform on the sphere, whose density, 1,
        lies between those above, so that the bound holds for it too and nobody can be told by having none.

        Args:
            vectors: (n, k), of any length: only their direction counts.
            noise: where all randomness comes from; private where `noise.private` is.
        Returns:
            (n, k) float32 of length 1/m; their expectations are the directions.
        """
        count = len(vectors)
        directions = self._directions(np.asarray(vectors, dtype=np.float64), noise)
        coin, position = special.ndtr(noise.normal(count)), special.ndtr(noise.normal(count))  # uniform
        along = np.where(coin < self.outside, self._outside_cap(position), self._in_cap(position))  # (n,) <V, u>
        across = noise.normal(count * self.dimension).reshape(count, self.dimension)
        across -= (across * directions).sum(axis=1, keepdims=True) * directions
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        drawn = along[:, None] * directions + np.sqrt(np.maximum(0.0, 1.0 - along**2))[:, None] * across
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        return np.asarray(drawn * self.length, dtype=np.float32)

    def _directions(self, vectors: np.ndarray, noise: NoiseSource) -> np.ndarray:
        if vectors.ndim != 2 or vectors.shape[1] != self.dimension:
            raise ValueError(f"vectors are (n, {self.dimension})")
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(vectors, axis=1)
        lost = ~np.isfinite(lengths) | (lengths < 1e-12)
        instead = noise.normal(vectors.size).reshape(vectors.shape)  # drawn for all: how much noise was asked for says nothing
        chosen = np.where(lost[:, None], instead, vectors)
        return np.asarray(chosen / np.linalg.norm(chosen, axis=1, keepdims=True))

    def _in_cap(self, uniform: np.ndarray) -> np.ndarray:
        half = (self.dimension - 1) / 2
        return np.asarray(1.0 - 2.0 * special.betaincinv(half, half, self.cap * uniform))  # from the far end: the tail keeps its digits

    def _outside_cap(self, uniform: np.ndarray) -> np.ndarray:
        half = (self.dimension - 1) / 2
        return np.asarray(2.0 * special.betaincinv(half, half, (1.0 - self.cap) * uniform) - 1.0)


def _cap(dimension: int, threshold: np.ndarray) -> np.ndarray:
    """P(<V, u> >= gamma) of a uniform V: (1 + <V, u>)/2 has the law Beta((k-1)/2, (k-1)/2)."""
    half = (dimension - 1) / 2
    return np.asarray(special.betainc(half, half, (1.0 - threshold) / 2.0))


def _outside(epsilon: float, cap: np.ndarray) -> np.ndarray:
    """1 - p = 1 / (1 + e^epsilon a/(1-a)), from which p(1-a) / ((1-p)a) = e^epsilon."""
    with np.errstate(divide="ignore"):
        return np.asarray(special.expit(-(epsilon + np.log(cap) - np.log1p(-cap))))


def _means(dimension: int, epsilon: float, threshold: np.ndarray) -> np.ndarray:
    """m for each threshold; 0 where the cap is too small or too large for float64."""
    cap = _cap(dimension, threshold)
    outside = _outside(epsilon, cap)
    log_area = (
        special.gammaln(dimension / 2)
        - special.gammaln((dimension - 1) / 2)
        + (dimension - 1) / 2 * np.log1p(-(threshold**2))
        - math.log(math.sqrt(math.pi) * (dimension - 1))
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.exp(log_area) * ((1.0 - outside) / cap - outside / (1.0 - cap))
    return np.where((cap > 1e-300) & (cap < 1.0), found, 0.0)
