r"""The interest space: the one coordinate system in which all domains speak about items and interests.

It is made once, before round 1, from numbers whose size does not depend on how many items a domain has::

    item vectors e_j (n, D)   -> Moments (count, sum, sum of outer products)           each client, its own catalogue
    sum of all Moments        -> InterestSpace: mean mu, basis V, scale sqrt(s)        server
    coordinates x_j (n, d)    -> centroids (K, d)                                      each client
    all centroids             -> prototypes (K, d), k-means of the centroids           server

    x_j = normalise((e_j - mu) V diag(s)^{-1/2})

that is, principal components of the pooled catalogues (Jolliffe 2002, ch. 3), whitened and put on the unit sphere. Catalogues are public by
declared policy; nothing here is fitted on a user's data.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2

from .errors import ConfigError, FederationError

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]

RANK_TOLERANCE = 1e-9
"""Variance, relative to the largest one, below which a direction does not exist in the catalogues: its coordinate is always 0."""
VARIANCE_FLOOR = 1e-4
"""Variance, relative to the largest one, below which whitening amplifies no further."""
SMALLEST_NORM = 1e-4
"""Whitened vectors shorter than this (typical length: sqrt(d)) stand at the mean; their direction is rounding error."""
GRID = 2.0**-20
"""Arrays of a space are rounded to multiples of it, so that two machines whose libraries differ in the last bits agree on its version."""
KMEANS_ITERATIONS = 25
ROWS_AT_A_TIME = 16_384

_NAMES = ("mean", "basis", "scale", "prototypes")


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """First and second moments of catalogue vectors. Their size depends on D only.

    Args:
        count: number of vectors that were summed; vectors that are all zero (items without text) are left out.
        total: (D,) float64, the sum of the vectors.
        outer: (D, D) float64, the sum of their outer products.
    """

    count: int
    total: Array64
    outer: Array64

    def __post_init__(self) -> None:
        size = self.total.shape[0] if self.total.ndim == 1 else -1
        if self.count < 0 or size < 1 or self.outer.shape != (size, size):
            raise ValueError("moments are a count of at least 0, a sum (D,) and outer products (D, D)")
        if not (np.isfinite(self.total).all() and np.isfinite(self.outer).all()):
            raise ValueError("moments hold a number that is not finite")

    @classmethod
    def of(cls, vectors: Array32) -> Moments:
        """Sums vectors (n, D); n may be 0."""
        if vectors.ndim != 2:
            raise ValueError("vectors are (n, D)")
        size = vectors.shape[1]
        count, total, outer = 0, np.zeros(size), np.zeros((size, size))
        for start in range(0, len(vectors), ROWS_AT_A_TIME):
            rows = vectors[start : start + ROWS_AT_A_TIME].astype(np.float64)
            rows = rows[rows.any(axis=1)]
            count, total, outer = count + len(rows), total + rows.sum(axis=0), outer + rows.T @ rows
        return cls(count, total, outer)

    def __add__(self, other: Moments) -> Moments:
        if self.total.shape != other.total.shape:
            raise ValueError("moments of vectors of different lengths do not add up")
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)


@dataclass(frozen=True, slots=True, eq=False)
class InterestSpace:
    """Mean, basis, scale and prototypes; read-only float32. Equal when their versions are.

    Args:
        mean: (D,) mean catalogue vector.
        basis: (D, d) orthonormal columns, largest variance first; a column of zeros where the catalogues have no further direction.
        scale: (d,) standard deviation along each column, sqrt(s), above 0.
        prototypes: (K, d) unit rows; (0, d) as long as there are none.
    """

    mean: Array32
    basis: Array32
    scale: Array32
    prototypes: Array32

    def __post_init__(self) -> None:
        for name in _NAMES:
            array = np.array(getattr(self, name), dtype=np.float32, order="C") + np.float32(0.0)  # a copy; -0 becomes 0
            if not np.isfinite(array).all():
                raise ValueError(f"'{name}' of an interest space holds a number that is not finite")
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        if self.basis.ndim != 2 or self.mean.shape != (self.text_dimension,) or self.scale.shape != (self.dimension,):
            raise ValueError("an interest space has a mean (D,), a basis (D, d) and a scale (d,)")
        if self.prototypes.ndim != 2 or self.prototypes.shape[1] != self.dimension:
            raise ValueError("prototypes of an interest space are (K, d)")
        if not (self.scale > 0).all():
            raise ValueError("'scale' of an interest space holds a number that is not above 0")

    @property
    def dimension(self) -> int:
        return int(self.basis.shape[1])

    @property
    def text_dimension(self) -> int:
        return int(self.basis.shape[0])

    @property
    def version(self) -> str:
        """First 16 hex digits of SHA-256 over name, dtype, shape and little-endian bytes of each array."""
        digest = hashlib.sha256(b"isthmus interest space 1")
        for name, array in self.to_arrays().items():
            digest.update(f"\n{name} {array.dtype.name} {array.shape}\n".encode())
            digest.update(array.astype("<f4", copy=False).tobytes())
        return digest.hexdigest()[:16]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InterestSpace) and self.version == other.version

    def __hash__(self) -> int:
        return hash(self.version)

    @classmethod
    def from_moments(cls, moments: Sequence[Moments], dimension: int) -> InterestSpace:
        """Principal components of all vectors that the moments describe, as if they lay in one place.

        Args:
            moments: one per domain; their order changes nothing but rounding.
            dimension: d. Directions beyond the rank of the data get a basis column of zeros.
        Raises:
            ConfigError: d is larger than the vectors are long.
            FederationError: fewer than two items among all catalogues.
        """
        count = sum(part.count for part in moments)
        if count < 2:
            raise FederationError(
                "an interest space needs at least two items with text, over all catalogues that were sent",
                do="Ask at least one partner with a catalogue to let its moments leave.",
            )
        pooled = _pooled(moments)
        size = pooled.total.shape[0]
        if not 1 <= dimension <= size:
            raise ConfigError(f"model.dimension is outside 1 to {size}, the length of a text vector", do="Choose a smaller one.")
        mean = pooled.total / count
        covariance = pooled.outer / count - np.outer(mean, mean)
        variances, vectors = np.linalg.eigh((covariance + covariance.T) / 2)  # ascending
        variances = np.maximum(variances[::-1][:dimension], 0.0)  # (d,)
        basis = _with_fixed_signs(vectors[:, ::-1][:, :dimension])  # (D, d)
        exists = variances > max(RANK_TOLERANCE * variances[0], 1e-12 * np.trace(pooled.outer) / count)
        deviation = np.sqrt(np.maximum(variances, VARIANCE_FLOOR * variances[0]))
        return cls(
            mean=_on_grid(mean),
            basis=_on_grid(np.where(exists, basis, 0.0)),
            scale=_on_grid(np.where(exists, np.maximum(deviation, GRID), 1.0)),
            prototypes=np.zeros((0, dimension), dtype=np.float32),
        )

    def with_prototypes(self, domain_centroids: Sequence[Array32], k: int, seed: int) -> InterestSpace:
        """The same space with k prototypes: k-means of the centroids of all domains, put on the unit sphere.

        Args:
            domain_centroids: one (K_i, d) per domain, each from `centroids`; neither their order nor repeated rows matter.
            k: number of prototypes.
            seed: of the k-means start.
        """
        if any(rows.ndim != 2 or rows.shape[1] != self.dimension for rows in domain_centroids):
            raise ValueError("centroids of a domain are (K, d)")
        pooled = np.concatenate([np.zeros((0, self.dimension), dtype=np.float32), *domain_centroids])
        prototypes = _unit_rows(centroids(pooled, k, seed).astype(np.float64), smallest=0.0)
        return InterestSpace(mean=self.mean, basis=self.basis, scale=self.scale, prototypes=_on_grid(prototypes))

    def project(self, vectors: Array32) -> Array32:
        """Coordinates (n, d) of text vectors (n, D): unit rows.

        A row of zeros (an item without text) and a row at the mean have no direction here; they become rows of zeros.
        """
        if vectors.ndim != 2 or vectors.shape[1] != self.text_dimension:
            raise ValueError(f"vectors are (n, {self.text_dimension})")
        whitening = self.basis / self.scale  # (D, d)
        coordinates = np.empty((len(vectors), self.dimension), dtype=np.float32)
        for start in range(0, len(vectors), ROWS_AT_A_TIME):
            rows = np.asarray(vectors[start : start + ROWS_AT_A_TIME], dtype=np.float32)
            if not np.isfinite(rows).all():
                raise ValueError("a vector holds a number that is not finite")
            whitened = _unit_rows((rows - self.mean) @ whitening, smallest=SMALLEST_NORM)
            whitened[~rows.any(axis=1)] = 0.0
            coordinates[start : start + len(rows)] = whitened
        return coordinates

    def descriptor(self, coordinates: Array32, length: int) -> Array32:
        """Descriptor c (length,) of a domain: the first numbers of its mean catalogue coordinate; zeros for an empty catalogue."""
        if coordinates.ndim != 2 or coordinates.shape[1] != self.dimension:
            raise ValueError(f"coordinates are (n, {self.dimension})")
        if not 1 <= length <= self.dimension:
            raise ConfigError(f"model.descriptor_dimension is outside 1 to {self.dimension}", do="A descriptor is cut from a coordinate.")
        total: Array64 = coordinates[:, :length].sum(axis=0, dtype=np.float64)
        return np.asarray(total / max(len(coordinates), 1), dtype=np.float32)

    def to_arrays(self) -> dict[str, Array32]:
        return {name: getattr(self, name) for name in _NAMES}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> InterestSpace:
        """Reads what `to_arrays` wrote.

        Raises:
            ValueError: an array is missing, unknown, of the wrong shape or dtype, or not finite.
        """
        if set(arrays) != set(_NAMES):
            raise ValueError(f"an interest space is made of the arrays {', '.join(_NAMES)}")
        if any(array.dtype != np.float32 for array in arrays.values()):
            raise ValueError("arrays of an interest space are float32")
        return cls(**{name: arrays[name] for name in _NAMES})


def centroids(coordinates: Array32, k: int, seed: int) -> Array32:
    """k-means centroids (k, d) of coordinates (n, d): Lloyd's algorithm from a k-means++ start (Arthur & Vassilvitskii 2007).

    The answer always has k rows: with fewer than k different coordinates they are repeated in turn, and an empty catalogue gives zeros, so
    the size of the message says nothing about the catalogue. The same for any order of the rows.

    Args:
        coordinates: (n, d); rows of zeros (items without text) and repeated rows are left out.
        k: number of centroids, at least 1.
        seed: of the start.
    """
    if coordinates.ndim != 2 or k < 1:
        raise ValueError("coordinates are (n, d) and k is at least 1")
    rows = np.unique(np.asarray(coordinates, dtype=np.float32), axis=0)
    rows = rows[rows.any(axis=1)].astype(np.float64)
    if len(rows) == 0:
        return np.zeros((k, coordinates.shape[1]), dtype=np.float32)
    if len(rows) <= k:
        return rows[np.arange(k) % len(rows)].astype(np.float32)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="One of the clusters is empty")  # it keeps its last centroid, as we want
        found, _ = kmeans2(rows, k, iter=KMEANS_ITERATIONS, minit="++", rng=np.random.default_rng(seed))
    return np.asarray(found, dtype=np.float32)


def _pooled(moments: Iterable[Moments]) -> Moments:
    first, *rest = moments
    for part in rest:
        first = first + part
    return first


def _with_fixed_signs(columns: Array64) -> Array64:
    """An eigenvector's sign is arbitrary: the entry that is largest in size (the first of them) is made positive."""
    rounded = np.abs(np.round(columns, 9))
    largest = np.take_along_axis(columns, rounded.argmax(axis=0)[None, :], axis=0)  # (1, d)
    return columns * np.where(largest < 0, -1.0, 1.0)


def _on_grid(array: Array64) -> Array32:
    return (np.round(array / GRID) * GRID).astype(np.float32)


def _unit_rows(rows: NDArray[Any], *, smallest: float) -> NDArray[Any]:
    """Rows divided by their length; those not longer than ``smallest`` become zero."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.where(norms > smallest, rows / np.where(norms > smallest, norms, 1.0), 0.0)
