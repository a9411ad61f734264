r"""The serving head for warm users, people with a history here: text interest, popularity and the collaborative part, blended.

.. math:: s_j = a \langle z, x_j \rangle + g \log(n_j + 1) + c\, (h_c\, B)_j, \qquad z = h_a X / |h_a|

with :math:`h_a, h_c` the history, each item weighing less the more came after it (a decay of its own for the text and for the
collaborative part), X the coordinates of the items, :math:`n_j` how often item j was taken and B of `client.model.collaborative`.

::

    head = warm_fit.fit(histories, coordinates, counts, generator=g, max_history=L)
    head.scores(items, mask, coordinates)          # (rows, n_items) float32: everything, a chunk of users at a time
    head.vectors(coordinates)                      # (n_items, D) for a search by inner product: [x, log counts] or [x, log counts, factors]
    head.queries(items, mask, coordinates)         # (rows, D), the weights are in here
    head.extra(items, mask)                        # None, or what the products lack: rows of a slice -> (rows, n_items)
    head.parts(items, mask, coordinates)           # the three terms of a score one by one, for explanations

``items, mask`` are (rows, L) as `Histories.padded` gives them; a mask of -1 marks an item that was disliked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse

from shared.errors import StateError

from . import collaborative
from .collaborative import Collaborative, ItemFactors, recency_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Blend:
    """Weights of the three parts, 0 = left out, and the decays of the two that read a history."""

    text: float = 0.0
    text_decay: float = 1.0
    prior: float = 0.0
    collaborative: float = 0.0
    collaborative_decay: float = 1.0


POPULARITY = Blend(prior=1.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WarmHead:
    """A fitted head.

    Attributes:
        blend: what is let in.
        log_counts: (n_items,) float32 log(n + 1).
        collaborative: fitted on everything that is known here.
        max_history: latest items of a history that are read.
    """

    blend: Blend
    log_counts: np.ndarray
    collaborative: Collaborative
    max_history: int

    def scores(self, items: np.ndarray, mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """(rows, n_items) float32; people without any item get what is popular."""
        return np.asarray(sum(self.parts(items, mask, coordinates).values()), dtype=np.float32)

    def parts(self, items: np.ndarray, mask: np.ndarray, coordinates: np.ndarray) -> dict[str, np.ndarray]:
        """The terms of `scores`: ``text`` and ``collaborative`` (rows, n_items), ``prior`` (1, n_items); those with weight 0 are zeros."""
        found = {"prior": np.float32(self.blend.prior) * self.log_counts[None]}
        found["text"] = self._text(items, mask, coordinates) @ coordinates.T
        if self.blend.collaborative:
            history = self._history(items, mask, self.blend.collaborative_decay)
            found["collaborative"] = np.float32(self.blend.collaborative) * self.collaborative.scores(history)
        else:
            found["collaborative"] = np.zeros((len(items), len(coordinates)), dtype=np.float32)
        return found

    def vectors(self, coordinates: np.ndarray) -> np.ndarray:
        """(n_items, D) float32; D = d + 1, or d + 1 + k with item factors."""
        columns = [coordinates, self.log_counts[:, None]]
        if isinstance(self.collaborative, ItemFactors):
            columns.append(self.collaborative.vectors)
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def queries(self, items: np.ndarray, mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        """(rows, D) float32: with `vectors`, and `extra` where there is one, the inner products are the scores."""
        columns = [self._text(items, mask, coordinates), np.full((len(items), 1), self.blend.prior, dtype=np.float32)]
        if isinstance(self.collaborative, ItemFactors):
            history = self._history(items, mask, self.blend.collaborative_decay)
            columns.append(np.float32(self.blend.collaborative) * self.collaborative.queries(history))
        return np.concatenate(columns, axis=1, dtype=np.float32)

    def extra(self, items: np.ndarray, mask: np.ndarray) -> Callable[[slice], np.ndarray] | None:
        """Scores to add to the inner products, dense for the rows of a slice; None where there is nothing to add."""
        part, weight = self.collaborative, self.blend.collaborative
        if isinstance(part, ItemFactors) or weight == 0:
            return None
        history = self._history(items, mask, self.blend.collaborative_decay)
        return lambda rows: np.float32(weight) * part.scores(history[rows])

    def to_arrays(self) -> dict[str, np.ndarray]:
        return {
            "blend": np.array(dataclasses.astuple(self.blend), dtype=np.float64),
            "log_counts": self.log_counts,
            "max_history": np.array([self.max_history], dtype=np.int64),
            **{f"collaborative/{name}": array for name, array in self.collaborative.to_arrays().items()},
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> WarmHead:
        """What `to_arrays` gave.

        Raises:
            StateError: the arrays do not make a head.
        """
        part = {name.removeprefix("collaborative/"): array for name, array in arrays.items() if name.startswith("collaborative/")}
        try:
            names = [field.name for field in dataclasses.fields(Blend)]
            return cls(
                blend=Blend(**dict(zip(names, arrays["blend"].tolist(), strict=True))),
                log_counts=arrays["log_counts"],
                collaborative=collaborative.from_arrays(part),
                max_history=int(arrays["max_history"][0]),
            )
        except (KeyError, ValueError, IndexError):
            raise StateError("the serving state holds a head for warm users that is damaged", do="Fit the serving head again.") from None

    def _history(self, items: np.ndarray, mask: np.ndarray, decay: float) -> scipy.sparse.csr_array:
        length = self.max_history
        return recency_weights(items[:, -length:], mask[:, -length:], decay, len(self.log_counts))

    def _text(self, items: np.ndarray, mask: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
        history = self._history(items, mask, self.blend.text_decay)
        return np.float32(self.blend.text) * interests(history, coordinates)


def interests(history: scipy.sparse.csr_array, coordinates: np.ndarray) -> np.ndarray:
    """Mean coordinates of a history, by its weights.

    Args:
        history: (rows, n_items), from `recency_weights`.
        coordinates: (n_items, d).
    Returns:
        (rows, d) float32; zeros where a history is empty.
    """
    total = np.asarray(abs(history).sum(axis=1), dtype=np.float32)[:, None]  # (rows, 1)
    weighted = np.asarray(history @ coordinates, dtype=np.float32)
    return np.divide(weighted, total, out=np.zeros_like(weighted), where=total > 0)
