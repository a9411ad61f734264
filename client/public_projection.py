r"""The few public coordinates in which a domain's private passports speak, for as long as the domain lives.

A person's passport is drawn once, and interest spaces come and go with the runs. So the coordinates of a draw cannot be those of whichever
space is in use: they are the first k of the space in which the domain first drew, and stay. Text vectors e stand between the spaces,

.. math:: u = \frac{B^T V (s \odot z)}{b}, \qquad z' = \frac{V'^T B (b \odot u)}{s'},

with (V, s) basis and scale of the space of an interest z, (V', s') those of the space that reads it, and (B, b) the first k columns and
scales of the first space. All of them are public, so both ways are post-processing; in the first space itself they take the first k
numbers of z, and put zeros behind them. Means are left out, for only directions travel.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from shared.errors import PassportError
from shared.interest_space import InterestSpace

_LARGEST_SKEW = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """First columns of an interest space. Equal when their digests are.

    Args:
        space_version: the space they were taken from.
        basis: (D, k) float32, orthonormal columns.
        scale: (k,) float32, above 0.
    """

    space_version: str
    basis: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        fits = self.basis.ndim == 2 and self.scale.shape == (self.basis.shape[1],)
        finite = bool(np.isfinite(self.basis).all() and np.isfinite(self.scale).all() and (self.scale > 0).all())
        if not fits or not finite or np.abs(self.basis.T @ self.basis - np.eye(self.dimension)).max(initial=0.0) > _LARGEST_SKEW:
            raise PassportError("the public coordinates of private passports are no orthonormal columns with scales above 0")

    @classmethod
    def of(cls, space: InterestSpace, dimensions: int) -> Projection:
        """The first coordinates of a space; fewer where it has fewer, or where the catalogues know no further direction."""
        exists = np.flatnonzero(space.basis.any(axis=0))[:dimensions]
        return cls(
            space_version=space.version,
            basis=np.ascontiguousarray(space.basis[:, exists], dtype="<f4"),
            scale=np.ascontiguousarray(space.scale[exists], dtype="<f4"),
        )

    @property
    def dimension(self) -> int:
        """k."""
        return int(self.basis.shape[1])

    @property
    def text_dimension(self) -> int:
        """D, length of a text vector."""
        return int(self.basis.shape[0])

    @property
    def digest(self) -> str:
        """SHA-256 in hex over version, shape and bytes."""
        head = f"isthmus projection 1\n{self.space_version} {self.basis.shape}\n".encode()
        return hashlib.sha256(head + self.to_bytes()).hexdigest()

    def fits(self, space: InterestSpace) -> bool:
        """Whether the space was made of text vectors of the same length: of another length they are another language model's."""
        return space.text_dimension == self.text_dimension

    def read(self, interests: np.ndarray, space: InterestSpace) -> np.ndarray:
        """Interests (n, d) of a space -> (n, k)."""
        return np.asarray(interests.astype(np.float64) @ (self._between(space) * space.scale[:, None] / self.scale))

    def expand(self, vectors: np.ndarray, space: InterestSpace) -> np.ndarray:
        """(n, k) -> interests (n, d) float32 of a space."""
        return np.asarray(vectors.astype(np.float64) @ (self._between(space) / space.scale[:, None] * self.scale).T, dtype=np.float32)

    def _between(self, space: InterestSpace) -> np.ndarray:
        """(d, k) cosines between the columns of both; ones and zeros, and no rounding, in the space they were taken from."""
        if not self.fits(space):
            raise PassportError("private passports were drawn with the vectors of another language model than this run's")
        found = space.basis.astype(np.float64).T @ self.basis
        return np.asarray(np.rint(found) if space.version == self.space_version else found)

    def to_bytes(self) -> bytes:
        """Basis, row by row, then scale: 4 (D + 1) k bytes."""
        return self.basis.astype("<f4").tobytes() + self.scale.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, *, space_version: str, text_dimension: int, dimension: int) -> Projection:
        """Reads what `to_bytes` wrote.

        Raises:
            PassportError: it is no projection of that shape.
        """
        if len(data) != 4 * (text_dimension + 1) * dimension:
            raise PassportError("the public coordinates of private passports are cut short")
        numbers = np.frombuffer(data, dtype="<f4").astype(np.float32)
        return cls(
            space_version=space_version,
            basis=numbers[: text_dimension * dimension].reshape(text_dimension, dimension),
            scale=numbers[text_dimension * dimension :],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateTerms:
    """What a domain's private passports have in common, for life.

    Args:
        epsilon: of one person's one draw.
        projection: their coordinates.
    """

    epsilon: float
    projection: Projection

    @property
    def dimension(self) -> int:
        return self.projection.dimension

    @property
    def digest(self) -> str:
        """SHA-256 in hex over all of it."""
        return hashlib.sha256(f"isthmus private terms 1\n{float(self.epsilon)!r} {self.projection.digest}".encode()).hexdigest()
